"""The planner from its options to its text: what recipes/plan.py prints."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .. import device as devices
from ..cli import from_mapping
from ..config import PretrainConfig
from ..cost.budget import Host
from ..cost.hardware import Machine, card, this_machine
from ..datasets import get_dataset
from ..training.pretrain import presets
from ..worker_pool import num_cores
from . import backtest, report
from .candidates import (
    Candidate,
    Limit,
    PlannedData,
    Recipe,
    best_of_each_arch,
    candidates,
    paper_archs,
    rank_by_law,
    rank_by_split,
    study_archs,
)
from .collapse import collapse_report
from .data_law import DataLaw, cells_of, fit_data_law
from .planned_data import planned_data
from .speeds import predicted_s, ran_here, slowdown
from .study_folder import StudyRuns, read_study_runs

TIMES_AS_OFTEN = 2.0  # as the study's runs at most, a planned run may see an image
OPTIONS = ("dataset", "card", "precision", "study", "images", "res", "loader", "anchor", "rows", "data_dir")


def plan_run(
    *,
    limit: Limit,
    dataset: str,
    card: str | None,
    precision: str,
    study: Path | None,
    images: int,
    res: int,
    loader: float | None,
    anchor: str,
    rows: int,
    data_dir: Path,
) -> str:
    """Return the plan as text. Raises ValueError if nothing fits, or if the study cannot carry a law for the data."""
    found_study = read_study_runs(study) if study else None
    if found_study:
        check_same_data(found_study, dataset, res)
        res = found_study.res
    data, source = planned_data(dataset, data_dir, res, images)
    machine = planned_machine(card, precision)
    recipe = _recipe(found_study, data, data_dir, machine, is_here=card is None)
    archs = study_archs(row["arch"] for row in found_study.rows) if found_study else paper_archs()
    found = candidates(data, machine, limit, archs, recipe, Host(loader))
    if not found:
        raise ValueError(
            f"nothing of {len(archs)} architectures fits into {machine.memory_bytes / 1e9:.3g} GB and the limit on "
            f"{machine.name}: allow more hours or FLOP, or take a larger card"
        )
    lines = [f"{data.name}: {data.images:,} training images ({source}), {data.num_classes:,} classes, {data.res} px"]
    lines += [f"{machine.name}: {len(found):,} runs fit; the best of each of {rows} architectures:", ""]
    if found_study:
        first, text = _with_study(found, found_study, data, data_dir, rows)
    else:
        ranked = rank_by_split(found, limit, anchor)
        if not ranked:
            raise ValueError("no run on all images fits into the limit: allow more hours or FLOP, or give a --study")
        first = ranked[0]
        text = [report.table(ranked[:rows]), "", report.command(first, data, data_dir), ""]
        text.append(f"- {report.explain_split(first, anchor)}")
    lines += text
    if note := report.explain_end(first, limit):
        lines.append(f"- {note}")
    lines.append(f"- {report.explain_rates(machine, recipe.slowdown)}")
    return "\n".join(lines)


def check_same_data(study: StudyRuns, dataset: str, res: int = 0) -> None:
    """Raise ValueError if the study's runs are on other data than what is planned for."""
    if study.dataset != dataset or (res and study.res != res):
        asked = f"{dataset} at {res} px" if res else dataset
        raise ValueError(
            f"{study.folder} is a study on {study.dataset} at {study.res} px, not on {asked}: a law holds for the data "
            "that it was fitted to. Run a study on it (recipes/scaling.py), or leave out --study"
        )


def planned_machine(name: str | None, precision: str) -> Machine:
    """Return the named card, or the device here."""
    if name is None and precision != "auto":
        raise ValueError(f"--precision={precision} goes with --card; the device here trains in its own")
    return card(name, precision) if name else this_machine(devices.select("auto"))


def _recipe(study: StudyRuns | None, data: PlannedData, data_dir: Path, machine: Machine, is_here: bool) -> Recipe:
    """Return the settings that the runs are planned with: the study's, or those that pretrain.py has for the data."""
    if study is None:
        asked = from_mapping(PretrainConfig, {"dataset": data.name, "data_dir": str(data_dir)})
        chosen = from_mapping(PretrainConfig, presets(asked))
        return Recipe(chosen.optimizer, ema=chosen.ema_decay > 0)
    settings = study.settings
    optimizer = str(settings.get("optimizer", "lion"))
    batch_size = int(settings.get("batch_size", 0))
    factor = None
    if is_here:
        name = devices.describe(devices.select("auto"))
        timed = [row for row in study.rows if ran_here(study.run_folder(row), name, num_cores())]
        factor = slowdown(timed, machine, data.num_classes, data.res, optimizer)
    return Recipe(optimizer, batch_size, bool(settings.get("ema_decay", 0)), factor or 1.0)


def fit_study(study: StudyRuns) -> DataLaw:
    """Return the law of a study's runs. Raises ValueError that names the study if they cannot carry one."""
    try:
        return fit_data_law(cells_of(study.rows))
    except ValueError as error:
        raise ValueError(f"{study.folder} cannot carry a law: {error}") from error


def _with_study(
    found: list[Candidate], study: StudyRuns, data: PlannedData, data_dir: Path, rows: int
) -> tuple[Candidate, list[str]]:
    """Return the best candidate and the lines of a plan that a study's law ranks."""
    law = fit_study(study)
    longest = max(1.0, TIMES_AS_OFTEN * max(row["images_seen"] / row["samples"] for row in study.rows))
    ranked = rank_by_law([one for one in found if one.images_seen / one.images <= longest], law)
    run = max(study.rows, key=lambda row: row["flop"])
    start = report.command(ranked[0], data, data_dir, study.run_folder(run) / "config.yaml", study.settings)
    lines = [report.table(best_of_each_arch(ranked, rows)), "", f"- {collapse_report(study, study.folder / 'plan')}"]
    if len(ranked) < len(found):
        lines.append(
            f"- {len(found) - len(ranked):,} of the runs that fit see an image more than {longest:.3g} times, "
            f"{TIMES_AS_OFTEN:g} times as often as any run of the study: how they over-fit it cannot tell, so they "
            "are left out. A study with longer runs on less data would tell"
        )
    lines += ["", start, "", *(f"- {note}" for note in report.explain_law(law, ranked[0], study))]
    return ranked[0], lines


def backtest_study(folder: Path, dataset: str, data_dir: Path) -> str:
    """Return the backtest of a study as text; what its runs cannot tell is said with the reason."""
    study = read_study_runs(folder)
    check_same_data(study, dataset)
    spec = get_dataset(dataset, data_dir, study.res)
    optimizer = str(study.settings.get("optimizer", "lion"))

    @cache
    def machine() -> Machine:
        return this_machine(devices.select("auto"))

    def cost_s(row: Mapping[str, Any], fitted: Sequence[Mapping[str, Any]]) -> float | None:
        factor = slowdown(fitted, machine(), spec.num_classes, study.res, optimizer)
        own = predicted_s(row, machine(), spec.num_classes, study.res, optimizer)
        return None if factor is None else factor * own

    held_out, why_none = backtest.hold_out(study.rows, cost_s)
    choices, why_no_choice = backtest.choose(study.rows)
    cannot = "cannot tell: {}; more sizes, shares or lengths in the study would"
    lines = [f"{folder}: {len(study.rows)} runs on {study.dataset}, predicted from smaller ones"]
    lines += [f"- {note}" for note in report.explain_differing(study)]
    lines += ["", backtest.describe_held_out(held_out) if held_out else f"- {cannot.format(why_none)}"]
    lines.append(backtest.describe_choices(choices) if choices else f"- {cannot.format(why_no_choice)}")
    return "\n".join(lines)
