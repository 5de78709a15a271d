"""The page of a report (one HTML file that needs no network) and its table for a README."""

import html
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growth import WORSE
from report_compare import Changes, Line, key, limit_of, machine_noise, measured, table_noise
from report_suite import HEADLINES, SUITE, Headline

from fastmlp import plots
from fastmlp.arch import parse_arch
from fastmlp.atomic import write_atomic
from fastmlp.cost.budget import Budget, Host, TrainingJob, explain, predict
from fastmlp.cost.hardware import CARDS, card
from fastmlp.evaluation.html_page import document, embedded_png, html_table

MARKS = "<!-- figures: begin -->", "<!-- figures: end -->"
PICTURE = Path("docs/images/loader.png")  # of --readme, in the Markdown file's folder
README_RUNS = 5  # of each figure in a README, at least


@dataclass(frozen=True)
class HeadlineResult:
    """A headline with what was measured for it."""

    headline: Headline
    summary: dict[str, Any]  # images/sec of its candidate, as measure.summary gives it
    limit_share: float | None  # None if its limit was not measured
    peer_ratio: float | None  # None if its peer was not measured
    limit: str  # its name

    @property
    def limit_text(self) -> str:
        return f"{self.limit_share:.2f} of {self.limit}" if self.limit_share else ""

    @property
    def peer_text(self) -> str:
        return f"{self.peer_ratio:.1f} times {self.headline.peer}" if self.peer_ratio else ""


def headline_result(headline: Headline, line: Line) -> HeadlineResult | None:
    """Return the headline's figures if the line is of its settings and has its candidate."""
    results = measured(line)
    if line["script"] != headline.benchmark or not headline.settings.items() <= line.items():
        return None
    names = [headline.candidate, f"{headline.candidate}, eager", f"{headline.candidate}, compiled"]
    if not (owns := [results[name] for name in names if name in results]):
        return None
    own, peer = max(owns, key=lambda r: r["images_per_s"]), headline.peer
    bound = line.get("limit", headline.limit)
    rates = {n: r["images_per_s"] for n, r in line["results"].items() if isinstance(r, dict) and "images_per_s" in r}
    limit = max((rate for name, rate in rates.items() if bound and bound in name), default=None)
    return HeadlineResult(
        headline,
        own,
        own["images_per_s"] / limit if limit else None,
        own["images_per_s"] / results[peer]["images_per_s"] if peer in results else None,
        bound,
    )


def headline_results(lines: list[Line]) -> list[HeadlineResult]:
    """Return the headlines that were measured, each from the first line that has it."""
    first = (next(filter(None, (headline_result(one, line) for line in lines)), None) for one in HEADLINES)
    return [result for result in first if result]


def number(value: float) -> str:
    """Return a figure as text: whole from 100 on, else of three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"


def markdown(lines: list[Line]) -> str:
    """Return the table that --readme puts between the marks: the headlines that are for it, each with its command.

    Raises ValueError if a figure is of fewer than README_RUNS runs.
    """
    machine = lines[0]["machine"]
    device = f"{machine['device']} and " if machine.get("device", "CPU") != "CPU" else ""
    text = [
        f"| {device}{machine['cpu']}, {machine['cores']} cores, {machine['date']} "
        "| images/sec (min to max) | of its limit | against its peer | `python benchmarks/` |",
        "|---|---|---|---|---|",
    ]
    for result in headline_results(lines):
        if not result.headline.in_readme:
            continue
        r, script = result.summary, SUITE[result.headline.benchmark].script
        if len(r["seconds"]) < README_RUNS:
            raise ValueError(
                f"{result.headline.what}: {len(r['seconds'])} runs, a README's figures are medians of {README_RUNS} or "
                "more: run benchmarks/report.py as it is now"
            )
        text.append(
            f"| {result.headline.what} | {number(r['images_per_s'])} ({number(r['least'])} to {number(r['most'])}) "
            f"| {result.limit_text} | {result.peer_text} | `{script}.py` |"
        )
    return "\n".join(text) + "\n"


def draw_loaders(lines: list[Line], path: Path) -> None:
    """Draw the loaders' rates as bars, of the line with the most candidates; nothing if no loader was measured."""
    loaders = [line for line in lines if line["script"] == "loader"]
    if loaders:
        line = max(loaders, key=lambda line: len(measured(line)))
        figure = bars(line)
        figure.suptitle(f"{key(line)}: images/sec", fontsize=9)
        path.parent.mkdir(parents=True, exist_ok=True)
        plots.save_figure(figure, path, dpi=100)


def put_into(path: Path, text: str) -> None:
    """Replace what is between the marks of a Markdown file. Raises ValueError if the file lacks the marks."""
    content = path.read_text(encoding="utf-8")
    begin, end = (content.find(mark) for mark in MARKS)
    if not 0 <= begin < end:
        raise ValueError(f"{path} lacks the lines {MARKS[0]} and {MARKS[1]}, between which the figures go")
    write_atomic(path, f"{content[: begin + len(MARKS[0])]}\n{text}{content[end:]}")


def bars(line: Line) -> Any:
    """Return a bar chart of the medians and ranges of a line's candidates."""
    results = measured(line)
    figure = plots.new_figure(7, 0.6 + 0.28 * len(results))
    from matplotlib.ticker import EngFormatter

    axes, names = figure.subplots(), list(results)[::-1]
    medians = [results[name]["images_per_s"] for name in names]
    ranges = [
        [results[n]["images_per_s"] - results[n]["least"] for n in names],
        [results[n]["most"] - results[n]["images_per_s"] for n in names],
    ]
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.barh(names, medians, xerr=ranges, color="#7a9cc6", ecolor="#333", capsize=2)
    axes.set_xlabel("per second: median, min to max", fontsize=8)
    axes.tick_params(labelsize=8)
    return figure


def curves(line: Line) -> Any:
    """Return a plot of seconds and bytes over what grows, on log-log axes."""
    points, figure = line["results"]["points"], plots.new_figure(7, 2.6)
    for axes, what in zip(figure.subplots(1, 2), ("seconds", "memory_bytes"), strict=True):
        axes.loglog([p["x"] for p in points], [max(p[what], 1e-9) for p in points], "o-", color="#333", markersize=4)
        if what == "seconds":
            axes.vlines([p["x"] for p in points], [p["least_s"] for p in points], [p["most_s"] for p in points])
        axes.set_xlabel(line["of"], fontsize=8)
        axes.set_ylabel(what.replace("_", " "), fontsize=8)
        axes.tick_params(labelsize=8)
    return figure


def saved_figure(figure: Any, line: Line, out: Path) -> str:
    """Save the figure as a PNG in the folder, and return it as HTML."""
    path = out / f"{line['script']}-{zlib.crc32(key(line).encode()):08x}.png"
    return embedded_png(plots.save_figure(figure, path, dpi=100).read_bytes(), key(line))


def slope_sentences(line: Line) -> str:
    """Return a sentence of HTML for each slope."""
    return "".join(
        f"<p>{what.replace('_bytes', '')} grow{'s' if what == 'memory_bytes' else ''} as {line['of']} to the power of "
        f"{slope:.2f}{', worse than linear' if slope > WORSE else ''}.</p>"
        for what, slope in line["results"]["slopes"].items()
    )


def measured_table(line: Line, changes: Changes) -> str:
    """Return the table of a line's rates, with a column for the limit and for the baseline if there is one."""
    limit, limit_name = limit_of(line), line.get("limit", SUITE[line["script"]].limit).removeprefix("bare ")
    verdicts: list[str] = []
    table = [
        [
            "candidate",
            "per second, median",
            "min to max",
            "runs",
            *[f"of the best {limit_name}"] * bool(limit),
            *["to the baseline"] * bool(changes),
        ]
    ]
    for name, r in measured(line).items():
        change = changes.get((key(line), name))
        verdicts.append(change.verdict if change else "")
        row = [
            html.escape(name),
            number(r["images_per_s"]),
            f"{number(r['least'])} to {number(r['most'])}",
            str(len(r["seconds"])),
        ]
        row += [f"{r['images_per_s'] / limit['images_per_s']:.2f}"] if limit else []
        row += [f"{change.ratio:.2f} {change.verdict or '(noise)'}" if change else ""] if changes else []
        table.append(row)
    return html_table(table, verdicts)


def other_results(line: Line) -> str:
    """Return what a line holds beside rates: tables of numbers, and the peers that are missing."""
    text, tables = "", {}
    for name, value in line["results"].items():
        if name == "absent":
            text += f"<p>Not installed, hence not measured: {html.escape(', '.join(value))}.</p>"
        elif name == "failed":
            told = "; ".join(f"{peer} ({reason})" for peer, reason in value.items())
            text += f"<p>Failed, hence not measured: {html.escape(told)}.</p>"
        elif name == "parts":
            tables |= value
        elif isinstance(value, dict) and name not in measured(line) and value:
            tables[name] = value
        elif isinstance(value, int | float):
            text += f"<p>{html.escape(name.replace('_', ' '))}: {number(value)}</p>"
    if tables:
        columns = list(dict.fromkeys(column for value in tables.values() for column in value))
        text += html_table(
            [
                ["", *(html.escape(c.replace("_", " ")) for c in columns)],
                *(
                    [html.escape(name), *(number(value[c]) if c in value else "" for c in columns)]
                    for name, value in tables.items()
                ),
            ]
        )
    return text


def section(line: Line, changes: Changes, out: Path) -> str:
    """Return the part of the page about one line; its pictures also go into the folder `out`."""
    text = f"<h3>{html.escape(key(line))}</h3><p><code>{html.escape(line['command'])}</code></p>"
    if (own := table_noise(line)) is not None:
        text += f"<p>Noise of this table: {own:.1%}.</p>"
    if measured(line):
        text += measured_table(line, changes) + saved_figure(bars(line), line, out)
    if line["script"] == "growth":
        return text + slope_sentences(line) + saved_figure(curves(line), line, out)
    picture = out / "profile.png"
    if line["benchmark"] == "profile" and picture.is_file():
        text += embedded_png(picture.read_bytes(), "where the time of a step goes")
    return text + other_results(line)


def host_of(lines: list[Line]) -> Host:
    """Return the rates of loader and disk as measured here; None for what was not."""
    rates: dict[str, float] = {}
    for line in lines:
        loader = "fastmlp, on the host" if "fastmlp, on the host" in measured(line) else "fastmlp"
        for name, script in ((loader, "loader"), ("sequential reads", "cold")):
            if line["script"] == script and name in measured(line) and line.get("res", 64) == 64:
                rates.setdefault(script, measured(line)[name]["images_per_s"])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Host(rates.get("loader"), rates["cold"] * 3 * 64 * 64 if "cold" in rates else None, memory)


def budget_row(budget: Budget) -> list[str]:
    return [
        budget.machine.name,
        number(budget.images_per_s),
        budget.binding,
        f"{budget.epoch_s:,.0f} s",
        f"{budget.days:.1f} days",
        f"{sum(budget.memory.values()) / 2**30:.1f}",
        f"{budget.micro_batch_size:,}",
        html.escape("; ".join(budget.advice)),
    ]


def budgets(lines: list[Line]) -> str:
    """Return the section on the paper's largest run on every card, fed by this machine's loader and disk."""
    host, cores = host_of(lines), lines[0]["machine"]["cores"]
    job = TrainingJob(parse_arch("B_12-Wi_1024"), 64, 11_230, 11_801_680, 16_384, 800)
    predicted = [predict(job, card(name), host) for name in CARDS]
    head = ["card", "images/sec", "binds", "an epoch", "800 epochs", "memory [GiB]", "micro-batch", "advice"]
    rates = []
    if host.loader_images_per_s:
        rates.append(
            f"{number(host.loader_images_per_s)} images/sec of 64 px by {cores} cores, "
            f"{number(host.loader_images_per_s / cores)} per core"
        )
    if host.disk_bytes_per_s:
        rates.append(f"{host.disk_bytes_per_s / 1e9:.2f} GB/s from the disk, cold")
    texts = "\n\n".join(explain(budget) for budget in predicted)
    return (
        "<h2>Predicted: the paper's largest pre-training run on other cards</h2><p>ImageNet-21k at 64 px, "
        f"{job.arch}, batch {job.batch_size:,}. The host that feeds the card is this one, as measured above: "
        f"{'; '.join(rates) or 'not measured in this run'}. These are predictions, not measurements: <code>python "
        "benchmarks/budget.py --check</code> shows how far to trust them.</p>"
        f"{html_table([head, *map(budget_row, predicted)])}<details><summary>"
        f"Bounds, memory by part, assumptions</summary><pre>{html.escape(texts)}</pre></details>"
    )


def page(lines: list[Line], changes: Changes, out: Path) -> str:
    """Return the whole page; its pictures also go into the folder `out`."""
    machine, noise = lines[0]["machine"], machine_noise(lines[0])
    parts = [
        f"<h1>fastmlp on this machine</h1><p>{html.escape(', '.join(f'{k} {v}' for k, v in machine.items()))}</p>"
        f"<p>Noise of this machine: {noise:.1%} (the same matrix products timed between the benchmarks: their robust "
        "standard deviation). Each table has its own (the standard deviation of a candidate's runs, over all its "
        "candidates). Differences below three times the larger of the two do not count. The data are in the page cache "
        "unless a table says cold; candidates take turns, and the first round does not count. The range from the "
        "slowest to the fastest run holds the true median with 75 % (3 runs), 94 % (5) or 99 % (9).</p>"
    ]
    table = [["what", "share of its limit", "against its peer"]]
    table += [[result.headline.what, result.limit_text, result.peer_text] for result in headline_results(lines)]
    parts.append(f"<h2>In short</h2>{html_table(table)}" if table[1:] else "")
    for name, benchmark in SUITE.items():
        own = [line for line in lines if line["script"] == name]
        if own:
            parts.append(f"<h2>{html.escape(benchmark.title)}</h2>")
            parts += [section(line, changes, out) for line in own]
    parts.append(budgets(lines))
    return document("fastmlp: benchmarks", "".join(parts))
