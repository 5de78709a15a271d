"""Write CIFAR-10 or CIFAR-100 into betons, from the binary archive.

    python writers/cifar.py --dataset cifar10 [--source ARCHIVE_OR_FOLDER] [--res 32] [--out ./data]

The images come from --source or the environment variable CIFAR (the .tar.gz of the binary version, its unpacked folder,
or a folder that holds either), otherwise by download (170 MB).
"""

import os

from fastmlp import cli
from fastmlp.beton import writer_cli as command
from fastmlp.datasets import SPECS
from fastmlp.sources.cifar import CIFAR, FORMATS


def main() -> None:
    parser = command.parser(cli.summary(__doc__), 32, SPECS["cifar10"].writer)
    parser.add_argument("--dataset", choices=sorted(FORMATS), default="cifar10", help="(default: %(default)s)")
    parser.add_argument(
        "--source",
        type=cli.path,
        default=os.environ.get("CIFAR") or None,
        help="the binary archive, its unpacked folder, or a folder that holds either (default: $CIFAR)",
    )
    parser.add_argument("--any-checksum", action="store_true", help="accept an archive other than the published one")
    arguments = parser.parse_args()
    to = command.options(arguments)
    command.write_splits(
        arguments.dataset,
        lambda split: CIFAR(arguments.dataset, split, arguments.source, to.out / "downloads", arguments.any_checksum),
        SPECS[arguments.dataset].splits,
        to,
    )


if __name__ == "__main__":
    cli.run(main)
