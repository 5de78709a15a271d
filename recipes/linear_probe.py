"""Trains a linear head on the frozen backbone of a trained MLP, ours or a released one.

    python recipes/linear_probe.py --cfg.weights=runs/.../final.pt --cfg.dataset=cifar10
    python recipes/linear_probe.py --cfg.weights=runs/.../final.pt --cfg.dataset=cifar10 --cfg.method=logistic

Without crop, flip and MixUp (the default) the features are computed once, and the head trains on them from memory;
otherwise they are computed in each epoch. --cfg.method=logistic fits an L2-regularised logistic regression to its
optimum. recipes/configs/probe_paper.yaml has the paper's settings (LION 1e-5), probe_released.yaml those of the
authors' code, for the released weights.
"""

from fastmlp import cli
from fastmlp.config import ProbeConfig


def main() -> None:
    config = cli.parse(ProbeConfig, cli.summary(__doc__))
    with cli.loading():  # torch takes seconds, which --help need not wait for
        from fastmlp.training.transfer import transfer

    transfer(config)


if __name__ == "__main__":
    cli.run(main)
