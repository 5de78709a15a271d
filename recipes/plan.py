"""Plans a run for the time or the FLOP that you have: width, depth, share of the data, epochs, and its command.

    python recipes/plan.py --card 4090 --hours 24 --dataset imagenet21k
    python recipes/plan.py --flop 1e18 --dataset imagenet21k --card A5000
    python recipes/plan.py --hours 2 --dataset fashion_mnist --study runs/study-scaling_law
    python recipes/plan.py --dataset fashion_mnist --study runs/study-scaling_law --backtest

Without --card it plans for the device here. With --study, a folder that recipes/scaling.py has written on the same data
set, candidates are ranked by the error that a law fitted to its runs predicts, and plan/ in that folder gets a picture
of whether the sizes' learning curves collapse. Without it, only the paper's split of compute between parameters and
images ranks them, and no error is predicted. --backtest predicts the study's largest runs from its smaller ones.
"""

import argparse
import math
from pathlib import Path

from fastmlp import cli
from fastmlp.cost.hardware import CARDS
from fastmlp.planner.candidates import DEFAULT_ANCHOR, PUBLISHED, Limit


def main() -> None:
    parser = argparse.ArgumentParser(description=cli.summary(__doc__), allow_abbrev=False)
    parser.add_argument("--dataset", required=True, help="such as imagenet21k; its betons need not be here")
    parser.add_argument("--card", choices=CARDS, help="(default: the device here)")
    parser.add_argument(
        "--precision", choices=("auto", "bfloat16", "tf32", "float32"), default="auto", help="of --card"
    )
    parser.add_argument("--hours", type=float, help="time that the run may take")
    parser.add_argument("--flop", type=float, help="FLOP that it may take, 2 for each multiply-accumulate")
    parser.add_argument("--study", type=cli.path, help="folder of a study on this data set (recipes/scaling.py)")
    parser.add_argument(
        "--backtest", action="store_true", help="predict the study's largest runs from its smaller ones"
    )
    parser.add_argument("--images", type=int, default=0, help="training images (default: the data set's)")
    parser.add_argument("--res", type=int, default=0, help="side of the images [pixels] (default: the data set's)")
    parser.add_argument("--loader", type=float, help="images/sec that the host's loader reaches (benchmarks/loader.py)")
    parser.add_argument("--anchor", choices=PUBLISHED, default=DEFAULT_ANCHOR, help="published run without --study")
    parser.add_argument("--rows", type=int, default=5, help="of the table (default: %(default)s)")
    parser.add_argument("--data-dir", type=cli.path, default=Path("data"), help="folder of the betons (./data)")
    options = parser.parse_args()
    if options.backtest and not options.study:
        raise ValueError("--backtest needs --study, a folder that python recipes/scaling.py STUDY.yaml writes")
    if options.loader is not None and not 0 < options.loader < math.inf:
        raise ValueError(f"--loader={options.loader:g}: expected images/sec above 0")
    if options.rows < 1:
        raise ValueError(f"--rows={options.rows}: expected 1 or more")

    with cli.loading():
        from fastmlp.planner import command as plan_command

    if options.backtest:
        print(plan_command.backtest_study(options.study, options.dataset, options.data_dir))
        return
    limit = Limit(options.hours, options.flop)
    print(plan_command.plan_run(limit=limit, **{name: getattr(options, name) for name in plan_command.OPTIONS}))


if __name__ == "__main__":
    cli.run(main)
