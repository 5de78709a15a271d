"""How many images a plan counts on: of a data set that may not be here. Needs no torch."""

from pathlib import Path

from ..beton.inspect import BetonReader
from ..datasets import beton_path, get_dataset
from .candidates import PUBLISHED_IMAGES, PlannedData

# Training images of data sets whose specs leave the number open: ILSVRC 2012, and the paper's ImageNet-21k.
KNOWN_IMAGES = {"imagenet": 1_281_167, "imagenet21k": PUBLISHED_IMAGES}


def planned_data(name: str, data_dir: Path, res: int = 0, images: int = 0) -> tuple[PlannedData, str]:
    """Return the data set's sizes and where the number of images is from: the flag, its beton, or what is published.

    res is 0 for the data set's own, images 0 for its own. Raises ValueError for an unknown data set, for a number of
    images that is neither given nor known, and for sizes below 0.
    """
    if res < 0 or images < 0:
        raise ValueError(f"--res={res}, --images={images}: expected 0 or more")
    spec = get_dataset(name, data_dir, res)
    res = res or spec.res
    beton = beton_path(data_dir, name, spec.train_split, res)
    if images:
        return PlannedData(name, images, spec.num_classes, res), "--images"
    if beton.is_file():
        return PlannedData(name, int(BetonReader(beton).header["num_samples"]), spec.num_classes, res), str(beton)
    images = spec.split_sizes.get(spec.train_split, 0) or KNOWN_IMAGES.get(name, 0)
    if not images:
        raise ValueError(
            f"how many training images {name} has is not known and {beton} is missing: give --images, or run "
            f"{spec.writer} --res {res}"
        )
    return PlannedData(name, images, spec.num_classes, res), "as published; no beton is here"
