"""Is this environment sound? Run by scripts/setup.sh with the environment's own Python.

    scripts/self_check.py            import everything; decode and resize an image through ffcv (5 s)
    scripts/self_check.py --quick    look for what must be there, import nothing heavy (0.2 s)
    scripts/self_check.py --native   only load ffcv's compiled library

Exit code 0, or 1 with one line that says what is wrong.
"""

import ctypes
import importlib.util
import io
import re
import sys
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


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
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"torch {torch.__version__} ({gpu}), numba {numba.__version__}, ffcv decodes and resizes")


if __name__ == "__main__":
    mode = sys.argv[1] if len(sys.argv) > 1 else "--full"
    checks = {"--full": check_full, "--quick": check_quick, "--native": check_native}
    try:
        checks[mode]()
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
