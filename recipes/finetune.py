"""Fine-tunes a trained MLP, ours or a released one, on a data set's betons, with a new head.

    python recipes/finetune.py --cfg.weights=runs/.../final.pt --cfg.dataset=cifar10
    python recipes/finetune.py --cfg.weights=B_12-Wi_1024_in21k --cfg.dataset=cifar10 \
        --config-file recipes/configs/finetune_released.yaml

The defaults are the paper's, but for the head, which begins as a logistic probe's, and the gradients, which are clipped
at 1: SGD, the head at a learning rate of 0.01 and the backbone at a tenth of it, crops of 0.4 to 1 of the area, 50
epochs. Images are scaled from the beton's size to the model's as they are loaded. The run folder has the same files as
that of pretrain.py. The name of a released model downloads it (not tried against the real host).
"""

from fastmlp import cli
from fastmlp.config import FinetuneConfig


def main() -> None:
    config = cli.parse(FinetuneConfig, cli.summary(__doc__))
    with cli.loading():  # torch takes seconds, which --help need not wait for
        from fastmlp.training.transfer import transfer

    transfer(config)


if __name__ == "__main__":
    cli.run(main)
