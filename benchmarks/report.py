"""Runs the suite and writes one folder: results.jsonl, plots, and a report.html that a browser shows without a network.

    python benchmarks/report.py [--full] [--only loader,train_step] [--out runs/report] [--baseline runs/before]

Quick (the default) takes about 5 minutes on 2 cores, --full much longer. Each benchmark is a command of its own, which
the report names; between them the same matrix products are timed again and again, whose spread is the noise of the run.
--baseline compares medians with those of another report's folder, and tells a difference only where it is beyond that
noise (see compare). --readme puts the figures into a Markdown file, between the lines that mark their place.
"""

import argparse
import base64
import html
import json
import os
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from growth import WORSE
from tqdm import tqdm

from fastmlp import plots
from fastmlp.arch import parse_arch
from fastmlp.atomic import write_atomic
from fastmlp.cost import hardware
from fastmlp.cost.budget import Host, TrainingJob, explain, predict
from fastmlp.cost.hardware import CARDS, card

HERE = Path(__file__).parent
# Name -> what it measures, the script, flags of the quick and of the full run ({out}: the report's folder), and what
# its candidates' limit is called.
SUITE: dict[str, tuple[str, str, list[str], list[str], str]] = {
    "loader": (
        "Loading: uint8 batches in random order",
        "loader",
        ["--case", "64:16384:4", "64:2048:32", "32:16384:4", "--rounds", "3"],
        ["--rounds", "9"],
        "gather",
    ),
    "transforms": (
        "Training-ready batches: crop, flip, normalise",
        "transforms",
        ["--case", "crop:64:64:4096", "--samples", "8192", "--rounds", "2"],
        ["--rounds", "3"],
        "write",
    ),
    "writer": ("Writing betons", "writer", ["--images", "600", "--arrays", "20000", "--rounds", "2"], [], "bare"),
    "startup": (
        "From the constructor to the first batch",
        "startup",
        ["--samples", "65536", "1281167", "--skip-ffcv"],
        [],
        "",
    ),
    "cold": (
        "Reading from a cold disk",
        "cold",
        ["--gigabytes", "1.5", "--window-bytes", str(1 << 28)],
        ["--gigabytes", "6", "--window-bytes", str(1 << 29)],
        "sequential",
    ),
    "train_step": (
        "Training: from a beton to updated weights",
        "train_step",
        ["--case", "B_6-Wi_256,32,10,1024", "--rounds", "3"],
        ["--rounds", "9"],
        "gemm",
    ),
    "profile": (
        "Where the time of a training step goes",
        "train_step",
        ["--profile", "{out}"],
        ["--profile", "{out}"],
        "",
    ),
    "growth": ("How cost grows", "growth", ["--of", "batch", "--points", "3", "--rounds", "3"], [], ""),
    "inference": (
        "Inference, crops at test time, probes",
        "inference",
        ["--images", "2048", "--rounds", "1", "--views", "5"],
        [],
        "gemm",
    ),
}
# What a reader wants to know first: in words, the line (script and settings), its candidate, limit and peer.
SHORT: list[tuple[str, str, dict[str, Any], str, str, str]] = (
    [
        (
            f"loading {res} px, random order, batch {batch}, epochs of {batches}",
            "loader",
            {"res": res, "batch_size": batch, "batches": batches},
            "fastmlp",
            "bare gather",
            "ffcv",
        )
        for res, batch, batches in ((64, 16384, 4), (64, 16384, 32), (64, 2048, 32), (32, 16384, 4), (32, 16384, 32))
    ]
    + [
        (
            "the same, 64 px, batch 2048, against a DataLoader with whole batches",
            "loader",
            {"benchmark": "loader, peers", "batch_size": 2048},
            "fastmlp",
            "bare gather",
            "DataLoader, batched",
        ),
    ]
    + [
        (
            f"{what}, {stored} px to {res} px, batch {batch}",
            "transforms",
            {"work": work, "stored": stored, "res": res, "batch_size": batch},
            "fastmlp, host path" if work != "uint8" else "fastmlp",
            "bare write",
            {"uint8": "ffcv", "flip": "ffcv, the paper's pipeline without MixUp"}.get(
                work, "ffcv, the paper's pipeline"
            ),
        )
        for what, work, stored, res, batch in (
            ("training-ready float32 (random resized crop, flip, normalise)", "crop", 64, 64, 16384),
            ("training-ready float32 (random resized crop, flip, normalise)", "crop", 64, 64, 4096),
            ("flip and normalise", "flip", 64, 64, 16384),
            ("crop and flip as uint8", "uint8", 64, 64, 16384),
            ("random resized crop, flip, normalise", "crop", 32, 64, 16384),
        )
    ]
    + [
        (
            "writing 500 x 375 JPEG at 64 px",
            "writer",
            {"case": "jpeg"},
            "fastmlp",
            "bare decode and resize",
            "ffcv, as the paper",
        ),
        ("writing 32 px arrays, with SHA-256 and sync to disk", "writer", {"case": "raw"}, "fastmlp", "", "ffcv"),
        ("a cold file in QUASI_RANDOM order", "cold", {}, "fastmlp", "sequential reads", ""),
    ]
    + [
        (
            f"training {arch}, 32 px, batch {batch}, from the beton",
            "train_step",
            {"arch": arch, "batch": batch},
            "beton, eager",
            "gemm",
            "",
        )
        for arch in ("B_6-Wi_256", "B_6-Wi_512")
        for batch in (1024, 16384)
    ]
    + [
        ("inference from a beton, B_6-Wi_256, 32 px", "inference", {}, "from a beton", "gemm", ""),
    ]
)
MARKS = "<!-- figures: begin -->", "<!-- figures: end -->"
LEAST_CHANGE = 0.05  # whatever the noise
CSS = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem;color:#222}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.15rem .6rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left;white-space:normal;min-width:9rem}.wide{overflow-x:auto}img{max-width:100%;height:auto}
pre{overflow-x:auto;background:#f5f5f5;padding:.6rem;font-size:12px}code{overflow-wrap:anywhere}
.slower{background:#fbd5d5}.faster{background:#d9f2d9}"""


def run_suite(names: list[str], full: bool, out: Path) -> list[dict[str, Any]]:
    """Every line that the benchmarks give, with the command and the noise beside it; also in out/results.jsonl."""
    lines: list[dict[str, Any]] = []
    calibration = [hardware.measured_peak(seconds=0.5)]
    with (out / "benchmarks.log").open("w") as log, tqdm(names, unit=" benchmarks") as bar:
        for name in bar:
            bar.set_description(name)
            _, script, *both, _ = SUITE[name]
            flags = [flag.replace("{out}", str(out)) for flag in both[full]]
            command = [sys.executable, str(HERE / f"{script}.py"), *flags]
            started = time.perf_counter()
            ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True)
            calibration.append(hardware.measured_peak(seconds=0.5))
            if ended.returncode:
                tqdm.write(f"{name} failed with exit code {ended.returncode}: see {out / 'benchmarks.log'}")
                continue
            for text in ended.stdout.splitlines():
                if text.startswith("{"):
                    lines.append(
                        {
                            **json.loads(text),
                            "script": name,
                            "command": f"python benchmarks/{script}.py {' '.join(flags)}",
                            "took_s": round(time.perf_counter() - started, 1),
                        }
                    )
    noise = spread(calibration)
    for line in lines:
        line["noise"] = noise
    write_atomic(out / "results.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def spread(values: Sequence[float]) -> float:
    """Robust standard deviation (from the median absolute deviation) as a share of the median."""
    middle = statistics.median(values)
    return 1.4826 * statistics.median(abs(value - middle) for value in values) / middle


def measured(line: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The candidates of a line that have repeats: name -> summary."""
    return {name: r for name, r in line["results"].items() if isinstance(r, dict) and "images_per_s" in r}


NOT_SETTINGS = {
    "results",
    "machine",
    "script",
    "command",
    "took_s",
    "noise",
    "compile_s",
    "latency_s",
    "best_batch",
    "folder",
    "rounds",
    "micro_batch",
    "threads",
    "jpeg_bytes",
}


def key(line: dict[str, Any]) -> str:
    return ", ".join(f"{v}" if k == "benchmark" else f"{k} {v}" for k, v in line.items() if k not in NOT_SETTINGS)


def limit_of(line: dict[str, Any]) -> dict[str, Any] | None:
    """The best of the candidates that are the limit of the others."""
    bound = SUITE[line["script"]][-1]
    limits = [r for name, r in measured(line).items() if bound and bound in name]
    return max(limits, key=lambda r: r["images_per_s"], default=None)


def apart(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether no repeat of one reaches into those of the other."""
    return a["most"] < b["least"] or b["most"] < a["least"]


def compare(now: list[dict[str, Any]], before: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[float, str]]:
    """(line, candidate) -> ratio of the medians, and "slower", "faster", or "" where there is no telling.

    A difference counts where the repeats of the two runs lie apart, and the ratio is beyond three times the noise of
    either run; where the limit moved, too, also as a share of it: a machine that is slower is no change.
    """
    there = {key(line): line for line in before}
    found = {}
    for line in now:
        if (old := there.get(key(line))) is None:
            continue
        noise = max(LEAST_CHANGE, 3 * max(line["noise"], old["noise"]))
        limit, its_limit = limit_of(line), limit_of(old)
        moved = 1.0
        if limit and its_limit and apart(limit, its_limit):
            moved = limit["images_per_s"] / its_limit["images_per_s"]
        for name, r in measured(line).items():
            if (its := measured(old).get(name)) is None:
                continue
            ratio = r["images_per_s"] / its["images_per_s"]
            slower, faster = max(ratio, ratio / moved) < 1 - noise, min(ratio, ratio / moved) > 1 + noise
            verdict = "" if not apart(r, its) else "slower" if slower else "faster" if faster else ""
            found[key(line), name] = ratio, verdict
    return found


def bars(line: dict[str, Any]) -> Any:
    """Medians and ranges of a line's candidates."""
    results = measured(line)
    figure = plots.new_figure(7, 0.6 + 0.28 * len(results))
    from matplotlib.ticker import EngFormatter

    axes, names = figure.subplots(), list(results)[::-1]
    medians = [results[name]["images_per_s"] for name in names]
    spread = [
        [results[n]["images_per_s"] - results[n]["least"] for n in names],
        [results[n]["most"] - results[n]["images_per_s"] for n in names],
    ]
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.barh(names, medians, xerr=spread, color="#7a9cc6", ecolor="#333", capsize=2)
    axes.set_xlabel("per second: median, least to most", fontsize=8)
    axes.tick_params(labelsize=8)
    return figure


def curves(line: dict[str, Any]) -> Any:
    """Seconds and bytes over what grows, on log-log axes."""
    points, figure = line["results"]["points"], plots.new_figure(7, 2.6)
    for axes, what in zip(figure.subplots(1, 2), ("seconds", "memory_bytes"), strict=True):
        axes.loglog([p["x"] for p in points], [max(p[what], 1e-9) for p in points], "o-", color="#333", markersize=4)
        if what == "seconds":
            axes.vlines([p["x"] for p in points], [p["least_s"] for p in points], [p["most_s"] for p in points])
        axes.set_xlabel(line["of"], fontsize=8)
        axes.set_ylabel(what.replace("_", " "), fontsize=8)
        axes.tick_params(labelsize=8)
    return figure


def image(path: Path, text: str) -> str:
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'


def shown(figure: Any, line: dict[str, Any], out: Path) -> str:
    """The figure as a PNG in the folder and in the page."""
    path = out / f"{line['script']}-{zlib.crc32(key(line).encode()):08x}.png"
    figure.savefig(path, dpi=100)
    return image(path, key(line))


def grown(line: dict[str, Any]) -> str:
    """A sentence for each slope."""
    return "".join(
        f"<p>{what.replace('_bytes', '')} grow{'s' if what == 'memory_bytes' else ''} as {line['of']} to the power of "
        f"{slope:.2f}{', worse than linear' if slope > WORSE else ''}.</p>"
        for what, slope in line["results"]["slopes"].items()
    )


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"


def rows_of(table: Sequence[Sequence[str]], verdicts: Sequence[str] = ()) -> str:
    """An HTML table whose first row is its head; cells are HTML."""
    head, *rows = table
    classes = [f' class="{verdict}"' if verdict else "" for verdict in verdicts] or [""] * len(rows)
    body = "".join(
        f"<tr{style}>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>"
        for style, row in zip(classes, rows, strict=True)
    )
    names = "".join(f"<th>{name}</th>" for name in head)
    return f'<div class="wide"><table><tr>{names}</tr>{body}</table></div>'


def measured_table(line: dict[str, Any], changes: dict[tuple[str, str], tuple[float, str]]) -> str:
    results, bound = measured(line), SUITE[line["script"]][-1]
    verdicts: list[str] = []
    limit = limit_of(line)
    table = [
        [
            "candidate",
            "per second, median",
            "least to most",
            "runs",
            *[f"of the best {bound}"] * bool(limit),
            *["to the baseline"] * bool(changes),
        ]
    ]
    for name, r in results.items():
        ratio, verdict = changes.get((key(line), name), (None, ""))
        verdicts.append(verdict)
        row = [
            html.escape(name),
            number(r["images_per_s"]),
            f"{number(r['least'])} to {number(r['most'])}",
            str(len(r["seconds"])),
        ]
        row += [f"{r['images_per_s'] / limit['images_per_s']:.2f}"] if limit else []
        row += ["" if ratio is None else f"{ratio:.2f} {verdict or '(noise)'}"] if changes else []
        table.append(row)
    return rows_of(table, verdicts)


def others(line: dict[str, Any]) -> str:
    """What a line holds beside rates: tables of numbers, and who is missing."""
    text, tables = "", {}
    for name, value in line["results"].items():
        if name == "absent":
            text += f"<p>Not installed, hence not measured: {html.escape(', '.join(value))}.</p>"
        elif name == "failed":
            told = "; ".join(f"{peer} ({reason})" for peer, reason in value.items())
            text += f"<p>Failed, hence not measured: {html.escape(told)}.</p>"
        elif name == "parts":
            tables |= value
        elif isinstance(value, dict) and "images_per_s" not in value and value:
            tables[name] = value
        elif isinstance(value, int | float):
            text += f"<p>{html.escape(name.replace('_', ' '))}: {number(value)}</p>"
    if tables:
        columns = list(dict.fromkeys(column for value in tables.values() for column in value))
        text += rows_of(
            [
                ["", *(html.escape(c.replace("_", " ")) for c in columns)],
                *(
                    [html.escape(name), *(number(value[c]) if c in value else "" for c in columns)]
                    for name, value in tables.items()
                ),
            ]
        )
    return text


def section(line: dict[str, Any], changes: dict[tuple[str, str], tuple[float, str]], out: Path) -> str:
    text = f"<h3>{html.escape(key(line))}</h3><p><code>{html.escape(line['command'])}</code></p>"
    if measured(line):
        text += measured_table(line, changes) + shown(bars(line), line, out)
    if line["script"] == "growth":
        return text + grown(line) + shown(curves(line), line, out)
    picture = out / "profile.png"
    if line["benchmark"] == "profile" and picture.is_file():
        text += image(picture, "where the time of a step goes")
    return text + others(line)


def short(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of SHORT that were measured: what, figures, share of its limit, times its peer."""
    found = []
    for what, script, settings, candidate, bound, peer in SHORT:
        for line in lines:
            results = measured(line)
            if line["script"] != script or not settings.items() <= line.items() or candidate not in results:
                continue
            mine = results[candidate]
            limit = max((r["images_per_s"] for name, r in results.items() if bound and bound in name), default=None)
            found.append(
                {
                    "what": what,
                    **mine,
                    "bound": bound,
                    "peer": peer,
                    "share": limit and mine["images_per_s"] / limit,
                    "times": mine["images_per_s"] / results[peer]["images_per_s"] if peer in results else None,
                }
            )
            break
    return found


def markdown(lines: list[dict[str, Any]]) -> str:
    """What --readme puts into its place."""
    machine = lines[0]["machine"]
    text = [
        f"| measured on {machine['cpu']}, {machine['cores']} cores, {machine['date']} | images/sec (least to most) "
        "| of its limit | against its peer |",
        "|---|---|---|---|",
    ]
    for row in short(lines):
        share = f"{row['share']:.2f} of {row['bound']}" if row["share"] else ""
        times = f"{row['times']:.1f} times {row['peer']}" if row["times"] else ""
        text.append(
            f"| {row['what']} | {number(row['images_per_s'])} ({number(row['least'])} to "
            f"{number(row['most'])}) | {share} | {times} |"
        )
    return "\n".join(text) + "\n"


def put_into(path: Path, text: str) -> None:
    """Raises ValueError where the file lacks the marks."""
    content = path.read_text(encoding="utf-8")
    begin, end = (content.find(mark) for mark in MARKS)
    if not 0 <= begin < end:
        raise ValueError(f"{path} lacks the lines {MARKS[0]} and {MARKS[1]}, between which the figures go")
    write_atomic(path, f"{content[: begin + len(MARKS[0])]}\n{text}{content[end:]}")


def host_of(lines: list[dict[str, Any]]) -> Host:
    """Loader and disk as measured here."""
    rates: dict[str, float] = {}
    for line in lines:
        for name, script in (("fastmlp", "loader"), ("sequential reads", "cold")):
            if line["script"] == script and name in measured(line) and line.get("res", 64) == 64:
                rates.setdefault(script, measured(line)[name]["images_per_s"])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Host(rates.get("loader"), rates["cold"] * 3 * 64 * 64 if "cold" in rates else None, memory)


def budgets(lines: list[dict[str, Any]]) -> str:
    """The paper's largest run on every card, fed by this machine's loader and disk."""
    host, cores = host_of(lines), lines[0]["machine"]["cores"]
    run = TrainingJob(parse_arch("B_12-Wi_1024"), 64, 11_230, 11_801_680, 16_384, 800)
    found = [predict(run, card(name), host) for name in CARDS]
    table = [["card", "images/sec", "binds", "an epoch", "800 epochs", "memory [GiB]", "micro-batch", "advice"]]
    for budget in found:
        table.append(
            [
                budget.machine.name,
                number(budget.images_per_s),
                budget.binding,
                f"{budget.epoch_s:,.0f} s",
                f"{budget.days:.1f} days",
                f"{sum(budget.memory.values()) / 2**30:.1f}",
                f"{budget.micro_batch_size:,}",
                html.escape("; ".join(budget.advice)),
            ]
        )
    fed = (
        [
            f"{number(host.loader_images_per_s)} images/sec of 64 px by {cores} cores, "
            f"{number(host.loader_images_per_s / cores)} per core"
        ]
        if host.loader_images_per_s
        else []
    )
    fed += [f"{host.disk_bytes_per_s / 1e9:.2f} GB/s from the disk, cold"] if host.disk_bytes_per_s else []
    texts = "\n\n".join(explain(budget) for budget in found)
    return (
        "<h2>Predicted: the paper's largest pre-training run on other cards</h2><p>ImageNet-21k at 64 px, "
        f"{run.arch}, batch {run.batch_size:,}. The host that feeds the card is this one, as measured above: "
        f"{'; '.join(fed) or 'not measured in this run'}. Predictions, not measurements: <code>python "
        f"benchmarks/budget.py --check</code> tells how far to trust them.</p>{rows_of(table)}<details><summary>"
        f"Bounds, memory by part, assumptions</summary><pre>{html.escape(texts)}</pre></details>"
    )


def page(lines: list[dict[str, Any]], changes: dict[tuple[str, str], tuple[float, str]], out: Path) -> str:
    machine, noise = lines[0]["machine"], lines[0]["noise"]
    parts = [
        f"<h1>fastmlp on this machine</h1><p>{html.escape(', '.join(f'{k} {v}' for k, v in machine.items()))}</p>"
        f"<p>Noise of this run: {noise:.1%} (the same matrix products timed between the benchmarks: their robust "
        "standard deviation). Differences below three times that are none. Data lie in the page cache unless a "
        "table says cold; candidates take turns, the first round does not count. The range from least to most "
        "holds the true median with 75 % (3 runs), 94 % (5) or 99 % (9).</p>"
    ]
    table = [["what", "share of its limit", "against its peer"]]
    for row in short(lines):
        share = f"{row['share']:.2f} of {row['bound']}" if row["share"] else ""
        table.append([row["what"], share, f"{row['times']:.1f} times {row['peer']}" if row["times"] else ""])
    parts.append(f"<h2>In short</h2>{rows_of(table)}" if table[1:] else "")
    for name, (title, *_) in SUITE.items():
        mine = [line for line in lines if line["script"] == name]
        if mine:
            parts.append(f"<h2>{html.escape(title)}</h2>" + "".join(section(line, changes, out) for line in mine))
    parts.append(budgets(lines))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>fastmlp: benchmarks</title><style>{CSS}</style><body>{"".join(parts)}'
        "</body></html>\n"
    )


def read(folder: Path) -> list[dict[str, Any]]:
    path = folder / "results.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: name the folder of another report")
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="more cases, more repeats")
    parser.add_argument("--only", help=f"some of {','.join(SUITE)}")
    parser.add_argument("--out", type=Path, default=Path("runs/report"), help="(default: %(default)s)")
    parser.add_argument("--readme", type=Path, help="a Markdown file that gets the figures in short")
    parser.add_argument("--baseline", type=Path, help="the folder of an earlier report")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(SUITE)
    if unknown := set(names) - set(SUITE):
        raise ValueError(f"--only {options.only}: {', '.join(sorted(unknown))} is none of {', '.join(SUITE)}")
    plots.new_figure(1, 1)  # without matplotlib it ends now, rather than after minutes
    before = read(options.baseline) if options.baseline else []
    options.out.mkdir(parents=True, exist_ok=True)
    lines = run_suite(names, options.full, options.out)
    if not lines:
        raise ValueError(f"no benchmark gave a result: see {options.out / 'benchmarks.log'}")
    changes = compare(lines, before)
    write_atomic(options.out / "report.html", page(lines, changes, options.out))
    if options.readme:
        put_into(options.readme, markdown(lines))
    for (line, name), (ratio, verdict) in changes.items():
        if verdict:
            print(f"{verdict}: {line}: {name}: {ratio:.2f} of the baseline")
    changed = sum(bool(verdict) for _, verdict in changes.values())
    print(
        f"{options.out / 'report.html'}: {len(lines)} tables, noise {lines[0]['noise']:.1%}"
        + (f", {changed} of {len(changes)} figures changed" if before else "")
    )


if __name__ == "__main__":
    from fastmlp import cli

    cli.run(main)
