"""Plain image files through a model: no beton, no labels."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..models.mlp import MLP
from ..sources.decode import decode, read_file
from ..sources.fit import Fit
from ..sources.folder import image_files
from ..transforms.augment_params import Augment, draw_params
from ..transforms.resample import crop_resize, crop_resize_normalize
from ..worker_pool import num_cores
from .evaluate import forward

BATCH = 256


@dataclass(frozen=True)
class Classified:
    """Files that could be read, and what the model makes of them; `unreadable` are the messages of the others."""

    paths: list[Path]
    probabilities: np.ndarray  # (N, num_classes) float32
    unreadable: list[str]


def classify_folder(
    model: MLP, folder: str | Path, mean: Sequence[float], std: Sequence[float], fit: Fit, num_workers: int = 0
) -> Classified:
    """Every image below `folder`, in the order of its names, as if it had been written to a beton of model.res.

    Raises FileNotFoundError where there is no folder or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: --cfg.images must name one")
    paths = [folder / os.fsdecode(name) for name in sorted(image_files(os.fsencode(folder)))]
    if not paths:
        raise FileNotFoundError(f"{folder} holds no images")
    run, device = forward(model.eval()), next(model.parameters()).device
    numbers = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    read, probabilities, unreadable = [], [], []
    with tqdm(total=len(paths), unit=" images", desc=str(folder), delay=1) as bar, torch.inference_mode():
        for some in _decoded(paths, model.res, fit, num_workers):
            good = [(path, image) for path, image in some if isinstance(image, np.ndarray)]
            unreadable += [str(image) for _, image in some if not isinstance(image, np.ndarray)]
            bar.update(len(some))
            if good:
                read += [path for path, _ in good]
                ready = torch.empty(len(good), 3 * model.res * model.res)
                _centred([image for _, image in good], crop_resize_normalize, *numbers, ready.numpy(), model.res)
                probabilities.append(run(ready.to(device)).softmax(1).cpu().numpy())
    if not read:
        raise ValueError(f"not one of the {len(paths)} images in {folder} can be read; the first: {unreadable[0]}")
    return Classified(read, np.concatenate(probabilities), unreadable)


def thumbnails(
    paths: Sequence[Path],
    res: int,
    fit: Fit,
) -> np.ndarray:  # (N, res, res, 3) uint8
    """What a model sees of the files, before normalisation."""
    out = np.empty((len(paths), res, res, 3), np.uint8)
    _centred([decode(read_file(os.fspath(path)), str(path), res, fit) for path in paths], crop_resize, out, res)
    return out


def _decoded(
    paths: list[Path], res: int, fit: Fit, num_workers: int
) -> Iterator[list[tuple[Path, np.ndarray | ValueError]]]:
    def one(path: Path) -> np.ndarray | ValueError:
        try:
            return np.ascontiguousarray(decode(read_file(os.fspath(path)), str(path), res, fit))
        except ValueError as error:
            return error

    with ThreadPoolExecutor(num_workers or num_cores()) as pool:  # Pillow decodes without the GIL
        for some in (paths[first : first + BATCH] for first in range(0, len(paths), BATCH)):
            yield list(zip(some, pool.map(one, some), strict=True))


def _centred(images: list[np.ndarray], kernel, *rest) -> None:
    """The centre square of each, as a Split of images of any shape is evaluated."""
    heights, widths = (np.array([image.shape[axis] for image in images], np.int64) for axis in (0, 1))
    boxes, flips = draw_params(Augment("center"), heights, widths, 0, 0, np.arange(len(images)))
    images = [np.ascontiguousarray(image) for image in images]
    addresses = np.array([image.ctypes.data for image in images], np.uint64)
    kernel(addresses, heights, widths, boxes, flips, *rest)
