"""Does an installed fastmlp work away from its repository? Run by scripts/package.sh with that environment's Python.

    scripts/package_check.py VERSION   write betons, load them, train a tiny model for one epoch, predict (10 s)

Exit code 0, or 1 with one line that says what is wrong.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml

import fastmlp
from fastmlp.sources.base import ArraySource

CLASSES = tuple(f"shade {k}" for k in range(10))
SIZES = {"train": 1024, "test": 200}


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise RuntimeError(what)


def write_and_load(data: Path) -> np.ndarray:
    """Write betons that are named as Fashion-MNIST's and load them; return the test images, (200, 32, 32, 3) uint8."""
    for split, size in SIZES.items():
        labels = np.arange(size) % 10
        images = np.random.default_rng(0).integers(0, 16, (size, 32, 32, 3)) + 24 * labels[:, None, None, None]
        images = images.astype(np.uint8)
        path = data / f"fashion_mnist_{split}_32.beton"
        metadata = {"dataset": "fashion_mnist", "split": split, "splits": list(SIZES)}
        fastmlp.write_beton(path, ArraySource(images, labels, CLASSES), 32, metadata=metadata, seed=None)
        with fastmlp.Loader(path, batch_size=100, order=fastmlp.OrderOption.SEQUENTIAL, drop_last=False) as loader:
            batches = [(np.array(batch), np.array(numbers).ravel()) for batch, numbers in loader]
        pixels, numbers = (np.concatenate(part) for part in zip(*batches, strict=True))
        expect(np.array_equal(pixels, images), f"{path.name} loads other pixels than were written")
        expect(np.array_equal(numbers, labels), f"{path.name} loads other labels than were written")
    return images


def train_and_predict(data: Path, images: np.ndarray) -> None:
    """Train with the installed settings of Fashion-MNIST, which the paper's are not."""
    model = fastmlp.build_model("B_1-Wi_16", 32, 10)
    expect(sum(weight.numel() for weight in model.parameters()) > 3 * 32 * 32 * 16, "the model has too few weights")
    folder = data / "run"
    run = fastmlp.train("fashion_mnist", data_dir=data, arch="B_1-Wi_16", epochs=1, run_dir=folder, device="cpu")
    settings = yaml.safe_load((folder / "config.yaml").read_text())["cfg"]
    own = (settings["optimizer"], settings["batch_size"]) == ("adamw", 512)
    expect(own, "Fashion-MNIST's settings are not installed")
    commit = json.loads((folder / "environment.json").read_text())["commit"]
    expect(commit == "unknown", f"an installed library takes {commit} for its commit")
    labels = fastmlp.predict(run.weights, images[:20]).labels
    expect(len(labels) == 20 and set(labels) <= set(CLASSES), f"no labels are predicted, but {labels}")


def main(version: str) -> None:
    folder = Path(fastmlp.__file__).parent
    expect(folder.parent.name == "site-packages", f"fastmlp is imported from {folder}: not installed from a wheel")
    expect(fastmlp.__version__ == version, f"the wheel holds {fastmlp.__version__}, not {version}")
    expect((folder / "py.typed").is_file(), "py.typed is not installed")
    with tempfile.TemporaryDirectory() as data:
        os.chdir(data)
        train_and_predict(Path(data), write_and_load(Path(data)))
    print(f"fastmlp {version} writes, loads, trains and predicts, from {folder}")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
