"""Report of a study: a row for each run, a table with intervals, a verdict on each claim, pictures."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic import write_atomic
from . import figures, images_to_loss, optimiser_figures, search_figures
from .gradient_spectra import read_spectra
from .plan import Plan, PlannedRun, searchers
from .scaling_laws import mean_interval
from .scaling_report import by_arm, report_scaling
from .study_file import Study
from .verdicts import Verdict, adjust, paired, write_claims


def rows(study: Study, runs: Sequence[PlannedRun]) -> list[dict[str, Any]]:
    """Return a row for each finished run: metadata, top-1 and error (0-1), loss, seconds of training, folder.

    A run that diverged has top-1 0 and neither loss nor seconds.
    """
    found = []
    for run in runs:
        if (top1 := run.top1(study.probe)) is not None:
            end = run.end() or {}
            measured = {
                "top1": top1,
                "error": 1 - top1,
                "eval_loss": end.get("eval_loss"),
                "train_s": end.get("train_s"),
            }
            found.append({**run.metadata(), **measured, "run": run.folder.name})
    return found


def verdicts(study: Study, plan: Plan, found: Sequence[dict[str, Any]]) -> list[Verdict]:
    """Return the tests of the study's claims, not yet adjusted for their number."""
    scores = {arm: {row["seed"]: 100 * row["top1"] for row in of_arm} for arm, of_arm in by_arm(found).items()}
    unbracketed, unfinished = _unbracketed(study, plan), _unfinished(study, plan)
    tested = []
    for claim in study.compare:
        first, second = claim.split(" > ")
        if waiting := [arm for arm in (first, second) if arm in unfinished]:
            tested.append(Verdict(claim, reason=f"the search of {waiting[0]} is not finished"))
        elif ended := [f"{arm} ({unbracketed[arm]})" for arm in (first, second) if arm in unbracketed]:
            tested.append(Verdict(claim, reason=f"the search ended at its limit: {' and '.join(ended)}"))
        else:
            tested.append(paired(claim, scores.get(first, {}), scores.get(second, {})))
    for ratio in images_to_loss.ratios(study, found) if study.fewer_images else ():
        arms = {row["arm"] for row in found if row["of_arm"] in ratio.arms and row["where"] == ratio.where}
        ended = sorted(arms & unbracketed.keys())
        reason = f"the search ended at its limit: {' and '.join(ended)}"
        tested.append(Verdict(ratio.claim, reason=reason) if ended else ratio.verdict())
    return tested


def _unbracketed(study: Study, plan: Plan) -> dict[str, str]:
    """Return the settings of each arm whose best value is the last that its search may try."""
    ends = {search.name: " and ".join(search.unbracketed) for search in plan.searches if search.unbracketed}
    return {name: ends[search] for name, search in _searches(study).items() if search in ends}


def _unfinished(study: Study, plan: Plan) -> set[str]:
    """Return the arms whose search has not chosen."""
    waiting = {search.name for search in plan.searches if search.best is None}
    return {name for name, search in _searches(study).items() if search in waiting}


def _searches(study: Study) -> dict[str, str]:
    """Return the name of the search that each searched arm takes its values from."""
    return {name: one.name for name, one in searchers(study, study.combinations()).items()}


def table(study: Study, plan: Plan, found: Sequence[dict[str, Any]], claims: Sequence[Verdict]) -> str:
    """Return the Markdown table of the arms, mean top-1 with its interval, choice of the search and cost; verdicts."""
    unbracketed = _unbracketed(study, plan)
    lines = [
        f"| {study.title} | top-1 [%] | seeds | chosen | parameters | FLOP of a run |",
        "|---|---|---|---|---|---|",
    ]
    searched = {name for trial in plan.trials for name in trial.searched}
    for arm, of_arm in by_arm(found).items():
        mean, half = mean_interval([100 * row["top1"] for row in of_arm])
        spread = "" if math.isnan(half) else f" ± {half:.2f}"
        chosen = ", ".join(f"{name} {of_arm[0][name]}" for name in sorted(searched & set(of_arm[0])))
        limit = f" (limit of the search: {unbracketed[arm]})" if arm in unbracketed else ""
        lines.append(
            f"| {arm} | {mean:.2f}{spread} | {len(of_arm)} | {chosen}{limit} | "
            f"{of_arm[0]['parameters']:,} | {of_arm[0]['flop']:.2g} |"
        )
    lines += ["", f"The paper: {study.paper}"] * bool(study.paper)
    lines += ["", *(f"- {one}" for one in claims)] * bool(claims)
    if spans := _spans(plan):
        lines += ["", *(f"- {span}" for span in spans)]
    if waiting := sorted(_unfinished(study, plan)):
        lines += ["", f"- not finished: the searches of {'; '.join(waiting)}; the same command goes on"]
    if search_figures.panels(plan.searches):
        lines += ["", "![top-1 of held-out images over the searched values](search.png)"]
    return "\n".join(lines) + "\n"


def _spans(plan: Plan) -> list[str]:
    """Return how far apart the chosen values of each arm's searches are, for arms with several searches."""
    chosen: dict[tuple[str, str], list[float]] = {}
    for search in plan.searches:
        for name, value in (search.best or {}).items():
            if isinstance(value, int | float) and value > 0:
                chosen.setdefault((search.combination.arm, name), []).append(value)
    return [
        f"{arm}{': ' * bool(arm)}the best {name} of {len(values)} searches spans a factor of "
        f"{max(values) / min(values):.2g} ({', '.join(f'{value:g}' for value in values)})"
        for (arm, name), values in chosen.items()
        if len(values) > 1
    ]


def write_report(study: Study, plan: Plan, out: Path, claims: Sequence[Verdict] = ()) -> str:
    """Write results.jsonl, claims.json, table.md and the pictures of the finished runs to `out`, and return the table.

    claims: the study's verdicts, adjusted for those of other studies too; by default for the study alone.
    """
    found = rows(study, plan.runs)
    if not found:
        return f"{study.title}: no run that counts is finished yet\n"
    write_atomic(out / "results.jsonl", "".join(json.dumps(row) + "\n" for row in found))
    own = verdicts(study, plan, found)
    write_claims(out, own)
    text = table(study, plan, found, claims or adjust(own))
    if study.fit:
        text += "\n" + report_scaling(found, out)
    write_atomic(out / "table.md", text)
    if not study.fit:
        _draw_comparison(found, out)
    _draw_searches(study, plan, found, out)
    return f"{text}\n{len(found)} of {len(plan.runs)} runs\n"


def _draw_comparison(found: Sequence[dict[str, Any]], out: Path) -> None:
    """Draw top-1 by arm and, if the arms differ in their batch size, error by batch size."""
    figures.ablation_bars(found, out / "top1")
    arms, batches = by_arm(found), {(row["arch"], row["batch_size"]) for row in found}
    if len(batches) == len(arms) and len({batch for _, batch in batches}) > 1:
        figures.error_against_batch_size(found, out / "batch-size", by="arch")


def _draw_searches(study: Study, plan: Plan, found: Sequence[dict[str, Any]], out: Path) -> None:
    if search_figures.panels(plan.searches):
        search_figures.search_curves(plan.searches, out / "search")
    if study.fewer_images:
        optimiser_figures.loss_by_images(images_to_loss.curves(found), out / "images-to-loss")
    if study.gradients and (spectra := _spectra(found, out)):
        optimiser_figures.gradient_spectra(spectra, out / "gradients")


def _spectra(found: Sequence[dict[str, Any]], out: Path) -> dict[str, dict[str, list[float]]]:
    """Return the gradient's singular values of each arm's longest run with the first seed, by arm and matrix."""
    longest: dict[tuple[str, str], dict[str, Any]] = {}
    for row in found:
        before = longest.setdefault((row["of_arm"], row["where"]), row)
        if (row["images_seen"], -row["seed"]) > (before["images_seen"], -before["seed"]):
            longest[row["of_arm"], row["where"]] = row
    spectra = {"\n".join(filter(None, key)): read_spectra(out / row["run"]) for key, row in longest.items()}
    return {name: one for name, one in spectra.items() if one}


def summary(studies: Mapping[str, Sequence[Verdict]]) -> str:
    """Return the Markdown table of several studies' verdicts, adjusted for all of them; by the names of their files."""
    lines = ["| study | claim | verdict | difference (95 % interval) | p by Holm |", "|---|---|---|---|---|"]
    for name, claims in studies.items():
        for one in claims:
            adjusted = "" if one.reason else f"{one.adjusted:.2g}"
            lines.append(f"| `{name}` | {one.claim} | **{one.word}** | {one.difference} | {adjusted} |")
    return "\n".join(lines) + "\n"
