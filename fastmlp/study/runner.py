"""Execution of a study's plan: sequences of runs in worker processes; an interrupted run resumes."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..arch import parse_arch
from ..atomic import no_links, write_atomic
from ..config import ProbeConfig
from ..cost.budget import TrainingJob, predict
from ..cost.hardware import Machine
from ..messages import progress_bar, shown
from ..training.branch import branch
from ..training.run_folder import differences, locked
from ..training.run_log import settings_text
from ..worker_pool import Pool, num_cores
from . import gradient_spectra
from .plan import DIVERGED, PlannedRun, group_by_shared_start, plan_runs
from .study_file import Study

STARTING_S = 1.0  # seconds of a run outside training: opening betons, the first step, evaluation


@dataclass(frozen=True)
class RunSequence:
    """Runs trained one after another, each from where the cool-down of the run before it began."""

    runs: list[PlannedRun]
    probe: str
    threads: int
    gradients: int = 0  # images whose gradient is measured at the end

    def flop(self) -> float:
        """Return the FLOP of the training that the runs do not share with a shorter one."""
        found = [run.metadata()["flop"] for run in self.runs]
        return found[0] + sum(
            longer - (1 - _cooldown_share(before)) * shorter
            for (shorter, longer), before in zip(pairwise(found), self.runs[:-1], strict=True)
        )

    def is_done(self) -> bool:
        return all(run.top1(self.probe) is not None and not self.lacks_gradients(run) for run in self.runs)

    def lacks_gradients(self, run: PlannedRun) -> bool:
        measured = (run.folder / gradient_spectra.NAME).exists() or (run.folder / DIVERGED).exists()
        return bool(self.gradients) and not run.is_trial and not measured


def _cooldown_share(run: PlannedRun) -> float:
    """Return the share of the run that is its cool-down."""
    cooldown, epochs = (float(str(text).split()[0]) for text in (run.settings.cooldown, run.settings.epochs))
    return cooldown / epochs


def make_sequences(study: Study, runs: Sequence[PlannedRun], parallel: int) -> list[RunSequence]:
    """Return the sequences of runs, each the job of one of `parallel` processes, which share the cores."""
    threads = max(1, num_cores() // parallel)
    groups = group_by_shared_start(study, list(runs))
    return [RunSequence(group, study.probe, threads, study.gradients) for group in groups]


def predicted_s(sequence: RunSequence, machine: Machine) -> float:
    """Return the predicted seconds (fastmlp.cost.budget) of the sequence if it has the machine to itself."""
    longest = sequence.runs[-1]
    metadata, settings = longest.metadata(), longest.settings
    job = TrainingJob(
        parse_arch(settings.arch),
        settings.res,
        longest.spec.num_classes,
        metadata["samples"],
        settings.batch_size,
        metadata["epochs"],
        settings.optimizer,
        min(settings.micro_batch_size or 1024, settings.batch_size),
        settings.res,
    )
    images = sequence.flop() / metadata["flop"] * metadata["images_seen"]
    return images / predict(job, machine).images_per_s + STARTING_S * len(sequence.runs)


def check_folders(runs: Sequence[PlannedRun]) -> None:
    """Raise ValueError that names the folder if a run's folder holds a run of other settings."""
    for run in runs:
        if (run.folder / "config.yaml").exists() and (differ := differences(run.folder, run.settings)):
            raise ValueError(
                f"{run.folder} holds a run of other settings ({', '.join(differ)}): choose another --out, "
                "or delete that folder"
            )


def run_study(study: Study, out: Path, data_dir: Path, parallel: int) -> None:
    """Train the unfinished runs: those of the searches, which may lead to more, then the runs that count.

    `parallel` sequences of runs share the cores. A run whose loss is not finite counts as finished. Raises ValueError
    if a folder holds a run of other settings or another process runs the study, and the runs' errors with their names.
    """
    out.mkdir(parents=True, exist_ok=True)
    with locked(out) as have_lock, Pool(train_sequence, parallel) as pool:
        if not have_lock:
            raise ValueError(f"another process is running this study in {out}: wait for it, or choose another --out")
        _run_searches(study, out, data_dir, pool, parallel)
        plan = plan_runs(study, out, data_dir)
        check_folders(plan.runs)
        sequences = make_sequences(study, plan.runs, parallel)
        unfinished = sorted((one for one in sequences if not one.is_done()), key=RunSequence.flop, reverse=True)
        total, left = (sum(one.flop() for one in some) for some in (sequences, unfinished))
        if unfinished:
            with _bar(study, "runs", total, total - left) as bar, _resumable(out):
                for flop in pool.map(unfinished):
                    bar.update(flop)


def _run_searches(study: Study, out: Path, data_dir: Path, pool: Pool, parallel: int) -> None:
    """Run the trials that the searches ask for, until each has chosen."""
    plan = plan_runs(study, out, data_dir)
    waiting = any(trial.top1() is None for trial in plan.trials)
    if not waiting:
        return
    with _bar(study, "search", 0, 0) as bar, _resumable(out):
        while waiting:
            check_folders(plan.trials)
            sequences = make_sequences(study, plan.trials, parallel)
            unfinished = sorted((one for one in sequences if not one.is_done()), key=RunSequence.flop, reverse=True)
            bar.total = sum(one.flop() for one in sequences)
            bar.n = bar.total - sum(one.flop() for one in unfinished)
            bar.refresh()
            for flop in pool.map(unfinished):
                bar.update(flop)
            waiting = bool(unfinished)
            plan = plan_runs(study, out, data_dir)


def _bar(study: Study, name: str, total: float, initial: float) -> Any:
    return progress_bar(
        total=total,
        initial=initial,
        unit="FLOP",
        unit_scale=True,
        dynamic_ncols=True,
        desc=f"{study.title}, {name}",
    )


@contextmanager
def _resumable(out: Path) -> Iterator[None]:
    """Add to the error of a worker how to go on."""
    try:
        yield
    except ChildProcessError as error:
        raise ChildProcessError(f"{out}: {error}. The same command resumes the study") from error


def train_sequence(sequence: RunSequence) -> float:
    """Train the runs in a worker process and return their FLOP. ValueError names the run."""
    import torch

    torch.set_num_threads(sequence.threads)
    for number, run in enumerate(sequence.runs):
        try:
            if run.top1() is None:
                _train(run, sequence.runs[number - 1] if number else None, sequence.threads)
            if (run.folder / DIVERGED).exists():
                for longer in sequence.runs[number + 1 :]:
                    _mark_diverged(longer, (run.folder / DIVERGED).read_text(encoding="utf-8"))
                break
            if sequence.probe and not run.is_trial and run.top1(sequence.probe) is None:
                _probe(run, sequence.probe)
            if sequence.lacks_gradients(run):
                gradient_spectra.measure(run.folder, run.settings, run.spec, sequence.gradients)
        except ValueError as error:
            raise ValueError(f"{run.folder.name}: {error}") from error
    return sequence.flop()


def _mark_diverged(run: PlannedRun, why: str) -> None:
    """Write the settings and the reason, after which the run counts as finished with top-1 0."""
    run.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(run.folder / "config.yaml", settings_text(run.settings))
    write_atomic(run.folder / DIVERGED, why)


def _train(run: PlannedRun, parent: PlannedRun | None, threads: int) -> None:
    from ..models.weights import build_model
    from ..training.loop import Interrupted
    from ..training.run import run_training

    if parent:
        branch(parent.folder, run.settings, run.folder)
    settings, spec = replace(run.settings, num_workers=max(1, threads // 2)), run.spec
    run.folder.mkdir(parents=True, exist_ok=True)
    with _printing_to(run.folder / "output.txt"):
        try:
            run_training(
                settings,
                spec,
                lambda: build_model(settings.arch, settings.res, spec.num_classes),
                "",
                look_at_test=not run.is_trial,
                only_weights=True,
            )
        except FloatingPointError as error:
            _mark_diverged(run, f"{error}\n")
        except Interrupted as stop:  # a worker's traceback would be printed
            raise SystemExit(128 + stop.number) from None


def _probe(run: PlannedRun, dataset: str) -> None:
    from ..training.transfer import transfer

    res = run.settings.res if dataset == run.settings.dataset else 0
    config = ProbeConfig(
        dataset=dataset,
        data_dir=run.settings.data_dir,
        res=res,
        method="logistic",
        normalization="dataset",  # as all studies have been told so far
        weights=str(run.folder / "final.pt"),
        run_dir=str(run.folder / f"probe-{dataset}"),
    )
    with _printing_to(run.folder / "output.txt"):
        transfer(config)


@contextmanager
def _printing_to(path: Path) -> Any:
    """Append what the process prints to a file, its progress bar and the output of C code included."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(number) for number in (1, 2)]
    with open(path, "a", opener=no_links) as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        with shown():
            yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, fd in zip((1, 2), saved, strict=True):
            os.dup2(fd, number)
            os.close(fd)
