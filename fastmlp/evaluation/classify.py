"""Classification of your own images, arrays or files: no beton, no labels."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from .. import device as devices
from ..messages import called_from_python, progress_bar
from ..models.mlp import MLP
from ..models.weights import class_names, complete_metadata, load_model
from ..sources.decode import decode, picture_to_rgb, read_file
from ..sources.fit import FITS, Fit, fit_picture, fitted
from ..sources.folder import image_files
from ..sources.listing import told
from ..transforms.augment_params import Augment, draw_params
from ..transforms.resample import crop_resize, crop_resize_normalize
from ..worker_pool import num_cores
from .evaluate import select_forward

BATCH = 256


@dataclass(frozen=True)
class Predictions:
    """Class probabilities of images; `inputs` has the path of each one, or its position if it came as pixels.

    `probabilities` is (N, num_classes) float32, 0-1. `best`, (N, at most 5) int64, has the classes of the five highest
    logits from the highest on, of equal ones the lower index first (as evaluate.predict): probabilities are rounded, so
    that they may tie where logits do not. It is -1, and the label "", where a logit is NaN.
    """

    inputs: list[Path | int] = field(repr=False)
    probabilities: np.ndarray  # (N, num_classes) float32
    best: np.ndarray  # (N, at most 5) int64
    classes: list[str]  # their numbers if the model came without names
    unreadable: list[str] = field(default_factory=list)  # of a folder: the error of each file that is left out
    left_out: Counter[str] = field(default_factory=Counter)  # what else it holds, by the reason why it is no image

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def labels(self) -> list[str]:
        """The name of the most probable class of each image, "" where a logit is NaN."""
        return [self.classes[label] if label >= 0 else "" for label in self.best[:, 0]]

    def top(self, number: int = 5) -> list[list[tuple[str, float]]]:
        """Return the `number` (at most 5) most probable classes of each image, with their probabilities (0-1)."""
        return [
            [(self.classes[c], float(probabilities[c])) for c in row[:number] if c >= 0]
            for row, probabilities in zip(self.best, self.probabilities, strict=True)
        ]


def predict(
    model: MLP | str | Path,
    images: Any,
    *,
    fit: str = "auto",
    num_workers: int = 0,
    verbose: bool = False,
) -> Predictions:
    """Return the class probabilities of images, each as if it had been written to a beton of the model's resolution.

    model: a file of weights, a released name, or a model, whose `metadata` has its mean and std. images: a folder
    (every image below it, in the order of names; unreadable ones are left out and told), a file, a Pillow image, an
    array or a tensor of uint8 (H, W, 3), (H, W, 4) with transparency, (H, W) grey, (N, H, W, 3) or (N, H, W), or a list
    or an iterator of single images. (3, H, W) is refused: it may be one image with its channels first. fit: "square"
    takes the centre square, "longest" the centre square after scaling the longer side, "auto" as the model was trained.
    num_workers: threads that decode, 0 for one per core.

    Raises FileNotFoundError for a path that is missing or a folder without images, ValueError for pixels that are not
    uint8, a shape that is no image, an image in a list that cannot be read, or none at all.
    """
    with called_from_python(verbose):
        if not isinstance(model, MLP):
            with torch.random.fork_rng(devices=[]):  # new weights are drawn before they are replaced
                model = load_model(model)[0].to(devices.select("auto"))
        if isinstance(images, str | os.PathLike) and os.path.isdir(os.path.expanduser(images)):
            return classify_folder(model, Path(images), fit, num_workers)
        items = ((one if isinstance(one, Path) else number, one) for number, one in enumerate(_single(images)))
        total = len(images) if hasattr(images, "__len__") else None
        found = _classify(model, items, total, fit, num_workers, "images")
        if found.unreadable:
            count = len(found) + len(found.unreadable)
            raise ValueError(f"{len(found.unreadable)} of {count} images: {found.unreadable[0]}")
        if not len(found):
            raise ValueError("no images: expected a folder, files, Pillow images or arrays of uint8")
        return found


def classify_folder(model: MLP, folder: str | Path, fit: str = "auto", num_workers: int = 0) -> Predictions:
    """Classify every image below `folder`, in the order of names (predict)."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        advice = ", such as the one around it; fastmlp.predict takes a file" if folder.is_file() else ""
        raise FileNotFoundError(f"{folder} is not a folder: --cfg.images must name a folder of images{advice}")
    left_out: Counter[str] = Counter()
    paths = [folder / os.fsdecode(name) for name in sorted(image_files(os.fsencode(folder), (), left_out))]
    if not paths:
        only = f", only {told(left_out)}" if left_out else ""
        raise FileNotFoundError(f"{folder} holds no images{only}")
    found = _classify(model, zip(paths, paths, strict=True), len(paths), fit, num_workers, str(folder))
    if not len(found):
        first = found.unreadable[0]
        raise ValueError(f"none of the {len(paths)} images in {folder} can be read. The first error: {first}")
    found.left_out.update(left_out)
    return found


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


def choose_fit(asked: str, metadata: dict[str, Any]) -> Fit:
    """Return how images are fitted: as asked, or for "auto" as the model was trained."""
    if asked not in ("auto", *FITS):
        raise ValueError(f"fit={asked!r}: expected auto, {' or '.join(FITS)}")
    return cast(Fit, metadata["fit"] if asked == "auto" else asked)


def _single(images: Any) -> Iterator[Path | Image.Image | np.ndarray]:
    """Yield single images: paths, Pillow images, arrays (H, W) or (H, W, channels) of uint8."""
    if isinstance(images, str | os.PathLike):
        path = Path(images).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: expected a file or a folder of images")
        if path.is_dir():
            raise ValueError(f"{path} is a folder: give it alone, not in a list")
        yield path
    elif isinstance(images, Image.Image):
        yield images
    elif hasattr(images, "__array__"):  # numpy's arrays, torch's tensors
        yield from _split_array(np.asarray(images))
    elif isinstance(images, Iterable) and not isinstance(images, bytes | dict):
        for one in images:
            if isinstance(one, list | tuple):
                raise ValueError("expected single images in the list, not lists")
            for image in _single(one):  # copied: an iterator may fill the same array again
                yield image.copy() if isinstance(image, np.ndarray) and isinstance(images, Iterator) else image
    else:
        raise ValueError(f"{type(images).__name__} is no image: expected a path, a Pillow image or an array of uint8")


def _split_array(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the images of an array; without channels at its end, two dimensions are one grey image, three several."""
    if array.dtype != np.uint8:
        raise ValueError(f"pixels of {array.dtype}: expected uint8, 0 to 255, not normalised")
    has_channels = array.ndim > 2 and array.shape[-1] in (1, 3, 4)
    if array.ndim == 3 and len(array) == 3 and not has_channels:
        raise ValueError(
            f"an array of {array.shape} may be one image with its channels first or three grey ones: put the channels "
            "last, or give a list of grey images"
        )
    dimensions = array.ndim - has_channels
    if dimensions not in (2, 3) or 0 in array.shape:
        raise ValueError(
            f"an array {array.shape} is no image: expected (H, W, 3) or (H, W), of several (N, H, W, 3) or (N, H, W)"
        )
    if has_channels and array.shape[-1] == 1:
        array = array[..., 0]
    yield from [array] if dimensions == 2 else array


def _classify(
    model: MLP, items: Iterable[tuple[Path | int, Any]], total: int | None, fit: str, num_workers: int, name: str
) -> Predictions:
    """Classify images, each with its path or position; those that cannot be read are left out."""
    metadata = complete_metadata(model, "the model")
    numbers = np.asarray(metadata["mean"], np.float32), np.asarray(metadata["std"], np.float32)
    is_area, chosen = model.resampling == "area", choose_fit(fit, metadata)
    was_training, device = model.training, next(model.parameters()).device
    forward = select_forward(model.eval())
    read, unreadable = [], []
    probabilities = [np.empty((0, model.num_classes), np.float32)]
    best = [np.empty((0, min(5, model.num_classes)), np.int64)]
    with (
        ExitStack() as stack,
        progress_bar(total=total, unit=" images", desc=name, delay=1) as bar,
        torch.inference_mode(),
    ):
        stack.callback(model.train, was_training)
        for batch in _decode_batches(items, model.res, chosen, num_workers):
            good = [(origin, image) for origin, image in batch if isinstance(image, np.ndarray)]
            unreadable += [str(error) for _, error in batch if isinstance(error, ValueError)]
            bar.update(len(batch))
            if good:
                read += [origin for origin, _ in good]
                ready = torch.empty(len(good), 3 * model.res * model.res)
                images = [image for _, image in good]
                _resize_centre(images, crop_resize_normalize, *numbers, ready.numpy(), model.res, is_area)
                logits = forward(ready.to(device))
                probabilities.append(logits.softmax(1).cpu().numpy())
                ranked = logits.sort(dim=1, descending=True, stable=True).indices[:, :5]
                best.append(ranked.masked_fill(logits.isnan().any(1, keepdim=True), -1).cpu().numpy())
    classes = class_names(metadata["classes"], model.num_classes)
    return Predictions(read, np.concatenate(probabilities), np.concatenate(best), classes, unreadable)


def _decode_batches(
    items: Iterable[tuple[Path | int, Any]], res: int, fit: Fit, num_workers: int
) -> Iterator[list[tuple[Path | int, np.ndarray | ValueError]]]:
    """Yield BATCH images at a time, (H, W, 3) uint8, or the errors of reading them."""

    def pixels(item: tuple[Path | int, Any]) -> tuple[Path | int, np.ndarray | ValueError]:
        origin, image = item
        try:
            if isinstance(image, Path):
                image = decode(read_file(os.fspath(image)), str(image), res, fit)
            else:
                picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
                picture = picture_to_rgb(picture, f"image {origin}")
                image = np.asarray(fit_picture(picture, fitted(picture.height, picture.width, res, fit), fit))
            return origin, np.ascontiguousarray(image)
        except ValueError as error:
            return origin, error

    items = iter(items)
    with ThreadPoolExecutor(num_workers or num_cores()) as pool:  # Pillow decodes without the GIL
        while batch := list(islice(items, BATCH)):
            yield list(pool.map(pixels, batch))


def _resize_centre(images: list[np.ndarray], kernel, *rest) -> None:
    """Resize the centre square of each image with `kernel`, as Split does to evaluate images of any shape."""
    heights, widths = (np.array([image.shape[axis] for image in images], np.int64) for axis in (0, 1))
    boxes, flips = draw_params(Augment("center"), heights, widths, 0, 0, np.arange(len(images)))
    images = [np.ascontiguousarray(image) for image in images]
    addresses = np.array([image.ctypes.data for image in images], np.uint64)
    kernel(addresses, heights, widths, boxes, flips, *rest)
