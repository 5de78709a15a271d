"""Classification of your own image files: no beton, no labels."""

import os
from collections import Counter
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
from ..sources.listing import told
from ..transforms.augment_params import Augment, draw_params
from ..transforms.resample import crop_resize, crop_resize_normalize
from ..worker_pool import num_cores
from .evaluate import select_forward

BATCH = 256


@dataclass(frozen=True)
class Classified:
    """The files that could be read, with their predictions; `unreadable` has the error message of each other file.

    `best` has the classes of the five highest logits from the highest on, of equal ones the lower index first (as
    evaluate.predict): probabilities are rounded, so that they may tie where logits do not.
    """

    paths: list[Path]
    probabilities: np.ndarray  # (N, num_classes) float32
    best: np.ndarray  # (N, at most 5) int64
    unreadable: list[str]
    left_out: Counter[str]  # what else the folder holds, by the reason why it is no image


def classify_folder(
    model: MLP, folder: str | Path, mean: Sequence[float], std: Sequence[float], fit: Fit, num_workers: int = 0
) -> Classified:
    """Classify every image below `folder`, in the order of names, as if it had been written to a beton of model.res.

    Raises FileNotFoundError if there is no such folder or no image in it, ValueError if no image can be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: --cfg.images must name a folder of images")
    left_out: Counter[str] = Counter()
    paths = [folder / os.fsdecode(name) for name in sorted(image_files(os.fsencode(folder), (), left_out))]
    if not paths:
        only = f", only {told(left_out)}" if left_out else ""
        raise FileNotFoundError(f"{folder} holds no images{only}")
    forward, device = select_forward(model.eval()), next(model.parameters()).device
    numbers, is_area = (np.asarray(mean, np.float32), np.asarray(std, np.float32)), model.resampling == "area"
    read, probabilities, best, unreadable = [], [], [], []
    with tqdm(total=len(paths), unit=" images", desc=str(folder), delay=1) as bar, torch.inference_mode():
        for batch in _decode_batches(paths, model.res, fit, num_workers):
            good = [(path, image) for path, image in batch if isinstance(image, np.ndarray)]
            unreadable += [str(error) for _, error in batch if isinstance(error, ValueError)]
            bar.update(len(batch))
            if good:
                read += [path for path, _ in good]
                ready = torch.empty(len(good), 3 * model.res * model.res)
                images = [image for _, image in good]
                _resize_centre(images, crop_resize_normalize, *numbers, ready.numpy(), model.res, is_area)
                logits = forward(ready.to(device))
                probabilities.append(logits.softmax(1).cpu().numpy())
                best.append(logits.sort(dim=1, descending=True, stable=True).indices[:, :5].cpu().numpy())
    if not read:
        raise ValueError(f"none of the {len(paths)} images in {folder} can be read. The first error: {unreadable[0]}")
    return Classified(read, np.concatenate(probabilities), np.concatenate(best), unreadable, left_out)


def thumbnails(
    paths: Sequence[Path],
    res: int,
    fit: Fit,
    resampling: str = "bilinear",
) -> np.ndarray:  # (N, res, res, 3) uint8
    """Return the files' images as a model sees them, before normalisation."""
    out = np.empty((len(paths), res, res, 3), np.uint8)
    images = [decode(read_file(os.fspath(path)), str(path), res, fit) for path in paths]
    _resize_centre(images, crop_resize, out, res, resampling == "area")
    return out


def _decode_batches(
    paths: list[Path], res: int, fit: Fit, num_workers: int
) -> Iterator[list[tuple[Path, np.ndarray | ValueError]]]:
    """Yield BATCH files at a time, each with its image (H, W, 3) uint8 or the error of reading it."""

    def decode_file(path: Path) -> np.ndarray | ValueError:
        try:
            return np.ascontiguousarray(decode(read_file(os.fspath(path)), str(path), res, fit))
        except ValueError as error:
            return error

    with ThreadPoolExecutor(num_workers or num_cores()) as pool:  # Pillow decodes without the GIL
        for batch in (paths[first : first + BATCH] for first in range(0, len(paths), BATCH)):
            yield list(zip(batch, pool.map(decode_file, batch), strict=True))


def _resize_centre(images: list[np.ndarray], kernel, *rest) -> None:
    """Resize the centre square of each image with `kernel`, as Split does to evaluate images of any shape."""
    heights, widths = (np.array([image.shape[axis] for image in images], np.int64) for axis in (0, 1))
    boxes, flips = draw_params(Augment("center"), heights, widths, 0, 0, np.arange(len(images)))
    images = [np.ascontiguousarray(image) for image in images]
    addresses = np.array([image.ctypes.data for image in images], np.uint64)
    kernel(addresses, heights, widths, boxes, flips, *rest)
