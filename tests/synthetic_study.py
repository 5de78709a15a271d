"""Studies drawn from a known law, as cells and as folders that recipes/scaling.py could have written."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import yaml

from fastmlp.arch import parse_arch
from fastmlp.cost import flops
from fastmlp.planner.data_law import Cell, cells_of, effective_images
from fastmlp.study.scaling_laws import flop

LAW = {"a": 3.0, "alpha": 0.25, "b": 10.0, "beta": 0.3, "r": 5.0, "e_inf": 0.05}
WIDTHS, SHARES, EPOCHS = (16, 32, 64, 128, 256), (0.125, 0.25, 0.5, 1.0), (2, 6, 18)
IMAGES, BATCH_SIZE, FLOP_PER_S = 60_000, 500, 1e11


def true_error(parameters: float, images_seen: float, samples: float, law: dict[str, float] = LAW) -> float:
    data = float(effective_images(images_seen, samples, law["r"]))
    return law["e_inf"] + law["a"] * parameters ** -law["alpha"] + law["b"] * data ** -law["beta"]


def study_rows(
    error: Callable[[float, float, float], float] = true_error,
    noise: float = 0.01,
    seeds: Sequence[int] = (0, 1),
    key: int = 0,
    widths: Sequence[int] = WIDTHS,
    epochs: Sequence[int] = EPOCHS,
) -> list[dict]:
    """Return rows as report.rows does, on 60,000 images of 32 px in 10 classes; errors have relative noise."""
    rng, found = np.random.default_rng(key), []
    for width in widths:
        arch = f"B_2-Wi_{width}-E_2"
        parameters = flops.parameters(parse_arch(arch), 32, 10)
        for share in SHARES:
            for length in epochs:
                samples = int(share * IMAGES)
                seen = length * samples
                compute = float(flop(parse_arch(arch), 32, 10, seen))
                for seed in seeds:
                    measured = error(parameters, seen, samples) * np.exp(noise * rng.standard_normal())
                    found.append(
                        {
                            "arm": f"{arch} {share} {length}",
                            "seed": seed,
                            "arch": arch,
                            "batch_size": BATCH_SIZE,
                            "parameters": parameters,
                            "samples": samples,
                            "epochs": float(length),
                            "images_seen": seen,
                            "flop": compute,
                            "top1": 1 - measured,
                            "error": measured,
                            "train_s": compute / FLOP_PER_S * np.exp(0.05 * rng.standard_normal()),
                            "run": f"{arch}-{share}-{length}-{seed}",
                        }
                    )
    return found


def study_cells(**options) -> list[Cell]:
    return cells_of(study_rows(**options))


def collapsing_loss(width: int, share: np.ndarray) -> np.ndarray:
    """Return training losses (n,) at shares of a run: 0.5 plus a size's amplitude times one curve for all."""
    return 0.5 + width**-0.3 * (share + 0.02) ** -0.4


def crossing_loss(width: int, share: np.ndarray) -> np.ndarray:
    return 0.5 + width**-0.3 * (share + 0.02) ** -(0.1 + 0.2 * np.log2(width / 16))


def write_study(folder: Path, rows: Sequence[dict], loss=collapsing_loss, noise: float = 0.01, **settings) -> Path:
    """Write results.jsonl and a folder with settings and log for each row."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for n, row in enumerate(rows):
        run = folder / row["run"]
        run.mkdir(exist_ok=True)
        config = {"dataset": "fashion_mnist", "res": 32, "arch": row["arch"], "batch_size": row["batch_size"]}
        config |= {"optimizer": "lion", "lr": 1e-3, "seed": row["seed"], "epochs": f"{row['epochs']:g} epochs"}
        config |= {"cooldown": f"{0.2 * row['epochs']:g} epochs", "run_dir": str(run), **settings}
        (run / "config.yaml").write_text(yaml.safe_dump({"cfg": config}))
        if loss is not None:
            steps = np.arange(1, 61) * 10
            rng = np.random.default_rng([n, 1])
            factor = np.exp(noise * rng.standard_normal(60) + noise * rng.standard_normal())
            losses = loss(parse_arch(row["arch"]).width, steps / 600) * factor
            lines = [{"event": "step", "step": int(s), "loss": float(v)} for s, v in zip(steps, losses, strict=True)]
            (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
