"""Write STL-10 (96 px, scaled to 64) into betons, from the binary archive.

    python writers/stl10.py [--source ARCHIVE_OR_FOLDER] [--res 64] [--out ./data]

The images come from --source or the environment variable STL10 (stl10_binary.tar.gz, its unpacked folder, or a folder
that holds either), otherwise by download (2.6 GB). An unpacked folder is read faster, and does not need the unlabelled
images.
"""

import os

from fastmlp import cli
from fastmlp.beton import writer_cli as command
from fastmlp.datasets import SPECS
from fastmlp.sources.stl10 import STL10


def main() -> None:
    spec = SPECS["stl10"]
    parser = command.parser(cli.summary(__doc__), spec.res, spec.writer)
    parser.add_argument(
        "--source",
        type=cli.path,
        default=os.environ.get("STL10") or None,
        help="the binary archive, its unpacked folder, or a folder that holds either (default: $STL10)",
    )
    parser.add_argument("--any-checksum", action="store_true", help="accept an archive other than the published one")
    arguments = parser.parse_args()
    to = command.options(arguments)
    command.write_splits(
        spec.name,
        lambda split: STL10(split, arguments.source, to.out / "downloads", arguments.any_checksum),
        spec.splits,
        to,
    )


if __name__ == "__main__":
    cli.run(main)
