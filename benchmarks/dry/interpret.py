"""Runs in .venv-dry with TRITON_INTERPRET=1: the augmentation's kernel on the CPU, against the eager expression.

    python -m dry.interpret FILE     # interpreted.json of dry.worker; prints one JSON line

The kernel is the card's, with its sizes. Only its first programs run: as many as the first images need. Triton's
interpreter computes without fused multiply-adds, and cuts bfloat16 off where the card rounds.
"""

import importlib.util
import json
import re
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from fastmlp.transforms.augment_params import Augment, draw_params
from fastmlp.transforms.torch_path import crop_resize_normalize

IMAGES = 8
BLOCK = 1024
CROPS = {"random_resized": Augment(), "pad_and_crop": Augment(crop="pad_and_crop", padding=5)}
MEAN, STD = torch.tensor([125.3, 122.9, 113.8]), torch.tensor([62.9, 62.0, 66.7])


def load_kernel(name: str, source: str, folder: Path) -> Any:
    """Return the kernel without Inductor's tuner, which would look for a card."""
    before, after = source.split("triton_helpers.set_driver_to_gpu()")
    path = folder / f"{name}.py"
    path.write_text(before + after[after.index("@triton.jit") :])
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def compare(source: str, kernel: Any, augment: Augment, res: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return the largest difference between the kernel and the eager expression, and the share of unequal values."""
    values = IMAGES * 3 * res * res
    programs = -(-values // BLOCK)
    count = -(-programs * BLOCK // (3 * res * res))  # images that the programs touch
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, res, res, 3), dtype=torch.uint8, generator=generator)
    boxes, flips = (torch.from_numpy(x) for x in draw_params(augment, res, res, 3, 1, np.arange(count)))
    out = torch.full((count, 3 * res * res), float("nan"), dtype=dtype)
    statistics = iter((MEAN, STD))
    by_type = {"u8": images, "i1": flips, "i32": boxes}
    arguments = []
    for name, kind in re.findall(r"'((?:in|out|in_out)_ptr\d+)': '\*(\w+)'", source):
        arguments.append(out if "out" in name else by_type[kind] if kind in by_type else next(statistics))
    kernel[(programs,)](*arguments, count * 3 * res * res, XBLOCK=BLOCK)
    expected = crop_resize_normalize(images, boxes, flips, MEAN, STD, res, dtype).view(-1)[:values].float()
    difference = (out.view(-1)[:values].float() - expected).abs()
    return {
        "values": values,
        "max_difference": difference.max().item(),
        "unequal": (difference != 0).float().mean().item(),
        "largest_value": expected.abs().max().item(),
    }


def main() -> None:
    torch.set_num_threads(1)
    told = json.loads(Path(sys.argv[1]).read_text())
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype, kernels in told["sources"].items():
            if len(kernels) != 1:
                continue  # not one kernel: an expectation of its own
            ((name, source),) = kernels.items()
            kernel = load_kernel(name, source, Path(folder))
            results[dtype] = {
                crop: compare(source, kernel, augment, told["case"]["res"], getattr(torch, dtype))
                for crop, augment in CROPS.items()
            }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
