"""Picture of a beton's images before and after augmentation.

    python -m fastmlp.data.preview data/cifar10_train_32.beton --crop random_resized --flip --out sheet.png

Each row shows whole images, scaled to --res if they have another size; the row below shows them as a model is trained
on them.
"""

import argparse
from pathlib import Path

import numpy as np

from .. import cli
from ..config import RENAMED_VALUES
from ..loader.loader import Loader, OrderOption
from ..loader.mapped_beton import MappedBeton
from ..plots import contact_sheet
from ..transforms.augment_params import CROPS, Augment
from ..transforms.cpu_decoder import AugmentedRGBImageDecoder
from ..transforms.resample import RESAMPLINGS


def before_and_after(
    beton: str | Path,
    augment: Augment,
    res: int,
    seed: int,
    rows: int,
    columns: int,
    epoch: int = 0,
    resampling: str = "bilinear",
) -> np.ndarray:
    """Return an epoch's first images in random order, (2 * rows, columns, res, res, 3) uint8.

    A row of whole images, below it the same images augmented, and so on: those that the trainer uses for this seed and
    epoch. There are fewer columns, or rows, if the beton holds fewer images.
    """
    all_fields_off = dict.fromkeys(MappedBeton(beton).handlers)
    pictures = []
    for one in (Augment(), augment):
        # As floats, which training needs, too: another function to compile would take seconds.
        decoder = AugmentedRGBImageDecoder(one, res, mean=(0, 0, 0), std=(1, 1, 1), seed=seed, resampling=resampling)
        pipelines = {**all_fields_off, "image": [decoder]}
        with Loader(
            beton,
            rows * columns,
            order=OrderOption.RANDOM,
            seed=seed,
            drop_last=False,
            batches_ahead=0,
            pipelines=pipelines,
        ) as loader:
            loader.next_epoch = epoch
            planes = next(iter(loader))[0].reshape(-1, 3, res, res)
            pictures.append((planes + 0.5).astype(np.uint8).transpose(0, 2, 3, 1))
    columns = min(columns, len(pictures[0]))
    rows = len(pictures[0]) // columns
    pair = np.stack([images[: rows * columns].reshape(rows, columns, res, res, 3) for images in pictures], axis=1)
    return pair.reshape(2 * rows, columns, res, res, 3)


def _crop(name: str) -> str:
    if new := RENAMED_VALUES["crop"].get(name):
        raise argparse.ArgumentTypeError(f"{name} is now called {new}")
    return name


def main() -> None:
    defaults = Augment()
    parser = argparse.ArgumentParser("python -m fastmlp.data.preview", description=cli.summary(__doc__))
    parser.add_argument("beton", type=cli.path, help="the beton to look at (raw images)")
    parser.add_argument("--out", type=cli.path, default=Path("augmented.png"), help="picture (default: %(default)s)")
    parser.add_argument(
        "--crop", type=_crop, choices=CROPS, default="random_resized", help="kind of crop (default: %(default)s)"
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=defaults.scale[0],
        help="minimum area of a random_resized crop, as a share of the image (default: %(default)s)",
    )
    parser.add_argument(
        "--ratio",
        type=float,
        default=defaults.ratio[0],
        help="minimum aspect ratio of a random_resized crop; the maximum is 1/x (default: %(default)s)",
    )
    parser.add_argument(
        "--padding", type=int, default=defaults.padding, help="padding of pad_and_crop [pixels] (default: %(default)s)"
    )
    parser.add_argument(
        "--center",
        type=float,
        default=defaults.center,
        help="side of a centre crop, as a share of the shorter side (default: %(default)s)",
    )
    parser.add_argument("--flip", action="store_true", help="flip half of the images")
    parser.add_argument(
        "--res", type=int, default=0, help="side of the images that a model sees [pixels] (default: the beton's)"
    )
    parser.add_argument(
        "--resampling",
        choices=RESAMPLINGS,
        default="bilinear",
        help="how images are resized: area for the released models (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the order and the augmentation (default: 0)")
    parser.add_argument("--epoch", type=int, default=0, help="epoch to show (default: 0)")
    parser.add_argument("--rows", type=int, default=4, help="rows of images (default: 4)")
    parser.add_argument("--columns", type=int, default=16, help="images in a row (default: 16)")
    parser.add_argument("--shift", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.shift is not None:
        raise ValueError("--shift is now called --padding")
    if options.ratio <= 0:
        raise ValueError(f"--ratio {options.ratio}: expected a number above 0")
    ratio = min(options.ratio, 1 / options.ratio), max(options.ratio, 1 / options.ratio)
    augment = Augment(options.crop, (options.scale, 1.0), ratio, options.padding, options.flip, options.center)
    beton = MappedBeton(options.beton)
    if "image" not in beton.handlers:
        raise ValueError(f"{options.beton} has no field named image; its fields are {', '.join(beton.handlers)}")
    res = options.res or int(beton.metadata[f"f{list(beton.handlers).index('image')}"]["height"].max())
    shown = options.rows, options.columns, options.epoch, options.resampling
    images = before_and_after(options.beton, augment, res, options.seed, *shown)
    print(
        f"{contact_sheet(images, options.out)}: {len(images) // 2} rows of {images.shape[1]} images, whole "
        "and, below, augmented"
    )


if __name__ == "__main__":
    cli.run(main)
