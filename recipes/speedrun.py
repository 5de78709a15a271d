"""Measures the training time to 90.0 % test top-1 on Fashion-MNIST, mean of 10 seeds: the rows of the record table.

    python recipes/speedrun.py                                  # the record: the last of recipes/configs/speedrun
    python recipes/speedrun.py recipes/configs/speedrun/*.yaml  # all rows, about 20 minutes on 2 cores
    python recipes/speedrun.py mine.yaml --seeds 5              # yours

The time is that of training only (train_s in a run's log), without evaluation and set-up; the accuracy is that of the
last step's weights. recipes/studies/README.md has the measured table. Finished runs are kept in ./runs/speedrun and not
repeated; --out names another folder. Run nothing else on the machine at the same time.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

from fastmlp import cli
from fastmlp.atomic import write_atomic
from fastmlp.config import translate_fields
from fastmlp.yaml_file import read_yaml

HERE = Path(__file__).parent
GOAL = 0.900
MAX_SEEDS = 1_000_000
ONE_SEED = ("1_paper",)  # 2 minutes each


def train(config: Path, seed: int, folder: Path, data_dir: Path) -> dict:
    """Return the run's last log line, after training it if it is not finished."""
    from fastmlp.training.run_folder import is_finished
    from fastmlp.training.run_log import read_log

    copy = folder / "asked.yaml"  # the config file that the run was started with
    if not is_finished(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(copy, config.read_bytes())
        command = [
            sys.executable,
            HERE / "pretrain.py",
            "--config-file",
            config,
            f"--cfg.seed={seed}",
            f"--cfg.run_dir={folder}",
            f"--cfg.data_dir={data_dir}",
        ]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            raise ValueError(f"{' '.join(map(str, command))} failed: {ended.stderr.strip()[-500:]}")
    elif not copy.is_file() or read_settings(copy) != read_settings(config):
        raise ValueError(f"{folder} has a run with other settings than {config}: choose another --out")
    return read_log(folder, "end")[-1]


def read_settings(path: Path) -> dict:
    """Return the settings of a config file under today's names: a copy that version 0.1 made has its names."""
    content = read_yaml(path)
    if not isinstance(content, dict) or not isinstance(content.get("cfg", {}), dict):
        raise ValueError(f"{path} is not a config file: expected fields with their values")
    return translate_fields(content.get("cfg", content))


def row(name: str, ends: list[dict]) -> str:
    """Return a line of the table from the runs' last log lines."""
    from fastmlp.study.scaling_laws import mean_interval

    tops, seconds = [end["eval_top1"] for end in ends], [end["train_s"] for end in ends]
    _, half = mean_interval(tops)
    spread = f" ± {100 * half:.2f} ({100 * min(tops):.2f} to {100 * max(tops):.2f})" if len(ends) > 1 else ""
    reached = statistics.mean(tops) >= GOAL
    time = (
        f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        if reached
        else f"not in {statistics.median(seconds):.0f}"
    )
    return f"| {name} | {100 * statistics.mean(tops):.2f}{spread} | {len(ends)} | {time} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=cli.summary(__doc__))
    rows = sorted((HERE / "configs" / "speedrun").glob("*.yaml"))
    parser.add_argument(
        "configs", type=cli.path, nargs="*", help="config files of recipes/pretrain.py (default: the record's)"
    )
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds, from 0 (default: 10)")
    parser.add_argument("--out", type=cli.path, default=Path("runs/speedrun"), help="(default: %(default)s)")
    parser.add_argument("--data-dir", type=cli.path, default=Path("data"), help="(default: %(default)s)")
    options = parser.parse_args()
    if not 1 <= options.seeds <= MAX_SEEDS:
        raise ValueError(f"--seeds={options.seeds}: expected 1 to {MAX_SEEDS:,}")
    for config in options.configs:
        read_settings(config)  # an error in any file is raised before the first run
    table = ["| settings | test top-1, mean ± 95 % interval [%] | seeds | seconds to 90.0 % |", "|---|---|---|---|"]
    configs = options.configs or rows[-1:]
    for config in configs:
        seeds = range(1 if config.stem in ONE_SEED else options.seeds)
        ends = [
            train(config, seed, options.out / f"{config.stem}-seed{seed}", options.data_dir)
            for seed in tqdm(seeds, desc=config.stem, unit=" runs")
        ]
        table.append(row(config.stem, ends))
    print("\n".join(table))


if __name__ == "__main__":
    cli.run(main)
