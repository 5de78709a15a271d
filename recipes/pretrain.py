"""Trains an MLP on a data set's betons.

    python recipes/pretrain.py --cfg.batch_size=16384
    python recipes/pretrain.py --cfg.dataset=cifar10 --cfg.epochs=20
    python recipes/pretrain.py --config-file mine.yaml

Without --cfg.dataset it trains on ImageNet if its beton is in ./data, else on Fashion-MNIST, which it writes if needed.
A data set's own settings come from fastmlp/training/dataset_settings/<dataset>.yaml, or from a file of that name that
you put into recipes/configs; --config-file and flags override them. The run folder has the settings, log, weights
(final.pt, best.pt) and report.html, its page. After an interruption the same command resumes from the last checkpoint.
On several GPUs: torchrun --nproc-per-node=2 recipes/pretrain.py ...
"""

from fastmlp import cli
from fastmlp.config import PretrainConfig
from fastmlp.training.pretrain import presets, pretrain


def main() -> None:
    pretrain(cli.parse(PretrainConfig, cli.summary(__doc__), presets))


if __name__ == "__main__":
    cli.run(main)
