"""Does studies: many runs described by one YAML file each, planned first, resumed run by run, told as tables.

    python recipes/scaling.py recipes/studies/scaling_law.yaml --plan      # which runs, FLOP, predicted minutes
    python recipes/scaling.py recipes/studies/scaling_law.yaml             # all of them
    python recipes/scaling.py recipes/studies/*.yaml --results             # the tables, from the runs that are done

Interrupted, the same command goes on; what is done is skipped. A study leaves results.jsonl (a line for each run),
table.md, pictures, and a folder for each run below runs/study-<its file's name>. --quick does a version of a few
minutes (below runs/quick-<name>). fastmlp/study.py tells what a study's file may say; recipes/studies/README.md what
the ones there found on Fashion-MNIST.
"""

import argparse
from pathlib import Path

from fastmlp import cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", type=Path, nargs="+", help="YAML files")
    parser.add_argument("--plan", action="store_true", help="tell what would be run, and end")
    parser.add_argument("--results", action="store_true", help="tables and pictures of what is done, and end")
    parser.add_argument("--quick", action="store_true", help="the file's short version")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="a folder for each study goes there (./runs)")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of the betons (./data)")
    parser.add_argument(
        "--parallel",
        type=int,
        default=0,
        help="runs at a time, which share the cores (default: one per core; 1 on a GPU)",
    )
    options = parser.parse_args()
    if options.parallel < 0:
        raise ValueError(f"--parallel={options.parallel}: expected a number of runs")

    from fastmlp.study.plan import plan_runs, read_study
    from fastmlp.study.report import write_report
    from fastmlp.study.runner import check, run_study

    if len({path.stem for path in options.studies}) < len(options.studies):
        raise ValueError("two of the studies have the same file name, after which their folders are called")
    studies = {path: read_study(path, options.quick) for path in options.studies}  # mistakes are told before any run
    for path, study in studies.items():
        out = options.out / f"{'quick' if options.quick else 'study'}-{path.stem}"
        if options.plan:
            print_plan(study, *plan_runs(study, out, options.data_dir), options.parallel)
            continue
        if not options.results:
            run_study(study, out, options.data_dir, options.parallel or at_a_time())
        searches, runs = plan_runs(study, out, options.data_dir)
        check([*searches, *runs])
        print(write_report(study, runs, searches, out) + f"\n{out}: results.jsonl, table.md, pictures")


def at_a_time() -> int:
    from fastmlp import device as devices
    from fastmlp.worker_pool import num_cores

    return 1 if devices.select("auto").type == "cuda" else num_cores()


def print_plan(study, searches: list, runs: list, parallel: int) -> None:
    from fastmlp import device as devices
    from fastmlp.cost.hardware import this_machine
    from fastmlp.study.runner import chains_of, check, predicted_s

    check([*searches, *runs])
    machine, total_s = this_machine(devices.select("auto")), 0.0
    every = chains_of(study, searches, parallel or at_a_time()) + chains_of(study, runs, parallel or at_a_time())
    print(f"{study.title}: {len(searches)} runs of the search, {len(runs)} that count")
    for chain in every:
        seconds = 0.0 if chain.is_done() else predicted_s(chain, machine)
        total_s += seconds
        for run in chain.runs:
            metadata = run.metadata()
            print(
                f"  {run.folder.name:60s} {metadata['parameters']:12,} parameters {metadata['samples']:11,} images "
                f"{metadata['epochs']:6.4g} epochs {metadata['flop']:9.2e} FLOP"
            )
        print(f"  {'done' if chain.is_done() else f'{seconds:.0f} s'}")
    print(
        f"predicted: {total_s / 60:.1f} minutes in all, {sum(chain.flop() for chain in every):.2e} FLOP, on "
        f"{machine.name}"
    )


if __name__ == "__main__":
    cli.run(main)
