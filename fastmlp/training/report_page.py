"""The page of a run: report.html in its folder, one file that a browser shows without a network.

    python -m fastmlp.training.report_page runs/a runs/b

Each run writes it at its end, from the files of its folder. The command makes it again, also for unfinished runs and
those of earlier versions: what is missing is left out.
"""

import argparse
import shlex
from pathlib import Path
from typing import Any

from .. import cli
from ..atomic import in_one_line, write_atomic
from ..evaluation.evaluate import wilson_interval
from ..evaluation.html_page import Series, cards, details, document, escape, html_table, line_chart, section
from ..messages import logger
from ..models.mlp import MLP
from ..models.weights import load_model
from .report_pictures import augmented_sheet, confusion, filters, mistakes
from .run_record import RunRecord, duration_text, number, read_run

NAME = "report.html"
PHASES = {
    "data_s_per_step": "waiting for data",
    "forward_backward_s_per_step": "forward and backward",
    "optimizer_s_per_step": "optimiser",
}


def write_page(folder: Path) -> Path:
    """Write report.html from the files of a run's folder; return its path.

    Raises FileNotFoundError if the folder is no run, ValueError naming a damaged file, OSError if the disk is full.
    """
    write_atomic(folder / NAME, page(read_run(folder)))
    return folder / NAME


def finish_with_page(folder: Path) -> list[str]:
    """Write report.html at the end of a run and return its name; if that fails, say so and return []."""
    try:
        return [write_page(folder).name]
    except Exception as error:  # whatever it is: the run is finished, and a picture of it must not make it fail
        again = shlex.join(["python", "-m", "fastmlp.training.report_page", str(folder)])
        logger.warning(f"{NAME} is not written: {in_one_line(error)}; {again} tries again")
        return []


def page(run: RunRecord) -> str:
    """Return the page of a run."""
    final = run.folder / "final.pt"
    model = load_model(final)[0] if final.is_file() else None
    name = run.folder.resolve().name
    where = ", ".join(
        str(text)
        for text in (run.settings.get("dataset"), run.settings.get("arch"), run.environment.get("device"))
        if text
    )
    parts = [
        f'<h1>{escape(name)}</h1><p class="faint">{escape(where)}; {escape(run.progress)}</p>',
        cards(scores(run) + figures(run, model)),
        section("Curves", curves(run)),
        section("Confusion", confusion(run.predictions) if run.predictions else ""),
        section("The most confident mistakes", mistakes(run.predictions) if run.predictions else ""),
        section("What it was trained on", augmented_sheet(run.folder / "augmented.png", model) if model else ""),
        section("First-layer filters", filters(model) if model else ""),
        section("Where the time went", speed(run)),
        section("Settings", settings(run)),
        section("Environment", environment(run)),
    ]
    return document(f"{name}: a run of fastmlp", "".join(parts))


def interval_text(share: float, images: int) -> str:
    low, high = wilson_interval(share, images)
    return f"{100 * low:.2f} to {high:.2%}"


def scores(run: RunRecord) -> list[tuple[str, str, str]]:
    """Return the cards of a finished run's scores, of an unfinished one's last evaluation."""
    images = len(run.predictions.labels) if run.predictions else 0
    found = []
    if run.end is None:
        kind, what = run.evaluated_on
        if curve := run.curve("epoch", f"{kind}_top1"):
            found.append((f"{what} top-1", f"{curve[-1][1]:.2%}", f"after epoch {curve[-1][0]:g}"))
        return found
    for key, name in (("eval_top1", "test top-1"), ("eval_top5", "test top-5")):
        if (share := number(run.end.get(key))) is not None:
            note = f"95 %: {interval_text(share, images)}; {images:,} images" if images else "final.pt"
            found.append((name, f"{share:.2%}", note))
    if (share := number(run.end.get("best_eval_top1"))) is not None:
        found.append(("best.pt, test top-1", f"{share:.2%}", "chosen on held-out training images"))
    elif (share := number(run.end.get("best_top1"))) is not None:
        found.append(("best.pt, test top-1", f"{share:.2%}", "chosen on these very images"))
    return found


def figures(run: RunRecord, model: MLP | None) -> list[tuple[str, str, str]]:
    """Return the cards of speed and size."""
    found = []
    rates = [rate for _, rate in run.curve("epoch", "images_per_s")]
    rate = number((run.end or {}).get("images_per_s")) or (rates[-1] if rates else None)
    if rate:
        found.append(("images/sec", f"{rate:,.0f}", "in training"))
    if (seconds := number((run.end or {}).get("train_s"))) is not None:
        epochs = f"{run.epochs[-1]['epoch']:g} epochs" if run.epochs else ""
        found.append(("training time", duration_text(seconds), epochs))
    if model:
        parameters = sum(p.numel() for p in model.parameters())
        found.append(("parameters", f"{parameters:,}", f"{model.arch}, {model.res} px, {model.num_classes:,} classes"))
    return found


def curves(run: RunRecord) -> str:
    """Return loss, top-1 and learning rate by epoch."""
    kind, what = run.evaluated_on
    losses = [
        Series("training", run.curve("epoch", "train_loss"), 0),
        Series(what, run.curve("epoch", f"{kind}_loss"), 1),
    ]
    lr = run.curve("step", "lr") or run.curve("epoch", "lr")
    charts = (
        line_chart("Loss", "epoch", losses, last_text=lambda value: f"{value:.4f}"),
        line_chart(
            "Top-1",
            "epoch",
            [Series(what, run.curve("epoch", f"{kind}_top1"), 1)],
            lambda share: f"{100 * share:.6g} %",
            lambda share: f"{share:.2%}",
        ),
        line_chart("Learning rate", "epoch", [Series("", lr, 2)], from_zero=True),
    )
    note = '<p class="faint">The training loss is that of augmented images, with label smoothing and MixUp.</p>'
    return f'<div class="charts">{"".join(charts)}</div>{note}' if any(charts) else ""


def speed(run: RunRecord) -> str:
    """Return throughput over time and where the time of a step went, from the lines "step"."""
    rates = run.curve("step", "images_per_s") or run.curve("epoch", "images_per_s")
    chart = line_chart("Throughput", "epoch", [Series("images/sec", rates, 0)], from_zero=True)
    waits = line_chart(
        "Waiting for data",
        "epoch",
        [Series("share of the time", run.curve("step", "data_wait_share"), 3)],
        lambda share: f"{100 * share:.6g} %",
        from_zero=True,
    )
    memory = max((number(line.get("peak_memory_bytes")) or 0 for line in run.steps), default=0)
    values = [
        ("MFU", f"{mfu:.1%}", "of the device's peak") if (mfu := run.mean("mfu")) is not None else None,
        ("waiting for data", f"{share:.1%}", "of the time") if (share := run.mean("data_wait_share")) else None,
        ("peak memory", f"{memory / 2**30:.2f} GiB", "") if memory else None,
    ]
    shown = cards([value for value in values if value]) if any(values) else ""
    charts = f'<div class="charts">{chart}{waits}</div>' if chart or waits else ""
    return charts + shown + step_table(run)


def step_table(run: RunRecord) -> str:
    """Return a bar and a table of a mean step's parts, "" if the log has none."""
    parts = {name: seconds for key, name in PHASES.items() if (seconds := run.mean(key)) is not None}
    if not parts:
        return ""
    batch_size, step_rates = number(run.settings.get("batch_size")), run.curve("step", "images_per_s")
    if batch_size and step_rates and not any(rate <= 0 for _, rate in step_rates):
        whole = _mean_step_s(run, batch_size)
        if whole > sum(parts.values()):
            parts["other"] = whole - sum(parts.values())
    total = sum(parts.values()) or 1.0
    bar = "".join(f'<i class="f{n}" style="width:{100 * s / total:.2f}%"></i>' for n, s in enumerate(parts.values()))
    rows = [
        [f'<span class="key"><i class="f{n}"></i>{escape(name)}</span>', f"{1000 * s:.2f}", f"{s / total:.1%}"]
        for n, (name, s) in enumerate(parts.items())
    ]
    table = html_table([["of a mean step", "ms", "share"], *rows, ["whole step", f"{1000 * total:.2f}", ""]])
    return f'<div class="bar">{bar}</div>{table}'


def _mean_step_s(run: RunRecord, batch_size: float) -> float:
    """Return the mean seconds of a step, by the images/sec of the lines "step"."""
    seconds, before = 0.0, 0
    for line in run.steps:
        seconds += (line["step"] - before) * batch_size / max(line["images_per_s"], 1e-9)
        before = line["step"]
    return seconds / before


def settings(run: RunRecord) -> str:
    """Return the settings, those that differ from the defaults first."""
    defaults = run.defaults
    changed = [name for name, value in run.settings.items() if name not in defaults or value != defaults[name]]
    others = [name for name in run.settings if name not in changed]
    head = ["setting", "value", "default"]
    rows = [
        [f"<b>{escape(name)}</b>", escape(run.settings[name]), escape(defaults.get(name, "unknown here"))]
        for name in changed
    ]
    rows += [[escape(name), escape(run.settings[name]), ""] for name in others]
    title = f"{len(changed)} of {len(run.settings)} settings differ from the defaults of this version"
    return details(title, html_table([head, *rows], kind="left"))


def environment(run: RunRecord) -> str:
    """Return the command that repeats the run, and versions, device and commit of its last start."""
    if not run.environment:
        return ""
    first, last = run.environments[0], run.environment
    command: Any = first.get("command")
    text = ""
    if isinstance(command, list) and command:
        program, flags = shlex.join(map(str, command[:2])), [shlex.quote(str(flag)) for flag in command[2:]]
        lines = " \\\n    ".join([program, *flags])
        text = f"<p>The command of this run:</p><pre>{escape(lines)}</pre>"
        if run.end is not None and run.settings.get("run_dir"):
            text += '<p class="faint">To repeat it, name another --cfg.run_dir: this one holds a finished run.</p>'
    versions = last.get("versions")
    values = {name: value for name, value in last.items() if name not in ("command", "versions")}
    values |= versions if isinstance(versions, dict) else {}
    starts = len(run.environments)
    if starts > 1:
        values["starts"] = f"{starts}, of which this is the last"
    rows = [[escape(name), escape(value)] for name, value in values.items()]
    return text + html_table([["", ""], *rows], kind="left")


def main() -> None:
    parser = argparse.ArgumentParser("python -m fastmlp.training.report_page", description=cli.summary(__doc__))
    parser.add_argument("runs", type=cli.path, nargs="+", help="folders of runs")
    for folder in parser.parse_args().runs:
        print(write_page(folder))


if __name__ == "__main__":
    cli.run(main)
