"""Is this environment sound? Run by scripts/setup.sh with the environment's own Python.

    scripts/self_check.py            import everything; decode and resize an image through ffcv (5 s)
    scripts/self_check.py --quick    look for what must be there, import nothing heavy (0.2 s)
    scripts/self_check.py --native   only load ffcv's compiled library
    scripts/self_check.py --train    train a tiny model: numba keeps on disk what it compiles (15 s, then 5 s)
    scripts/self_check.py --gpu      print what helps if there is an NVIDIA GPU that torch cannot use, else nothing

Exit code 0, or 1 with one line that says what is wrong.
"""

import contextlib
import ctypes
import importlib.util
import io
import os
import re
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Build(NamedTuple):
    """A CUDA build of torch: the newest of its index at https://download.pytorch.org/whl/."""

    index: str
    torch: str
    min_driver: tuple[int, ...]
    min_capability: tuple[int, int]
    max_capability: tuple[int, int]


# The best first. Drivers: https://docs.nvidia.com/deploy/cuda-compatibility, by which a build of CUDA 12.6 runs with
# all drivers of CUDA 12. GPUs: the CUDA support matrix of PyTorch's RELEASE.md. cu121 and cu124 need no older driver
# than cu126, and their newest torch (2.5.1, 2.6.0) asks for another sympy than constraints.txt.
BUILDS = (
    Build("cu130", "2.13.0", (580,), (7, 5), (99, 0)),
    Build("cu126", "2.13.0", (525, 60, 13), (5, 0), (9, 0)),
    Build("cu128", "2.11.0", (570,), (7, 5), (12, 9)),  # for Blackwell
    Build("cu118", "2.7.1", (450, 80, 2), (5, 0), (9, 0)),
)


def nvidia_smi(fields: str) -> list[str]:
    """Return the fields of the first GPU, [] if there is none or nvidia-smi hangs. Its exit code tells nothing."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = [line.split(", ", fields.count(",")) for line in answer.splitlines() if re.match(r"\d+\.\d", line)]
    return lines[0] if lines else []


def numbers(version: str) -> tuple[int, ...]:
    """Return "535.104.05" as (535, 104, 5)."""
    return tuple(map(int, re.findall(r"\d+", version)))


def gpu_advice() -> str:
    """Return three lines on a GPU that torch cannot use, with the command that helps; "" if there is none."""
    found = nvidia_smi("driver_version,name")
    if not found:
        return ""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # that a job hides the GPU is no fault of the environment
    import torch

    said, capability = "it finds no CUDA device", ()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if available := torch.cuda.is_available():
                capability = torch.cuda.get_device_capability(0)
        except RuntimeError as error:
            available, said = False, str(error)
    if available:
        if is_built_for(capability, torch.cuda.get_arch_list()):
            return ""
        reason = "is not built for its compute capability {}.{}".format(*capability)
    elif not torch.version.cuda:
        reason = "is built without CUDA"
    else:
        reason = "says: " + " ".join((str(caught[0].message) if caught else said).split())[:200]
    if not capability:
        told = "".join(nvidia_smi("compute_cap"))  # drivers before 2022 do not tell
        capability = numbers(told) if re.fullmatch(r"\d+\.\d", told) else ()
    driver, name = found
    return f"""WARNING: torch cannot use the GPU ({name}, driver {driver}), so models would train on the CPU.
  torch {torch.__version__} {reason}
  {gpu_remedy(numbers(driver), capability, torch.version.cuda or "", available)}"""


def is_built_for(capability: tuple[int, ...], architectures: list[str]) -> bool:
    """Return whether code for architectures such as sm_80 and compute_90 (PTX) runs on a GPU of this capability."""
    for kind, major, minor in re.findall(r"(sm|compute)_(\d+)(\d)", " ".join(architectures)):
        built = (int(major), int(minor))
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False


def gpu_remedy(driver: tuple[int, ...], capability: tuple[int, ...], cuda: str, available: bool) -> str:
    """Return what helps where torch was built with cuda ("" for without), which may see the GPU or not.

    capability: of the GPU, () if unknown.
    """
    for build in BUILDS:
        fits = not capability or build.min_capability <= capability <= build.max_capability
        if fits and driver >= build.min_driver:
            break
    else:
        return "No build of torch fits this GPU and driver. Update NVIDIA's driver, then run scripts/setup.sh again."
    if cuda and not available and int(cuda.split(".")[0]) <= int(build.index[2:4]):
        return "Its build fits the driver. See what nvidia-smi says; a container needs docker run --gpus all."
    request = f"torch=={build.torch}+{build.index} --extra-index-url https://download.pytorch.org/whl/{build.index}"
    return f'This installs one that can: FASTMLP_TORCH="{request}" scripts/setup.sh'


def folder_of(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"{module} is missing")
    return Path(next(iter(spec.submodule_search_locations)))


def check_native() -> None:
    """Finds a library that was built against an OpenCV or libturbojpeg which is gone."""
    libraries = list(folder_of("ffcv").glob("_libffcv*.so"))
    if not libraries:
        raise RuntimeError("ffcv has no compiled library")
    ctypes.CDLL(str(libraries[0]))


def check_quick() -> None:
    for module in ("torch", "numba", "numpy", "cv2"):
        folder_of(module)
    if folder_of("fastmlp").resolve() != ROOT / "fastmlp":
        raise RuntimeError(f"fastmlp is installed from {folder_of('fastmlp')}, not from {ROOT}")
    installed = {plain(dist.name) for dist in distributions()}
    wanted = (Path(sys.prefix) / "requirements.txt").read_text().splitlines()
    missing = [line for line in wanted if plain(re.split(r"[^\w.-]", line)[0]) not in installed]
    if missing:
        raise RuntimeError(f"not installed: {', '.join(missing)}")
    check_native()


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def check_full() -> None:
    import ffcv.fields
    import ffcv.libffcv
    import numba
    import numpy as np
    import torch
    from PIL import Image

    import fastmlp  # noqa: F401

    y, x = np.mgrid[0:48, 0:64]
    picture = np.stack([4 * x, 5 * y, 2 * (x + y)], axis=-1).astype(np.uint8)  # (48, 64, 3), smooth
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "jpeg", quality=95, subsampling=0)
    want = np.asarray(Image.open(file).convert("RGB"))
    got = np.zeros_like(want)
    ffcv.libffcv.imdecode(np.frombuffer(file.getvalue(), np.uint8), got, 48, 64, 48, 64)
    error = np.abs(got.astype(int) - want).max()
    if error > 4:  # decoders may round differently
        raise RuntimeError(f"ffcv decodes a JPEG to other pixels than Pillow (off by {error} of 255)")

    small = np.zeros((24, 32, 3), np.uint8)
    ffcv.libffcv.resize_crop(picture, 0, 48, 0, 64, small)
    error = np.abs(picture.reshape(24, 2, 32, 2, 3).mean((1, 3)) - small).max()
    if error > 1:
        raise RuntimeError(f"ffcv resizes to other pixels than the mean of 2 x 2 (off by {error} of 255)")

    if numba.njit(lambda a: a.sum())(np.ones(3)) != 3 or torch.ones(3).sum() != 3:
        raise RuntimeError("numba or torch cannot add")
    if gpu_advice():
        gpu = "cannot use the GPU: .venv/bin/python scripts/self_check.py --gpu says what helps"
    else:
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"torch {torch.__version__} ({gpu}), numba {numba.__version__}, ffcv decodes and resizes")


def check_training() -> None:
    for name in (
        "WORLD_SIZE",
        "RANK",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
    ):  # of a cluster's job: it would wait for others
        os.environ.pop(name, None)
    import fastmlp
    from fastmlp.beton.writer_cli import WriteOptions, write_splits
    from fastmlp.sources.synthetic import Synthetic

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        options = WriteOptions(res=32, out=Path(folder), num_workers=1, limit=None, seed=0)
        write_splits("synthetic", lambda split: Synthetic(256, 5, 32, split), ("train", "test"), options)
        data = {"data_dir": folder, "res": 32, "crop": "random_resized", "flip": True}
        run = {"arch": "B_2-Wi_16", "batch_size": 128, "epochs": 1, "run_dir": f"{folder}/run", "optimizer": "lion"}
        fastmlp.train("synthetic", device="cpu", **data, **run)


def check_gpu() -> None:
    if advice := gpu_advice():
        print(advice)


if __name__ == "__main__":
    mode = sys.argv[1] if len(sys.argv) > 1 else "--full"
    checks = {
        "--full": check_full,
        "--quick": check_quick,
        "--native": check_native,
        "--train": check_training,
        "--gpu": check_gpu,
    }
    try:
        checks[mode]()
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
