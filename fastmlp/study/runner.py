"""Does what a study planned: chains of runs in processes, each run going on where it was."""

import os
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..arch import parse_arch
from ..atomic import write_atomic
from ..config import ProbeConfig
from ..cost.budget import TrainingJob, predict
from ..cost.hardware import Machine
from ..training.branch import branch
from ..training.run_folder import differences, locked
from ..training.run_log import settings_text
from ..worker_pool import Pool, num_cores
from .plan import DIVERGED, PlannedRun, Study, chains, plan_runs

STARTING_S = 2.5  # of a run that is not training: opening betons, the first step, evaluation, pictures


@dataclass(frozen=True)
class Chain:
    """Runs of which each but the first goes on from where the cool-down of the one before it began."""

    runs: list[PlannedRun]
    probe: str
    threads: int

    def flop(self) -> float:
        """Of what is new in each run."""
        found = [run.metadata()["flop"] for run in self.runs]
        return found[0] + sum(
            longer - (1 - _cooldown(before)) * shorter
            for (shorter, longer), before in zip(pairwise(found), self.runs[:-1], strict=True)
        )

    def is_done(self) -> bool:
        return all(run.top1(self.probe) is not None for run in self.runs)


def _cooldown(run: PlannedRun) -> float:
    """Its share of the run."""
    amounts = [float(str(text).split()[0]) for text in (run.settings.cooldown, run.settings.epochs)]
    return amounts[0] / amounts[1]


def chains_of(study: Study, runs: Sequence[PlannedRun], parallel: int) -> list[Chain]:
    """What goes to processes, `parallel` of which share the cores."""
    threads = max(1, num_cores() // parallel)
    return [Chain(chain, study.probe, threads) for chain in chains(study, list(runs))]


def predicted_s(chain: Chain, machine: Machine) -> float:
    """What the chain will take alone on the machine, by fastmlp.cost.budget."""
    metadata, settings = chain.runs[-1].metadata(), chain.runs[-1].settings
    run = TrainingJob(
        parse_arch(settings.arch),
        settings.res,
        chain.runs[-1].spec.num_classes,
        metadata["samples"],
        settings.batch_size,
        metadata["epochs"],
        settings.optimizer,
        min(settings.micro_batch_size or 1024, settings.batch_size),
        settings.res,
    )
    images = chain.flop() / metadata["flop"] * metadata["images_seen"]
    return images / predict(run, machine).images_per_s + STARTING_S * len(chain.runs)


def check(runs: Sequence[PlannedRun]) -> None:
    """Raises ValueError naming a folder that holds a run of other settings than planned."""
    for run in runs:
        if (run.folder / "config.yaml").exists() and (differ := differences(run.folder, run.settings)):
            raise ValueError(
                f"{run.folder} holds a run of other settings ({', '.join(differ)}): choose another --out, "
                "or delete that folder"
            )


def run_study(study: Study, out: Path, data_dir: Path, parallel: int) -> None:
    """Trains what is not done, first the search and then, with what it chose, the runs that count; `parallel` chains at
    a time, which share the cores. A run whose loss is not finite counts as done.

    Raises ValueError where a folder holds a run of other settings or the study is running already, and what the runs
    raise, naming the run.
    """
    out.mkdir(parents=True, exist_ok=True)
    with locked(out) as alone, Pool(train_chain, parallel) as pool:
        if not alone:
            raise ValueError(f"another process is at this study in {out}: wait for it, or choose another --out")
        for which, name in enumerate(("search", "runs")):
            both = plan_runs(study, out, data_dir)
            check([*both[0], *both[1]])
            every = chains_of(study, both[which], parallel)
            todo = sorted((chain for chain in every if not chain.is_done()), key=Chain.flop, reverse=True)
            total, left = (sum(chain.flop() for chain in chains) for chains in (every, todo))
            if not todo:
                continue
            with tqdm(
                total=total,
                initial=total - left,
                unit="FLOP",
                unit_scale=True,
                dynamic_ncols=True,
                desc=f"{study.title}, {name}",
            ) as bar:
                try:
                    for flop in pool.map(todo):
                        bar.update(flop)
                except ChildProcessError as error:
                    raise ChildProcessError(f"{out}: {error}. The same command goes on where it was") from error


def train_chain(chain: Chain) -> float:
    """In a process of its own. Returns the chain's FLOP. Errors of input name the run."""
    import torch

    torch.set_num_threads(chain.threads)
    for number, run in enumerate(chain.runs):
        try:
            if run.top1() is None:
                _train(run, chain.runs[number - 1] if number else None, chain.threads)
            if (run.folder / DIVERGED).exists():
                for longer in chain.runs[number + 1 :]:
                    _diverged(longer, (run.folder / DIVERGED).read_text(encoding="utf-8"))
                break
            if chain.probe and run.top1(chain.probe) is None:
                _probe(run, chain.probe)
        except ValueError as error:
            raise ValueError(f"{run.folder.name}: {error}") from error
    return chain.flop()


def _diverged(run: PlannedRun, why: str) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(run.folder / "config.yaml", settings_text(run.settings))
    write_atomic(run.folder / DIVERGED, why)


def _train(run: PlannedRun, parent: PlannedRun | None, threads: int) -> None:
    from ..models.weights import build_model
    from ..training import run as session

    if parent:
        branch(parent.folder, run.settings, run.folder)
    settings, spec = replace(run.settings, num_workers=max(1, threads // 2)), run.spec
    run.folder.mkdir(parents=True, exist_ok=True)
    with _printing_to(run.folder / "output.txt"):
        try:
            session.train(settings, spec, lambda: build_model(settings.arch, settings.res, spec.num_classes), "")
        except FloatingPointError as error:
            _diverged(run, f"{error}\n")


def _probe(run: PlannedRun, dataset: str) -> None:
    from ..training.transfer import fit_head, transfer

    res = run.settings.res if dataset == run.settings.dataset else 0
    config = ProbeConfig(
        dataset=dataset,
        data_dir=run.settings.data_dir,
        res=res,
        method="logistic",
        weights=str(run.folder / "final.pt"),
        run_dir=str(run.folder / f"probe-{dataset}"),
    )
    with _printing_to(run.folder / "output.txt"):
        fit_head(*transfer(config, "probe"))


@contextmanager
def _printing_to(path: Path) -> Any:
    """What the run prints, its progress bar among it."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    with path.open("a") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, fd in zip((1, 2), kept, strict=True):
            os.dup2(fd, number)
            os.close(fd)
