"""Run the benchmarks and write one folder: results.jsonl, plots, and a report.html that a browser shows offline.

    python benchmarks/report.py [--device auto] [--full] [--only loader,train_step] [--out runs/report]
        [--baseline runs/before]

The quick run (the default) takes about 8 minutes on 2 cores, --full much longer. Each benchmark (report_suite.py) is a
command of its own, which the report names; those that can use the GPU if there is one, or as --device says. Between
them the same matrix products are timed again and again; the spread of these times is the noise of the machine. The
noise of a table is that of its own runs. --baseline compares medians with those of another report's folder, and reports
a difference only if it is beyond both (report_compare.py). --readme puts a short table into a Markdown file, between
the lines that mark its place, and draws the loaders' rates beside it (docs/images/loader.png; report_html.py).
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import measure
import torch
from report_compare import Changes, Line, compare, key, machine_noise, read, relative_spread, table_noise
from report_html import PICTURE, draw_loaders, markdown, page, put_into
from report_suite import SUITE
from tqdm import tqdm

from fastmlp import cli, plots
from fastmlp import device as devices
from fastmlp.atomic import no_links, write_atomic
from fastmlp.cost import hardware

HERE = Path(__file__).parent


def run_suite(names: list[str], full: bool, out: Path, asked: str, device: torch.device) -> list[Line]:
    """Return every line that the benchmarks print, with its command and the noise; write them to out/results.jsonl.

    asked: the name of the device, as --device has it.
    """
    lines: list[Line] = []
    calibration = [hardware.measured_peak(seconds=0.5, device=device)]
    with open(out / "benchmarks.log", "w", opener=no_links) as log, tqdm(names, unit=" benchmarks") as bar:
        for name in bar:
            bar.set_description(name)
            script, flags = SUITE[name].script, SUITE[name].flags(full, out, asked)
            command = [sys.executable, str(HERE / f"{script}.py"), *flags]
            started = time.perf_counter()
            ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True)
            calibration.append(hardware.measured_peak(seconds=0.5, device=device))
            if ended.returncode:
                tqdm.write(f"{name} failed with exit code {ended.returncode}: see {out / 'benchmarks.log'}")
                continue
            added = {
                "script": name,
                "command": f"python benchmarks/{script}.py {' '.join(flags)}",
                "took_s": round(time.perf_counter() - started, 1),
            }
            lines += [{**json.loads(text), **added} for text in ended.stdout.splitlines() if text.startswith("{")]
    noise = relative_spread(calibration)
    for line in lines:
        line["machine_noise"] = noise
        line["machine"]["device"] = devices.describe(device)
    write_atomic(out / "results.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def print_changes(changes: Changes) -> None:
    for (line, name), change in changes.items():
        if change.verdict:
            print(f"{change.verdict}: {line}: {name}: {change.ratio:.2f} of the baseline")


def print_noise(lines: list[Line]) -> None:
    """Print the noise of each table that has repeats."""
    for line in lines:
        if (noise := table_noise(line)) is not None:
            print(f"noise {noise:5.1%}  {key(line)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=cli.summary(__doc__))
    parser.add_argument("--full", action="store_true", help="more cases, more repeats")
    parser.add_argument("--only", help=f"some of {','.join(SUITE)}")
    parser.add_argument("--out", type=cli.path, default=Path("runs/report"), help="(default: %(default)s)")
    parser.add_argument("--readme", type=cli.path, help="Markdown file to put the short table into, with its picture")
    parser.add_argument("--baseline", type=cli.path, help="the folder of an earlier report")
    measure.add_device(parser)
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(SUITE)
    if unknown := set(names) - set(SUITE):
        raise ValueError(f"--only {options.only}: {', '.join(sorted(unknown))} is not one of {', '.join(SUITE)}")
    device = measure.select_device(options.device)
    plots.new_figure(1, 1)  # if matplotlib is missing, fail now instead of after minutes
    before = read(options.baseline) if options.baseline else []
    options.out.mkdir(parents=True, exist_ok=True)
    lines = run_suite(names, options.full, options.out, options.device, device)
    if not lines:
        raise ValueError(f"no benchmark gave a result: see {options.out / 'benchmarks.log'}")
    changes = compare(lines, before)
    write_atomic(options.out / "report.html", page(lines, changes, options.out))
    if options.readme:
        put_into(options.readme, markdown(lines))
        draw_loaders(lines, options.readme.parent / PICTURE)
    print_noise(lines)
    print_changes(changes)
    changed = sum(bool(change.verdict) for change in changes.values())
    print(
        f"{options.out / 'report.html'}: {len(lines)} tables, noise of the machine {machine_noise(lines[0]):.1%}"
        + (f", {changed} of {len(changes)} figures changed" if before else "")
    )


if __name__ == "__main__":
    cli.run(main)
