"""The device path: the host path's pixels from a uint8 batch, by one compiled torch expression, on any device."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..device import compiled_or_none
from .augment_params import Augment, check_res_and_seed, draw_params, normalisation
from .ffcv_import import AllocationQuery, Operation, State
from .resample import check_resampling, fill_area_taps

BOX_BYTES = 16  # four int32
PARAM_BYTES = BOX_BYTES + 1  # and the flip
AreaTaps = tuple[Tensor, Tensor]  # as area_taps returns them


class AugmentOnDevice(Operation):
    """Crop, resize, flip and normalise (B, H, W, 3) uint8 on a device to (B, 3 * res * res) `dtype`, C, H, W order.

    To be used after `SimpleRGBImageDecoder(), ToTensor(), ToDevice(device)`. Boxes and flips are those of
    cpu_decoder.py; they are drawn on the host and sent, PARAM_BYTES a sample, from a buffer that the loader keeps
    page-locked. `epoch` as there.
    """

    def __init__(
        self,
        augment: Augment,
        res: int,
        *,
        mean: Sequence[float],  # 0-255 scale
        std: Sequence[float],
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        resampling: str = "bilinear",  # or "area"
    ):
        super().__init__()
        check_res_and_seed(res, seed)
        self.area = check_resampling(resampling) == "area"
        self.augment, self.res, self.seed, self.dtype, self.epoch = augment, res, seed, dtype, 0
        self._mean_and_std = torch.stack([torch.from_numpy(numbers) for numbers in normalisation(mean, std)])
        self._sent: dict[torch.device, Tensor] = {}  # mean and std on each device that images came from
        self._area_taps: dict[tuple[torch.device, int], AreaTaps] = {}  # by the images' longer side, too

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery | None]:
        shape = (3 * self.res * self.res,)
        params = AllocationQuery((PARAM_BYTES,), np.dtype(np.uint8))
        return replace(previous_state, jit_mode=False, shape=shape, dtype=self.dtype), params

    def generate_code(self) -> Callable[..., Any]:
        def augment(images: Tensor, params: np.ndarray, samples: np.ndarray, epoch: int | None = None) -> Tensor:
            device, (height, width) = images.device, images.shape[1:3]
            epoch = self.epoch if epoch is None else epoch
            count = len(images)
            boxes, flips = draw_params(self.augment, height, width, self.seed, epoch, samples)
            params = params.reshape(-1)  # all boxes, then all flips
            params[: BOX_BYTES * count] = boxes.reshape(-1).view(np.uint8)
            params[BOX_BYTES * count :] = flips
            sent = torch.from_numpy(params).to(device, non_blocking=True)
            sent_boxes = sent[: BOX_BYTES * count].view(torch.int32).view(count, 4)
            sent_flips = sent[BOX_BYTES * count :].view(torch.bool)
            if device not in self._sent:
                self._sent[device] = self._mean_and_std.to(device)
            mean, std = self._sent[device]
            taps = self._taps_on(device, max(height, width)) if self.area else None
            arguments = images, sent_boxes, sent_flips, mean, std, self.res, self.dtype, taps
            if taps is not None and max(height, width) > self.res:  # its nine pixels or more compile for minutes
                return crop_resize_normalize(*arguments)
            return _compiled(*arguments)

        augment.with_indices = augment.with_epoch = True  # type: ignore[attr-defined]
        return augment

    def _taps_on(self, device: torch.device, side: int) -> AreaTaps:
        if (device, side) not in self._area_taps:
            low, weights = area_taps(side, self.res)
            self._area_taps[device, side] = low.to(device), weights.to(device)
        return self._area_taps[device, side]


def area_taps(side: int, res: int) -> AreaTaps:
    """Return resample.fill_area_taps's arrays for boxes of up to `side` pixels."""
    taps = -(-side // res) + 1
    low = np.empty((2, side + 1, res), np.int32)
    weights = np.empty((2, side + 1, taps, res), np.float32)
    fill_area_taps(low, weights)
    return torch.from_numpy(low), torch.from_numpy(weights)


def crop_resize_normalize(
    images: Tensor,  # (B, H, W, 3) uint8
    boxes: Tensor,  # (B, 4) int32: top, left, height, width; black outside of the image
    flips: Tensor,  # (B,) bool
    mean: Tensor,  # (3,) float32, 0-255 scale
    std: Tensor,  # (3,) float32, 0-255 scale
    res: int,
    dtype: torch.dtype = torch.float32,
    area: AreaTaps | None = None,  # area_taps of the images' longer side, to resize by "area"
) -> Tensor:
    """Return (B, 3 * res * res) in C, H, W order, the pixels that resample.py's docstring defines."""
    batch, height, width = images.shape[:3]
    place = torch.arange(res, device=images.device)
    mirrored = flips[:, None] & (torch.arange(2, device=images.device) == 1)[:, None, None]  # columns, not rows
    places = torch.where(mirrored, res - 1 - place, place)
    boxes = boxes.T[:, :, None]
    offset, box = boxes[:2], boxes[2:]  # (2, B, 1): of rows, of columns
    low, weights = _bilinear_taps(places, box, res) if area is None else _look_up(area, places, box, res)
    side = torch.where(torch.arange(2, device=images.device) == 0, height, width)[:, None, None]
    taps = []
    for number, weight in enumerate(weights):
        tap = ((low + number).minimum(box - 1) if number else low) + offset
        taps.append((tap.clamp(min=0).minimum(side - 1), torch.where((tap >= 0) & (tap < side), weight, 0.0)))
    sample = torch.arange(batch, device=images.device)[:, None, None, None]
    channel = torch.arange(3, device=images.device)[None, :, None, None]
    value = torch.zeros((), device=images.device)
    for y, y_share in taps:
        row = torch.zeros((), device=images.device)
        for x, x_share in taps:
            pixels = images[sample, y[0, :, None, :, None], x[1, :, None, None, :], channel]  # (B, 3, res, res)
            row = row + x_share[1, :, None, None, :] * pixels
        value = value + y_share[0, :, None, :, None] * row
    return ((value - mean[:, None, None]) / std[:, None, None]).to(dtype).view(batch, -1)


def _bilinear_taps(
    places: Tensor,  # (2, B, res) output places: of rows, of columns
    box: Tensor,  # (2, B, 1) sides
    res: int,
) -> tuple[Tensor, list[Tensor]]:
    """Return the lower pixel of each place and the weights of it and the next, (2, B, res) each."""
    at = ((places + 0.5) * (box / res) - 0.5).clamp(min=0).minimum((box - 1).float())
    low = at.int()
    weight = at - low
    return low, [1 - weight, weight]


def _look_up(area: AreaTaps, places: Tensor, box: Tensor, res: int) -> tuple[Tensor, list[Tensor]]:
    """Return the first pixel of each place and the weights of it and those after it, (2, B, res) each."""
    low, weights = area
    averages = (box >= res).all(0).int()  # (B, 1)
    return low[averages, box, places], [weights[averages, box, tap, places] for tap in range(weights.shape[2])]


# For one kernel: otherwise the compiler stores each tap of the whole batch before it blends them. Indices are clamped:
# on an A5000, asserting them again takes 80 registers a thread instead of 42 (benchmarks/dry_run.py).
FUSE: dict[str, Any] = {
    "realize_opcount_threshold": 10_000,
    "realize_reads_threshold": 10_000,
    "realize_acc_reads_threshold": 10_000,
    "assert_indirect_indexing": False,
}
_works = True


@functools.cache
def _whole() -> Callable[..., Tensor]:
    return torch.compile(crop_resize_normalize, fullgraph=True, options=FUSE)  # its import takes a second


def _compiled(*arguments: Any) -> Tensor:
    """Return crop_resize_normalize(*arguments) from one kernel, or eagerly after torch.compile has failed once."""
    global _works
    if _works:
        augmented = compiled_or_none(lambda: _whole()(*arguments), "images are augmented without it")
        if augmented is not None:
            return augmented
        _works = False
    return crop_resize_normalize(*arguments)
