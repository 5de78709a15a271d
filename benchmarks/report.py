"""Runs the suite and writes one folder: results.jsonl, plots, and a report.html that a browser shows without a network.

    python benchmarks/report.py [--full] [--only loader,train_step] [--out runs/report] [--baseline runs/before]

Quick (the default) takes less than 5 minutes on 2 cores, --full an hour. Each benchmark is a command of its own, which
the report names; between them the same matrix products are timed again and again, whose spread is the noise of the run.
--baseline compares medians with those of another report's folder: a difference counts where no repeat of one run
reaches into those of the other and the ratio lies beyond twice the noise.
"""

import argparse
import base64
import html
import json
import statistics
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

from growth import WORSE
from tqdm import tqdm

from fastmlp import compute, plots
from fastmlp.arch import parse_arch
from fastmlp.atomic import write_whole
from fastmlp.budget import CARDS, Run, card, explain, predict

HERE = Path(__file__).parent
# Script -> what it measures, flags of the quick and of the full run, and what its candidates' limit is called.
SUITE: dict[str, tuple[str, list[str], list[str], str]] = {
    "loader": ("Loading: uint8 batches in random order", ["--rounds", "3"], ["--rounds", "9"], "gather"),
    "transforms": ("Training-ready batches: crop, flip, normalise",
                   ["--case", "crop:64:64:4096", "--rounds", "2"], ["--rounds", "7"], "write"),
    "writer": ("Writing betons", ["--images", "1500", "--arrays", "30000", "--rounds", "2"], [], "bare"),
    "startup": ("From the constructor to the first batch", ["--samples", "65536", "1281167", "--skip-ffcv"], [], ""),
    "train_step": ("Training: from a beton to updated weights",
                   ["--case", "B_6-Wi_256,32,10,1024", "--case", "B_6-Wi_512,32,10,1024", "--rounds", "3"],
                   ["--rounds", "9"], "gemm"),
    "growth": ("How cost grows", ["--of", "batch", "width", "--rounds", "1"], [], ""),
    "inference": ("Inference, crops at test time, probes", ["--rounds", "1", "--views", "5"], [], "gemm"),
}  # fmt: skip
LEAST_CHANGE = 0.05  # whatever the noise
CSS = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem;color:#222}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.15rem .6rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left}.wide{overflow-x:auto}img{max-width:100%;height:auto}
pre{overflow-x:auto;background:#f5f5f5;padding:.6rem;font-size:12px}code{overflow-wrap:anywhere}
.slower{background:#fbd5d5}.faster{background:#d9f2d9}"""


def run_suite(names: list[str], full: bool, out: Path) -> list[dict[str, Any]]:
    """Every line that the benchmarks give, with the command and the noise beside it; also in out/results.jsonl."""
    lines: list[dict[str, Any]] = []
    calibration = [compute.measured_peak(seconds=0.5)]
    with (out / "benchmarks.log").open("w") as log, tqdm(names, unit=" benchmarks") as bar:
        for name in bar:
            bar.set_description(name)
            flags = SUITE[name][2 if full else 1]
            command = [sys.executable, str(HERE / f"{name}.py"), *flags]
            started = time.perf_counter()
            ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True)
            calibration.append(compute.measured_peak(seconds=0.5))
            if ended.returncode:
                tqdm.write(f"{name} failed with exit code {ended.returncode}: see {out / 'benchmarks.log'}")
                continue
            for text in ended.stdout.splitlines():
                if text.startswith("{"):
                    lines.append({**json.loads(text), "script": name,
                                  "command": f"python benchmarks/{name}.py {' '.join(flags)}",
                                  "took_s": round(time.perf_counter() - started, 1)})  # fmt: skip
    noise = (max(calibration) - min(calibration)) / statistics.median(calibration)
    for line in lines:
        line["noise"] = noise
    write_whole(out / "results.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def measured(line: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The candidates of a line that have repeats: name -> summary."""
    return {name: r for name, r in line["results"].items() if isinstance(r, dict) and "images_per_s" in r}


def key(line: dict[str, Any]) -> str:
    left_out = {"results", "machine", "script", "command", "took_s", "noise", "compile_s", "latency_s", "best_batch"}
    return ", ".join(f"{v}" if k == "benchmark" else f"{k} {v}" for k, v in line.items() if k not in left_out)


def compare(now: list[dict[str, Any]], before: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[float, str]]:
    """(line, candidate) -> ratio of the medians, and "slower", "faster", or "" where it is within the noise."""
    there = {(key(line), name): (r, line["noise"]) for line in before for name, r in measured(line).items()}
    found = {}
    for line in now:
        for name, r in measured(line).items():
            if (old := there.get((key(line), name))) is None:
                continue
            ratio = r["images_per_s"] / old[0]["images_per_s"]
            beyond = abs(ratio - 1) > max(LEAST_CHANGE, 2 * max(line["noise"], old[1]))
            apart = r["least"] > old[0]["most"] or r["most"] < old[0]["least"]
            found[key(line), name] = ratio, ("slower" if ratio < 1 else "faster") if beyond and apart else ""
    return found


def bars(line: dict[str, Any]) -> Any:
    """Medians and ranges of a line's candidates."""
    results = measured(line)
    figure = plots.new_figure(7, 0.6 + 0.28 * len(results))
    axes, names = figure.subplots(), list(results)[::-1]
    medians = [results[name]["images_per_s"] for name in names]
    spread = [[results[n]["images_per_s"] - results[n]["least"] for n in names],
              [results[n]["most"] - results[n]["images_per_s"] for n in names]]  # fmt: skip
    axes.barh(names, medians, xerr=spread, color="#7a9cc6", ecolor="#333", capsize=2)
    axes.set_xlabel("per second: median, least to most", fontsize=8)
    axes.tick_params(labelsize=8)
    return figure


def curves(line: dict[str, Any]) -> Any:
    """Seconds and bytes over what grows, on log-log axes."""
    points, figure = line["results"]["points"], plots.new_figure(7, 2.6)
    for axes, what in zip(figure.subplots(1, 2), ("seconds", "memory_bytes"), strict=True):
        axes.loglog([p["x"] for p in points], [max(p[what], 1e-9) for p in points], "o-", color="#333", markersize=4)
        axes.set_xlabel(line["of"], fontsize=8)
        axes.set_ylabel(what.replace("_", " "), fontsize=8)
        axes.tick_params(labelsize=8)
    return figure


def shown(figure: Any, line: dict[str, Any], out: Path) -> str:
    """The figure as a PNG in the folder and in the page."""
    path = out / f"{line['script']}-{zlib.crc32(key(line).encode()):08x}.png"
    figure.savefig(path, dpi=100)
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(key(line))}" src="data:image/png;base64,{content}">'


def grown(line: dict[str, Any]) -> str:
    """A sentence for each slope."""
    return "".join(
        f"<p>{what.replace('_bytes', '')} grow{'s' if what == 'memory_bytes' else ''} as {line['of']} to the power of "
        f"{slope:.2f}{', worse than linear' if slope > WORSE else ''}.</p>"
        for what, slope in line["results"]["slopes"].items()
    )  # fmt: skip


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"


def section(line: dict[str, Any], bound: str, changes: dict[tuple[str, str], tuple[float, str]], out: Path) -> str:
    results, rows = measured(line), []
    limit = max((r["images_per_s"] for name, r in results.items() if bound and bound in name), default=None)
    for name, r in results.items():
        share = f"{r['images_per_s'] / limit:.2f}" if limit else ""
        ratio, verdict = changes.get((key(line), name), (None, ""))
        changed = "" if ratio is None else f"<td>{ratio:.2f} {verdict or '(noise)'}</td>"
        rows.append(f'<tr class="{verdict}"><td>{html.escape(name)}</td><td>{number(r["images_per_s"])}</td>'
                    f'<td>{number(r["least"])} to {number(r["most"])}</td><td>{len(r["seconds"])}</td><td>{share}</td>'
                    f"{changed}</tr>")  # fmt: skip
    others = {name: r for name, r in line["results"].items() if name not in results and line["script"] != "growth"}
    text = f"<h3>{html.escape(key(line))}</h3><p><code>{html.escape(line['command'])}</code></p>"
    if rows:
        text += ('<div class="wide"><table><tr><th>candidate</th><th>per second</th><th>least to most</th><th>runs</th>'
                 f"<th>of the best {bound}</th>{'<th>to the baseline</th>' if changes else ''}</tr>{''.join(rows)}"
                 "</table></div>")  # fmt: skip
        text += shown(bars(line), line, out)
    if line["script"] == "growth":
        text += grown(line) + shown(curves(line), line, out)
    return text + (f"<pre>{html.escape(json.dumps(others, indent=1))}</pre>" if others else "")


def page(lines: list[dict[str, Any]], changes: dict[tuple[str, str], tuple[float, str]], out: Path) -> str:
    machine, noise = lines[0]["machine"], lines[0]["noise"]
    parts = [f"<h1>fastmlp on this machine</h1><p>{html.escape(', '.join(f'{k} {v}' for k, v in machine.items()))}</p>"
             f"<p>Noise of this run: {noise:.1%} (the same matrix products timed between the benchmarks, greatest less "
             "least). Differences below twice that are none. Data lie in the page cache unless a table says cold; "
             "candidates take turns, the first round does not count.</p>"]  # fmt: skip
    for name, (title, _, _, bound) in SUITE.items():
        mine = [line for line in lines if line["script"] == name]
        if mine:
            parts.append(f"<h2>{html.escape(title)}</h2>" + "".join(section(x, bound, changes, out) for x in mine))
    run = Run(parse_arch("B_12-Wi_1024"), 64, 11_230, 11_801_680, 16_384, 800)
    texts = "\n\n".join(explain(predict(run, card(name))) for name in CARDS)
    parts.append("<h2>Predicted: the paper's largest pre-training run, on other cards</h2>"
                 f"<pre>{html.escape(texts)}</pre><p>Predictions, not measurements: "
                 "<code>python benchmarks/budget.py --check</code> tells how far to trust them.</p>")  # fmt: skip
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width"><title>fastmlp: benchmarks</title><style>{CSS}</style><body>{"".join(parts)}'
            "</body></html>\n")  # fmt: skip


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
    write_whole(options.out / "report.html", page(lines, changes, options.out))
    for (line, name), (ratio, verdict) in changes.items():
        if verdict:
            print(f"{verdict}: {line}: {name}: {ratio:.2f} of the baseline")
    changed = sum(bool(verdict) for _, verdict in changes.values())
    print(f"{options.out / 'report.html'}: {len(lines)} tables, noise {lines[0]['noise']:.1%}"
          + (f", {changed} of {len(changes)} figures changed" if before else ""))  # fmt: skip


if __name__ == "__main__":
    from fastmlp import cli

    cli.run(main)
