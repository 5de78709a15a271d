"""Trains a linear head on the frozen body of a trained MLP, ours or a released one.

    python recipes/linear_probe.py --cfg.weights=runs/.../final.pt --cfg.dataset=cifar10
    python recipes/linear_probe.py --cfg.weights=runs/.../final.pt --cfg.dataset=cifar10 --cfg.method=logistic

Without crop, flip and MixUp (the default) the features are computed once, and the head trains on them at the speed of
memory; with them, the images stream. --cfg.method=logistic fits an L2-regularised logistic regression to its optimum.
recipes/configs/probe_paper.yaml has the paper's settings (LION 1e-5).
"""

import dataclasses

from fastmlp import cli
from fastmlp.config import ProbeConfig
from fastmlp.datasets import find


def main() -> None:
    asked = cli.parse(ProbeConfig, __doc__.splitlines()[0])
    if not asked.weights or asked.dataset == "auto":
        raise ValueError("name the trained model and the data set: --cfg.weights=runs/.../final.pt --cfg.dataset=NAME")
    spec = find(asked.dataset, asked.data_dir, asked.res)

    from fastmlp import session
    from fastmlp.weights import load_body

    model = load_body(asked.weights, asked.arch)
    config = dataclasses.replace(asked, res=asked.res or spec.res, arch=str(model.arch))
    stem = f"probe-{spec.name}-{config.arch}-seed{config.seed}".lower()
    if config.method == "logistic":
        session.fit_head(config, spec, lambda: model.with_head(spec.num_classes), stem)
    else:
        session.train(config, spec, lambda: model.with_head(spec.num_classes), stem, body="frozen")


if __name__ == "__main__":
    cli.run(main)
