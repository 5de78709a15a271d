"""FFCV pipelines for betons of images and labels: unchanged, or augmented and normalised."""

from collections.abc import Sequence

import torch

from .augment_params import Augment
from .cpu_decoder import AugmentedRGBImageDecoder
from .ffcv_import import IntDecoder, SimpleRGBImageDecoder, Squeeze, ToDevice, ToTensor
from .torch_path import AugmentOnDevice

AUGMENT_ON = ("auto", "host", "device")


def raw_pipelines(device: torch.device | str = "cpu") -> dict[str, list]:
    """Return FFCV pipelines that change nothing: images (B, H, W, 3) uint8, labels (B,) int64, on `device`."""
    send = [] if torch.device(device).type == "cpu" else [ToDevice(torch.device(device))]
    return {
        "image": [SimpleRGBImageDecoder(), ToTensor(), *send],
        "label": [IntDecoder(), ToTensor(), *send, Squeeze(1)],
    }


def image_pipelines(
    augment: Augment,
    res: int,
    *,
    mean: Sequence[float],  # 0-255 scale
    std: Sequence[float],
    seed: int = 0,
    device: torch.device | str = "cpu",
    augment_on: str = "auto",
    dtype: torch.dtype = torch.float32,
    resampling: str = "bilinear",
) -> dict[str, list]:
    """Return FFCV pipelines for training, evaluation and test-time augmentation.

    They give images (B, 3 * res * res) float32 (or `dtype`) of res px in C, H, W order, augmented and normalised by
    mean and std (three numbers each, 0-255), and labels (B,) int64, on `device`. seed: of the augmentation, with the
    epoch and the sample's index. augment_on: "host" crops on the CPU, in one pass from the file to the batch (float32;
    for CUDA it sends the crops as uint8, rounded, and normalises them there); "device" sends whole images and crops
    them there; "auto" is "host" for the CPU and "device" for any other device. `dtype` is that of images made on the
    device. resampling: "bilinear", or "area", which the released models were trained with (resample.py).

    Raises ValueError for an unknown augment_on or resampling, and for a res, seed, mean or std that cannot be.
    """
    device = torch.device(device)
    if augment_on not in AUGMENT_ON:
        raise ValueError(f"unknown augment_on {augment_on!r}: expected one of {', '.join(AUGMENT_ON)}")
    if augment_on == "auto":
        augment_on = "host" if device.type == "cpu" else "device"
    raw = raw_pipelines(device)
    if augment_on == "device":
        finish = AugmentOnDevice(augment, res, mean=mean, std=std, seed=seed, dtype=dtype, resampling=resampling)
        return {**raw, "image": [*raw["image"], finish]}
    _, *to_device = raw["image"]
    if device.type == "cpu":
        decode = AugmentedRGBImageDecoder(augment, res, mean=mean, std=std, seed=seed, resampling=resampling)
        return {**raw, "image": [decode, *to_device]}
    normalise = AugmentOnDevice(Augment(), res, mean=mean, std=std, dtype=dtype)
    crop = AugmentedRGBImageDecoder(augment, res, seed=seed, resampling=resampling)
    return {**raw, "image": [crop, *to_device, normalise]}
