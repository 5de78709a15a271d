"""Write TinyImageNet (200 classes at 64 px) into betons.

    python writers/tiny_imagenet.py --source tiny-imagenet-200.zip

The archive comes from http://cs231n.stanford.edu/tiny-imagenet-200.zip (248 MB); it does not need to be unpacked.
"""

from fastmlp import cli
from fastmlp.beton import writer_cli as command
from fastmlp.datasets import SPECS
from fastmlp.sources.tiny_imagenet import ADVICE, tiny_imagenet


def main() -> None:
    spec = SPECS["tiny_imagenet"]
    parser = command.parser(cli.summary(__doc__), spec.res, f"{spec.writer} --source tiny-imagenet-200.zip")
    parser.add_argument(
        "--source",
        type=cli.path,
        help="the archive, its unpacked folder, or a folder that holds either (default: $TINY_IMAGENET)",
    )
    arguments = parser.parse_args()
    to = command.options(arguments)
    source = command.resolve_source(arguments.source, "TINY_IMAGENET", "TinyImageNet", ADVICE)
    command.write_splits(spec.name, lambda split: tiny_imagenet(split, source, to.res, to.fit), spec.splits, to)


if __name__ == "__main__":
    cli.run(main)
