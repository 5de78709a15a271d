"""Write synthetic, learnable images into betons: any number, any resolution, any number of classes.

python writers/synthetic.py --train-images 50000 --test-images 10000 --num-classes 10 --res 32
"""

from fastmlp import cli
from fastmlp.beton import writer_cli as command
from fastmlp.datasets import SPECS
from fastmlp.sources.synthetic import Synthetic


def main() -> None:
    spec = SPECS["synthetic"]
    parser = command.parser(cli.summary(__doc__), spec.res, spec.writer)
    parser.add_argument("--train-images", type=command.positive, default=50_000, help="(default: %(default)s)")
    parser.add_argument("--test-images", type=command.positive, default=10_000, help="(default: %(default)s)")
    parser.add_argument("--num-classes", type=command.positive, default=spec.num_classes, help="(default: %(default)s)")
    parser.add_argument(
        "--noise",
        type=command.positive,
        default=60,
        help="standard deviation of the noise, of 255 (default: %(default)s)",
    )
    arguments = parser.parse_args()
    to = command.options(arguments)
    counts = {"train": arguments.train_images, "test": arguments.test_images}
    command.write_splits(
        spec.name,
        lambda split: Synthetic(counts[split], arguments.num_classes, to.res, split, to.seed, arguments.noise),
        spec.splits,
        to,
    )


if __name__ == "__main__":
    cli.run(main)
