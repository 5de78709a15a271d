"""Pictures: learning curves and contact sheets."""

from pathlib import Path

import numpy as np
from PIL import Image

from .runlog import read_log


def learning_curve(run_dir: Path) -> Path:
    """Draws training loss and test top-1 by epoch from a run's log into curve.png.

    Raises ModuleNotFoundError with the command that mends it where matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("learning curves need matplotlib: pip install 'fastmlp[plots]'") from error

    epochs = read_log(run_dir, "epoch")
    tested = [line for line in epochs if "test_top1" in line]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    losses = figure.subplots()
    losses.plot([line["epoch"] for line in epochs], [line["train_loss"] for line in epochs], "o-", color="tab:blue",
                markersize=3)  # fmt: skip
    losses.set_xlabel("epoch")
    losses.set_ylabel("training loss (with label smoothing, MixUp)", color="tab:blue")
    top1 = losses.twinx()
    top1.plot([line["epoch"] for line in tested], [100 * line["test_top1"] for line in tested], "s--",
              color="tab:red", markersize=3)  # fmt: skip
    top1.set_ylabel("test top-1 [%]", color="tab:red")
    last = tested[-1]
    losses.set_title(f"{run_dir.name}: {last['test_top1']:.2%} after {last['epoch']} epochs", fontsize=10)
    losses.xaxis.set_major_locator(MaxNLocator(integer=True))
    path = run_dir / "curve.png"
    figure.savefig(path, dpi=120)
    return path


def contact_sheet(
    images: np.ndarray,  # (rows, columns, res, res, 3) uint8
    path: Path,
    scale: int = 2,  # screen pixels per image pixel
) -> Path:
    """A grid of images with thin gaps between them."""
    rows, columns, res = images.shape[:3]
    gap = 1
    sheet = np.full((rows * (res + gap) + gap, columns * (res + gap) + gap, 3), 255, np.uint8)
    for r in range(rows):
        for c in range(columns):
            y, x = gap + r * (res + gap), gap + c * (res + gap)
            sheet[y : y + res, x : x + res] = images[r, c]
    picture = Image.fromarray(sheet)
    picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST).save(path)
    return path
