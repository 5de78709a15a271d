"""Picture of the first layer's filters, as in appendix C of "Scaling MLPs".

    python -m fastmlp.evaluation.filters runs/a/final.pt runs/b/final.pt --out filters.png

One sheet for each model, side by side. Each filter is shown by its maximum over the colours, scaled from its minimum
(black) to its maximum (white).
"""

import argparse
from pathlib import Path

import numpy as np

from .. import cli
from ..plots import captioned_sheet


def filter_sheet(
    weights: np.ndarray,  # (m, 3 * res * res) of linear_in, C, H, W order
    res: int,
    rows: int = 5,
    select: str = "norm",  # the filters of the largest norm, or "first"
) -> np.ndarray:  # (rows * (res + 1) - 1, the same, 3) uint8
    """Return a sheet of rows * rows filters, white if the model has fewer."""
    if select == "norm":
        weights = weights[np.argsort(-np.linalg.norm(weights, axis=1), kind="stable")]
    over_colours = weights[: rows * rows].reshape(-1, 3, res, res).max(1)
    low, high = over_colours.min((1, 2), keepdims=True), over_colours.max((1, 2), keepdims=True)
    grey = np.rint(255 * (over_colours - low) / np.where(high > low, high - low, 1)).astype(np.uint8)
    sheet = np.full((rows * (res + 1) - 1, rows * (res + 1) - 1), 255, np.uint8)
    for n, picture in enumerate(grey):
        y, x = n // rows * (res + 1), n % rows * (res + 1)
        sheet[y : y + res, x : x + res] = picture
    return np.repeat(sheet[:, :, None], 3, axis=2)


def main() -> None:
    parser = argparse.ArgumentParser("python -m fastmlp.evaluation.filters", description=cli.summary(__doc__))
    parser.add_argument("weights", type=cli.path, nargs="+", help="trained models of one resolution: .pt, .safetensors")
    parser.add_argument("--out", type=cli.path, default=Path("filters.png"), help="the picture (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=5, help="rows and columns of each sheet (default: %(default)s)")
    parser.add_argument(
        "--select",
        choices=("norm", "first"),
        default="norm",
        help="the filters of the largest norm, or the first ones (default: %(default)s)",
    )
    options = parser.parse_args()
    if options.rows < 1:
        raise ValueError(f"--rows {options.rows}: expected at least 1")
    from ..models.weights import load_model

    models = [load_model(path)[0] for path in options.weights]
    sizes = sorted({model.res for model in models})
    if len(sizes) > 1:
        raise ValueError(f"models of {', '.join(map(str, sizes))} px: give models of one resolution")
    sheets = [
        filter_sheet(model.linear_in.weight.detach().numpy(), model.res, options.rows, options.select)
        for model in models
    ]
    names = [path.parent.name or path.name for path in map(Path.absolute, options.weights)]
    captions = [f"{name}\n{model.arch}" for name, model in zip(names, models, strict=True)]
    print(captioned_sheet(np.stack(sheets), captions, options.out, columns=len(sheets), min_side=320))


if __name__ == "__main__":
    cli.run(main)
