"""Folders of runs without training: settings, log and predictions as a run writes them."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastmlp.config import PretrainConfig, to_stored
from fastmlp.evaluation.evaluate import DetailedScores, Scores
from fastmlp.evaluation.predictions import write_predictions
from fastmlp.training.run_log import settings_text

BASE = PretrainConfig(dataset="synthetic", arch="B_1-Wi_16", batch_size=100, res=8)
CLASSES = ["cat", "dog", "owl"]


def detailed(right: np.ndarray, seed: int = 0, classes: int = len(CLASSES)) -> DetailedScores:
    """Predictions that are right where told, of labels that depend on their number alone."""
    labels = np.arange(len(right)) % classes
    rng = np.random.default_rng(seed)
    predicted = np.where(right, labels, (labels + rng.integers(1, classes, len(right))) % classes)
    probability = rng.uniform(0.3, 1, len(right)).astype(np.float32)
    scores = Scores(float(right.mean()), 1.0, 0.5, len(right))
    return DetailedScores(scores, labels, predicted, probability, classes)


def write_run(
    folder: Path,
    right: np.ndarray | None,  # of each test image; None for a run that is not finished
    classes: list[str] = CLASSES,
    beton: str = "data/x_test_8.beton",
    fingerprint: int = 7,
    **settings: Any,
) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(settings_text(dataclasses.replace(BASE, **settings)))
    lines: list[dict[str, Any]] = []
    for epoch in range(1, 4):
        values = {"step": 6 * epoch, "lr": 1e-3 / epoch, "images_per_s": 1000.0 * epoch}
        phases = {"data_s_per_step": 0.01, "forward_backward_s_per_step": 0.04, "optimizer_s_per_step": 0.02}
        lines.append({"event": "step", **values, "loss": 2 / epoch, **phases, "mfu": None, "data_wait_share": 0.1})
        lines.append({"event": "epoch", **values, "epoch": epoch, "train_loss": 2 / epoch, "eval_top1": 0.2 * epoch})
    if right is not None:
        found = detailed(right, seed=len(folder.name), classes=len(classes))
        write_predictions(folder, found, classes, SimpleNamespace(path=beton, fingerprint=fingerprint))
        scores = {"eval_top1": found.scores.top1, "eval_top5": 1.0, "best_top1": found.scores.top1}
        lines.append({"event": "end", **scores, "images_per_s": 2000.0, "train_s": 75.0})
    (folder / "log.jsonl").write_text("".join(json.dumps(to_stored(line)) + "\n" for line in lines))
    return folder
