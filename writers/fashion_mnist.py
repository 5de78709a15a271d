"""Write Fashion-MNIST (28 px grey, padded to 32 px RGB) into betons.

    python writers/fashion_mnist.py [--source FOLDER] [--res 32] [--out ./data]

The images come from --source or the environment variable FASHION_MNIST, otherwise from Debian's package
dataset-fashion-mnist, otherwise by download (31 MB).
"""

import os

from fastmlp import cli
from fastmlp.beton import writer_cli as command
from fastmlp.datasets import SPECS
from fastmlp.sources.fashion_mnist import FashionMNIST


def main() -> None:
    spec = SPECS["fashion_mnist"]
    parser = command.parser(cli.summary(__doc__), spec.res, spec.writer)
    parser.add_argument(
        "--source",
        type=cli.path,
        default=os.environ.get("FASHION_MNIST") or None,
        help="folder with the four IDX files, .gz or unpacked (default: $FASHION_MNIST)",
    )
    arguments = parser.parse_args()
    to = command.options(arguments)
    command.write_splits(
        spec.name, lambda split: FashionMNIST(split, arguments.source, to.out / "downloads"), spec.splits, to
    )


if __name__ == "__main__":
    cli.run(main)
