"""Fine-tunes a trained MLP, ours or a released one, on a data set's betons, with a new head.

    python recipes/finetune.py --cfg.weights=runs/.../final.pt --cfg.dataset=cifar10
    python recipes/finetune.py --cfg.weights=B-12_Wi-1024_res_64_imagenet21_epochs_800_weights --cfg.dataset=cifar10 \
        --config-file recipes/configs/finetune_released.yaml

The defaults are the paper's: SGD, the head at 0.01 and the body at a tenth of it, crops of 0.4 to 1 of the area, 50
epochs. Images are scaled from the beton's size to the model's on the way. The run's folder is that of pretrain.py.
"""

from fastmlp import cli
from fastmlp.config import FinetuneConfig


def main() -> None:
    config = cli.parse(FinetuneConfig, __doc__.splitlines()[0])
    from fastmlp.training import run as session  # torch takes seconds, --help need not
    from fastmlp.training import transfer

    session.train(*transfer.transfer(config, "finetune"))


if __name__ == "__main__":
    cli.run(main)
