"""Runs studies: many training runs planned from one YAML file, resumed run by run, and reported as tables.

    python recipes/scaling.py recipes/studies/scaling_law.yaml --plan      # the runs, FLOP, predicted minutes
    python recipes/scaling.py recipes/studies/scaling_law.yaml             # all of them
    python recipes/scaling.py recipes/studies/*.yaml --results             # the tables, of the finished runs

After an interruption the same command resumes; finished runs are skipped. A study writes results.jsonl (a line for each
run), table.md, pictures, and a folder for each run below runs/study-<name of its file>. --quick runs a version of a few
minutes (below runs/quick-<name>). Several studies are one set of claims, whose p values are adjusted for their number:
runs/studies.md. fastmlp/study/study_file.py describes the YAML file; recipes/studies/README.md has the results of the
studies there on Fashion-MNIST.
"""

import argparse
from pathlib import Path

from fastmlp import cli
from fastmlp.atomic import write_atomic


def main() -> None:
    parser = argparse.ArgumentParser(description=cli.summary(__doc__))
    parser.add_argument(
        "studies", type=cli.path, nargs="+", help="YAML files, and folders of other studies' results, for their claims"
    )
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
        from fastmlp.study.plan import plan_runs
        from fastmlp.study.runner import run_study
        from fastmlp.study.study_file import read_study

    others = {path.name: path for path in options.studies if path.is_dir()}
    files = [path for path in options.studies if not path.is_dir()]
    if others and (options.plan or not options.results):
        raise ValueError(f"{next(iter(others.values()))} is a folder, whose claims go with --results: leave it out")
    if len({path.stem for path in options.studies}) < len(options.studies):
        raise ValueError("two of the studies have the same file name, which names their folders: rename one")
    studies = {
        path: read_study(path, options.quick) for path in files
    }  # an error in any file is raised before the first run
    folders = {path: options.out / f"{'quick' if options.quick else 'study'}-{path.stem}" for path in studies}
    for path, study in studies.items():
        try:
            plan_runs(study, folders[path], options.data_dir)
        except ValueError as error:  # such as an unknown data set
            raise ValueError(f"{path}: {error}") from error
    for path, study in studies.items():
        if options.plan:
            print_plan(study, plan_runs(study, folders[path], options.data_dir), options.parallel)
        elif not options.results:
            run_study(study, folders[path], options.data_dir, options.parallel or default_parallel())
            report({path.stem: study}, {path.stem: folders[path]}, options, {})
    if options.results or (len(options.studies) > 1 and not options.plan):
        by_name = {path.stem: study for path, study in studies.items()}
        report(by_name, {path.stem: folders[path] for path in studies}, options, others)


def report(studies: dict, folders: dict[str, Path], options: argparse.Namespace, others: dict[str, Path]) -> None:
    """Write and print the reports of studies whose claims are one set, and the table of the set if it has several.

    Of `others` only the claims are read.
    """
    from fastmlp.study.plan import plan_runs
    from fastmlp.study.report import rows, summary, verdicts, write_report
    from fastmlp.study.runner import check_folders
    from fastmlp.study.verdicts import adjust, read_claims

    plans = {name: plan_runs(study, folders[name], options.data_dir) for name, study in studies.items()}
    tested = {name: read_claims(folder) for name, folder in others.items()}
    for name, study in studies.items():
        check_folders([*plans[name].trials, *plans[name].runs])
        tested[name] = verdicts(study, plans[name], rows(study, plans[name].runs))
    adjusted = iter(adjust([one for claims in tested.values() for one in claims]))
    claims = {name: [next(adjusted) for _ in own] for name, own in tested.items()}
    for name, study in studies.items():
        folders[name].mkdir(parents=True, exist_ok=True)
        print(write_report(study, plans[name], folders[name], claims[name]))
        if (folders[name] / "table.md").exists():
            print(f"{folders[name]}: results.jsonl, table.md, pictures")
    if len(tested) > 1:
        path = options.out / "studies.md"
        write_atomic(path, summary(claims))
        print(f"\n{summary(claims)}\n{path}")


def default_parallel() -> int:
    from fastmlp import device as devices
    from fastmlp.worker_pool import num_cores

    return 1 if devices.select("auto").type != "cpu" else num_cores()


def print_plan(study, plan, parallel: int) -> None:
    from fastmlp import device as devices
    from fastmlp.cost.hardware import this_machine
    from fastmlp.study.runner import check_folders, make_sequences, predicted_s

    check_folders([*plan.trials, *plan.runs])
    machine, total_s = this_machine(devices.select("auto")), 0.0
    parallel = parallel or default_parallel()
    every = make_sequences(study, plan.trials, parallel) + make_sequences(study, plan.runs, parallel)
    grows = ", which may grow" if any(search.best is None for search in plan.searches) else ""
    print(f"{study.title}: {len(plan.trials)} runs of the search{grows}, {len(plan.runs)} that count")
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
