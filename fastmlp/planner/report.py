"""What a plan says: the table of its best runs, the command that starts the first, and what is not known."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cost.budget import GIB
from ..cost.hardware import Machine
from ..duration import Duration
from .candidates import (
    DEFAULT_ANCHOR,
    MAX_EPOCHS,
    N_EXPONENT,
    P_EXPONENT,
    PUBLISHED,
    Candidate,
    Limit,
    PlannedData,
    optimal_parameters,
)
from .data_law import DataLaw
from .study_folder import StudyRuns

EVALUATIONS = 20  # of a run that the command starts
QUANTITIES = {
    "parameters": "parameters",
    "images_seen": "images seen",
    "samples": "unique images",
    "repetitions": "epochs",
    "flop": "compute",
}


def table(best: Sequence[Candidate]) -> str:
    """Return the Markdown table of candidates. Errors have columns only if they are predicted."""
    are_rated = all(one.error is not None for one in best)
    names = ["architecture", "parameters", "images (share)", "epochs", "batch", "FLOP", "hours", "memory [GiB]"]
    names += ["error [%]", "95 % interval", "decades beyond the study"] if are_rated else []
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for one in best:
        cells = [
            str(one.arch),
            f"{one.parameters:,}",
            f"{one.images:,} ({one.share:.3g})",
            f"{one.epochs:g}",
            f"{one.batch_size:,}",
            f"{one.flop:.2e}",
            f"{one.hours:.3g}",
            f"{one.memory_bytes / GIB:.2f}",
        ]
        if one.error is not None and one.interval is not None:
            low, high = one.interval
            cells += [f"{100 * one.error:.1f}", f"{100 * low:.1f} to {100 * high:.1f}", _decades(one.beyond)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _decades(beyond: Mapping[str, float]) -> str:
    """Return how far a candidate is beyond the study's runs, in decades, of each quantity that is."""
    return ", ".join(f"{QUANTITIES[name]} {value:.1f}" for name, value in beyond.items() if value >= 0.05) or "within"


def explain_rates(machine: Machine, slowdown: float = 1.0) -> str:
    """Return what the hours count on."""
    if machine.measured:
        text = "hours and memory are predicted, from products and copies measured on this machine"
    else:
        text = (
            f"hours and memory are predicted, not measured: products at {machine.efficiency:g} of the dense peak of "
            f"{machine.flop_per_s / 1e12:.4g} TFLOP/s ({machine.precision}), of the data sheet"
        )
    if slowdown != 1:
        text += f"; hours are scaled by {slowdown:.2f}, the median of the study's runs, which were on this machine"
    return text + "; evaluation and the start of a run are not counted, nor the loader, unless --loader gives its rate"


def explain_split(best: Candidate, anchor: str = DEFAULT_ANCHOR) -> str:
    """Return what the ranking without a study rests on, and how much of it is the choice of the anchor."""
    sizes = [optimal_parameters(best.flop, name) for name in PUBLISHED]
    return (
        f"no --study: ranked by the paper's split alone, P* ~ C^{P_EXPONENT} and N* ~ C^{N_EXPONENT} (images seen), "
        f"which predicts no score. It is laid through {anchor} on ImageNet-21k for 800 epochs, one of the paper's "
        f"published runs. That anchor is a choice (--anchor): at the first row's compute P* is "
        f"{optimal_parameters(best.flop, anchor):,.0f}, through the others {min(sizes):,.0f} to {max(sizes):,.0f}. All "
        "images are used: the law says nothing about data that is seen again."
    )


def explain_law(law: DataLaw, best: Candidate, study: StudyRuns) -> list[str]:
    """Return the law with its intervals, and how far the first run is beyond what it was fitted to."""
    beyond = _decades(best.beyond)
    notes = [
        law.describe(),
        f"the first run is within the sizes, data and compute of the study's {law.cells} cells"
        if beyond == "within"
        else f"EXTRAPOLATED: decades by which the first run is beyond the study's {law.cells} cells: {beyond}. The "
        "interval assumes that the law holds there, which --backtest checks within the study only",
        "errors are those of the study's settings at its batch size"
        + ("" if "lr" in study.differing else "; its learning rate is the same for every width"),
        *explain_differing(study),
    ]
    if study.diverged:
        notes.append(f"{study.diverged} runs of the study diverged and are left out")
    return notes


def explain_differing(study: StudyRuns) -> list[str]:
    """Return what the study's runs differ in besides what the law knows."""
    varied = "; ".join(f"{name} {', '.join(values)}" for name, values in study.differing.items())
    return [f"the study's runs also differ in {varied}: the law does not know that"] if varied else []


def explain_end(best: Candidate, limit: Limit) -> str:
    """Return a line if the run ends long before the limit, "" otherwise."""
    used = best.hours / limit.hours if limit.hours is not None else best.flop / (limit.flop or 1)
    if used > 0.5:
        return ""
    why = f" (no run here is longer than {MAX_EPOCHS:g} epochs)" if best.epochs == MAX_EPOCHS else ""
    return f"the first run takes {used:.2g} of what it may{why}: more images, or several seeds, are the better use"


def command(
    best: Candidate,
    data: PlannedData,
    data_dir: Path,
    config_file: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Return the command line that starts a candidate.

    config_file is that of a study's run, `settings` what it holds: the law is that of those settings. Its cool-down
    keeps its share of the run.
    """
    words = ["python", "recipes/pretrain.py"] + (["--config-file", str(config_file)] if config_file else [])
    given: dict[str, Any] = {
        "dataset": data.name,
        "data_dir": data_dir,
        "res": data.res,
        "arch": best.arch,
        "train_fraction": f"{best.share:.10g}",
        "epochs": f"{best.epochs:.10g}",
        "batch_size": best.batch_size,
        "eval_every": f"{max(best.epochs / EVALUATIONS, 1):.4g}",
    }
    if config_file:
        given |= {"seed": 0, "run_dir": ""}
    if settings and (share := _cooldown_share(settings)):
        given["cooldown"] = f"{share * best.epochs:.4g}"
    return shlex.join(words + [f"--cfg.{name}={value}" for name, value in given.items()])


def _cooldown_share(settings: Mapping[str, Any]) -> float:
    """Return the share of a run that is its cool-down, 0 if it has none or the two have different units."""
    try:
        cooldown, epochs = (Duration.parse(settings[name]) for name in ("cooldown", "epochs"))
    except (KeyError, ValueError):
        return 0.0
    return cooldown.amount / epochs.amount if cooldown.unit == epochs.unit and epochs.amount else 0.0
