"""The host path: an FFCV decoder that reads, crops, resizes, flips and normalises each image in one pass."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .augment_params import Augment, check_res_and_seed, draw_into, draw_params, normalisation, to_numba
from .ffcv_import import IMAGE_MODES, AllocationQuery, Compiler, SimpleRGBImageDecoder, State
from .numba_cache import numba as nb
from .resample import check_resampling, crop_resize, crop_resize_normalize

IMAGES_PER_TASK = 16


def in_one_part(work: Callable[[int, int], object], rows: int, min_rows: int) -> None:
    work(0, rows)


class AugmentedRGBImageDecoder(SimpleRGBImageDecoder):
    """Decoder of raw images of any sizes, each cropped, resized to (res, res) and flipped, from the file to the batch.

    With `mean` and `std` (three numbers each, 0-255 scale) it gives float32 (B, 3 * res * res), normalised, in C, H, W
    order; without them uint8 (B, res, res, 3). The augmentation of a sample depends only on (seed, epoch, sample
    index). resample.py describes the two values of `resampling`. `fastmlp.Loader` sets each epoch. An
    `ffcv.loader.Loader` does not: set `decoder.epoch` before each epoch there, to get the same pixels.

    `res` may be changed between epochs. Raises ValueError if the beton holds JPEG images.
    """

    def __init__(
        self,
        augment: Augment,
        res: int,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        resampling: str = "bilinear",  # or "area"
    ):
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError("give both mean and std, or neither of them for uint8 images")
        check_res_and_seed(res, seed)
        self.augment, self.res, self.seed, self.normalises = augment, res, seed, mean is not None
        self.area = check_resampling(resampling) == "area"
        self.mean, self.std = normalisation((0, 0, 0) if mean is None else mean, (1, 1, 1) if std is None else std)
        self._epoch = np.zeros(1, np.int64)  # read through its address: compiled code would freeze its value

    @property
    def epoch(self) -> int:
        """The epoch of the next batches in an ffcv.loader.Loader."""
        return int(self._epoch[0])

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch[0] = epoch

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        if (self.metadata["mode"] != IMAGE_MODES["raw"]).any():
            raise ValueError(
                f"{type(self).__name__} reads raw images, the beton has JPEG images: write it with raw images"
            )
        shape = (3 * self.res * self.res,) if self.normalises else (self.res, self.res, 3)
        dtype = np.dtype(np.float32 if self.normalises else np.uint8)
        return replace(previous_state, jit_mode=True, shape=shape, dtype=dtype), AllocationQuery(shape, dtype)

    def load(
        self,
        source: np.ndarray,  # (N,) uint8, the beton
        records: np.ndarray,  # (B,) of its metadata: data_ptr, height, width
        samples: np.ndarray,  # (B,) sample indices
        epoch: int,
        out: np.ndarray,  # (B, ...) contiguous, written
        in_parts: Callable[[Callable[[int, int], object], int, int], object] = in_one_part,
    ) -> np.ndarray:
        """Return `out`, filled with a batch; fastmlp.Loader calls this. The resolution is that of the buffer.

        in_parts(work, rows, min_rows) calls work(first, last) for parts of the rows, maybe in several threads.
        """
        res = _side(out.shape[1]) if self.normalises else out.shape[1]
        heights, widths = records["height"].astype(np.int64), records["width"].astype(np.int64)
        boxes, flips = draw_params(self.augment, heights, widths, self.seed, epoch, samples)
        images = records["data_ptr"] + np.uint64(source.ctypes.data)

        def work(first: int, last: int) -> None:
            inputs = (column[first:last] for column in (images, heights, widths, boxes, flips))
            if self.normalises:
                crop_resize_normalize(*inputs, self.mean, self.std, out[first:last], res, self.area)
            else:
                crop_resize(*inputs, out[first:last], res, self.area)

        in_parts(work, len(out), IMAGES_PER_TASK)
        return out

    def generate_code(self) -> Callable[..., Any]:
        """Return the function that an ffcv.loader.Loader compiles, or calls as it is in FFCV's debugging mode."""
        return self._compilable_decode() if Compiler.is_enabled else self._plain_decode()

    def _plain_decode(self) -> Callable[..., Any]:
        """Return a function that calls `load` for one image at a time."""
        memory_read = self.memory_read

        def decode(batch_indices, destination, metadata, storage_state):
            out = destination[: len(batch_indices)]
            records = metadata[batch_indices]
            for b in range(len(out)):
                image = memory_read(records["data_ptr"][b], storage_state)
                record = records[b : b + 1].copy()
                record["data_ptr"] = 0  # from the start of `image`
                self.load(image, record, batch_indices[b : b + 1], self.epoch, out[b : b + 1])
            return out

        return decode

    def _compilable_decode(self) -> Callable[..., Any]:
        """Return `load` in a form that Numba compiles: FFCV's memory_read gives the address of each image."""
        memory_read, epoch_at = self.memory_read, self._epoch.ctypes.data
        my_range = Compiler.get_iterator()
        settings, seed, mean, std, normalises = to_numba(self.augment), self.seed, self.mean, self.std, self.normalises
        area = np.array([self.area])  # a plain bool would be a type of its own, for which all is compiled again

        def decode(batch_indices, destination, metadata, storage_state):
            count = len(batch_indices)
            images, samples = np.empty(count, np.uint64), np.empty(count, np.int64)
            heights, widths = np.empty(count, np.int64), np.empty(count, np.int64)
            boxes, flips = np.empty((count, 4), np.int32), np.empty(count, np.bool_)
            for b in range(count):
                field = metadata[batch_indices[b]]
                heights[b], widths[b], samples[b] = field["height"], field["width"], batch_indices[b]
                image = memory_read(field["data_ptr"], storage_state)
                if image.size != 3 * heights[b] * widths[b] or image.size == 0:
                    raise ValueError("the beton is corrupt: an image does not have the size that its record says")
                images[b] = image.ctypes.data
            draw_into(settings, heights, widths, np.uint64(seed), np.uint64(_read(epoch_at)), samples, boxes, flips)
            out = destination[:count]
            res = _side(out.shape[1]) if normalises else out.shape[1]
            for task in my_range((count + IMAGES_PER_TASK - 1) // IMAGES_PER_TASK):
                a, z = task * IMAGES_PER_TASK, min(count, (task + 1) * IMAGES_PER_TASK)
                if normalises:
                    crop_resize_normalize(
                        images[a:z],
                        heights[a:z],
                        widths[a:z],
                        boxes[a:z],
                        flips[a:z],
                        mean,
                        std,
                        out[a:z],
                        res,
                        area[0],
                    )
                else:
                    crop_resize(images[a:z], heights[a:z], widths[a:z], boxes[a:z], flips[a:z], out[a:z], res, area[0])
            return out

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


@nb.njit(nogil=True, cache=True, fastmath=False)  # for the reason in resample.py
def _side(numbers):
    """Return the side of a square image of three channels that has so many numbers."""
    return int(np.rint(np.sqrt(numbers / 3)))


@intrinsic
def _read(typingctx, address):
    """Return the int64 at an address."""

    def generate(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], ir.IntType(64).as_pointer()))

    return types.int64(types.uintp), generate
