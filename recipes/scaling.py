"""Runs studies: many training runs planned from one YAML file, resumed run by run, and reported as tables.

    python recipes/scaling.py recipes/studies/scaling_law.yaml --plan      # the runs, FLOP, predicted minutes
    python recipes/scaling.py recipes/studies/scaling_law.yaml             # all of them
    python recipes/scaling.py recipes/studies/*.yaml --results             # the tables, of the finished runs

After an interruption the same command resumes; finished runs are skipped. A study writes results.jsonl (a line for each
run), table.md, pictures, and a folder for each run below runs/study-<name of its file>. --quick runs a version of a few
minutes (below runs/quick-<name>). fastmlp/study/plan.py describes the YAML file; recipes/studies/README.md has the
results of the studies there on Fashion-MNIST.
"""

import argparse
from pathlib import Path

from fastmlp import cli


def main() -> None:
    parser = argparse.ArgumentParser(description=cli.summary(__doc__))
    parser.add_argument("studies", type=cli.path, nargs="+", help="YAML files")
    parser.add_argument("--plan", action="store_true", help="print the runs and their predicted cost, train nothing")
    parser.add_argument(
        "--results", action="store_true", help="write tables and pictures of the finished runs, train nothing"
    )
    parser.add_argument("--quick", action="store_true", help="run the short version that the file gives")
    parser.add_argument("--out", type=cli.path, default=Path("runs"), help="where each study's folder goes (./runs)")
    parser.add_argument("--data-dir", type=cli.path, default=Path("data"), help="folder of the betons (./data)")
    parser.add_argument(
        "--parallel",
        type=int,
        default=0,
        help="runs at the same time, which share the cores (default: one per core; 1 on a GPU)",
    )
    options = parser.parse_args()
    if options.parallel < 0:
        raise ValueError(f"--parallel={options.parallel}: expected 0 or more")

    with cli.loading():
        from fastmlp.study.plan import plan_runs, read_study
        from fastmlp.study.report import write_report
        from fastmlp.study.runner import check_folders, run_study

    if len({path.stem for path in options.studies}) < len(options.studies):
        raise ValueError("two of the studies have the same file name, which names their folders: rename one")
    studies = {
        path: read_study(path, options.quick) for path in options.studies
    }  # an error in any file is raised before the first run
    folders = {path: options.out / f"{'quick' if options.quick else 'study'}-{path.stem}" for path in studies}
    for path, study in studies.items():
        try:
            plan_runs(study, folders[path], options.data_dir)
        except ValueError as error:  # such as an unknown data set
            raise ValueError(f"{path}: {error}") from error
    for path, study in studies.items():
        out = folders[path]
        if options.plan:
            print_plan(study, *plan_runs(study, out, options.data_dir), options.parallel)
            continue
        if not options.results:
            run_study(study, out, options.data_dir, options.parallel or default_parallel())
        searches, runs = plan_runs(study, out, options.data_dir)
        check_folders([*searches, *runs])
        print(write_report(study, runs, searches, out) + f"\n{out}: results.jsonl, table.md, pictures")


def default_parallel() -> int:
    from fastmlp import device as devices
    from fastmlp.worker_pool import num_cores

    return 1 if devices.select("auto").type != "cpu" else num_cores()


def print_plan(study, searches: list, runs: list, parallel: int) -> None:
    from fastmlp import device as devices
    from fastmlp.cost.hardware import this_machine
    from fastmlp.study.runner import check_folders, make_sequences, predicted_s

    check_folders([*searches, *runs])
    machine, total_s = this_machine(devices.select("auto")), 0.0
    every = make_sequences(study, searches, parallel or default_parallel()) + make_sequences(
        study, runs, parallel or default_parallel()
    )
    print(f"{study.title}: {len(searches)} runs of the search, {len(runs)} that count")
    for sequence in every:
        seconds = 0.0 if sequence.is_done() else predicted_s(sequence, machine)
        total_s += seconds
        for run in sequence.runs:
            metadata = run.metadata()
            print(
                f"  {run.folder.name:60s} {metadata['parameters']:12,} parameters {metadata['samples']:11,} images "
                f"{metadata['epochs']:6.4g} epochs {metadata['flop']:9.2e} FLOP"
            )
        print(f"  {'done' if sequence.is_done() else f'{seconds:.0f} s'}")
    print(
        f"predicted: {total_s / 60:.1f} minutes in all, {sum(sequence.flop() for sequence in every):.2e} FLOP, on "
        f"{machine.name}"
    )


if __name__ == "__main__":
    cli.run(main)
