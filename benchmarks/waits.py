"""Seconds that one waits for a run: from the command to the first step, and from the last epoch's line to the prompt.

    python benchmarks/waits.py [--rounds 5] [--cold]

python recipes/pretrain.py on betons of 32 px that are written, B_2-Wi_256-E_2, two epochs of 20 steps. --cold also runs
it once without anything that numba has compiled, as after an installation without scripts/setup.sh.
A table goes to stderr, a JSON line to stdout.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure

from fastmlp import cli
from fastmlp.beton.writer_cli import WriteOptions, write_splits
from fastmlp.sources.synthetic import Synthetic

ROOT = Path(__file__).resolve().parent.parent
IMAGES = {"train": 10_240, "test": 10_000}
# The command itself, but for a line after the first step.
CHILD = """
import gc, runpy, sys, time
from fastmlp import cli

with cli.loading():
    from fastmlp.training import trainer
    gc.freeze()
step = trainer.Trainer.step

def first_step(self, *batch):
    trainer.Trainer.step = step
    loss = step(self, *batch)
    print("first step", time.time(), flush=True)
    return loss

trainer.Trainer.step = first_step
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_once(data: Path, run_dir: Path, numba_cache: Path | None = None) -> tuple[float, float]:
    """Return the seconds to the first step, and from the last epoch's line to the end."""
    settings = {"dataset": "synthetic", "data_dir": data, "res": 32, "run_dir": run_dir, "arch": "B_2-Wi_256-E_2"}
    settings |= {"optimizer": "adamw", "lr": 0.001, "batch_size": 512, "epochs": 2, "flip": 1}
    command = [sys.executable, "-c", CHILD, str(ROOT / "recipes" / "pretrain.py")]
    command += [f"--cfg.{name}={value}" for name, value in settings.items()]
    environment = os.environ | ({"NUMBA_CACHE_DIR": str(numba_cache)} if numba_cache else {})
    began, first, line_at = time.time(), 0.0, 0.0
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("first step"):
                first = float(line.split()[-1]) - began
            elif line.startswith("epoch"):
                line_at = time.time()
    if child.returncode:
        raise ValueError(f"the run ended with exit code {child.returncode}")
    return first, time.time() - line_at


def main() -> None:
    parser = argparse.ArgumentParser(description=cli.summary(__doc__))
    parser.add_argument("--rounds", type=int, default=5, help="runs that count, after one that does not (default: 5)")
    parser.add_argument("--cold", action="store_true", help="also once without what numba has compiled")
    arguments = measure.parse(parser)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        options = WriteOptions(res=32, out=folder, num_workers=2, limit=None, seed=0)
        write_splits("synthetic", lambda split: Synthetic(IMAGES[split], 10, 32, split), ("train", "test"), options)
        runs = [run_once(folder, folder / f"run{number}") for number in range(arguments.rounds + 1)][1:]
        cold = run_once(folder, folder / "cold", folder / "numba")[0] if arguments.cold else None
    first, end = ([round(seconds[which], 3) for seconds in runs] for which in (0, 1))
    rows = [
        [name, f"{statistics.median(seconds):.2f} s", f"({min(seconds):.2f} to {max(seconds):.2f})"]
        for name, seconds in (("command to first step", first), ("last epoch's line to exit", end))
    ]
    if cold is not None:
        rows.append(["command to first step, nothing compiled", f"{cold:.2f} s", "(once)"])
    measure.print_table("", rows)
    measure.emit("waits", {}, {"first_step_s": first, "end_s": end, "cold_first_step_s": cold})


if __name__ == "__main__":
    cli.run(main)
