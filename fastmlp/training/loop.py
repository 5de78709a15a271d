"""The loop around the training step: log lines, evaluation, checkpoints, and stopping on a signal."""

import errno
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import device as devices
from .. import plots
from ..atomic import in_one_line
from ..config import to_stored
from ..cost import flops, hardware
from ..data.split import Split
from ..datasets import IMAGENET_MEAN, IMAGENET_STD, SPECS
from ..evaluation.evaluate import DetailedScores, Scores, evaluate_detailed
from ..evaluation.predictions import keep_predictions
from ..messages import logger
from ..models.weights import load_model, save_model
from .checkpoints import Checkpoints
from .run_log import RunLog, training_bar
from .trainer import Trainer


@dataclass(frozen=True)
class Result:
    """The result of a run.

    images_per_s and train_s count only training, without evaluation and checkpoints; images_per_s counts only the steps
    since the run was last started.
    """

    test: Scores | None  # of final.pt on the test images, unless the run does not look at them
    best_top1: float  # of best.pt, on what it was chosen by
    best_scores: Scores | None  # of best.pt on the test images, if it was chosen by others
    validation: Scores | None  # of final.pt on the held-out training images, if there are any
    images_per_s: float
    train_s: float

    @property
    def scores(self) -> Scores:
        """The scores of final.pt on the test images, or on the held-out ones if it did not look at them."""
        found = self.test or self.validation
        assert found is not None
        return found


OWN_STATISTICS_OF_0_1 = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}  # of images that are no known data set
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@cache
def _peak(device: torch.device, threads: int) -> float | None:
    """Return the device's peak, measured once for the many short runs of a study's process: it takes 0.3 to 1 s."""
    return hardware.device_peak_flop_per_s(device)


class Interrupted(KeyboardInterrupt):
    """A signal told the run to stop, and the run has saved a checkpoint."""

    def __init__(self, number: int, checkpoint: Path):
        super().__init__(f"stopped by signal {number}; the same call or command resumes from {checkpoint}")
        self.number, self.checkpoint = number, checkpoint


def fit(
    trainer: Trainer,
    train: Split,
    test: Split | None,  # None: only the held-out images are looked at
    log: RunLog,
    metadata: dict[str, Any],  # saved with the weights: data set, normalisation
    resume: dict[str, Any] | None = None,  # a checkpoint (Checkpoints.newest)
    validation: Split | None = None,  # held-out training images
    evaluate_first: bool = False,  # before the first step
) -> Result:
    """Train until trainer.total_steps; write log lines, checkpoints, best.pt and final.pt into log.folder.

    Evaluates on the held-out images, if there are any, and then looks at the test images once, at the end.

    Raises FloatingPointError, which names the step where the loss stopped being finite and the last checkpoint, and
    Interrupted after SIGINT, SIGTERM or SIGHUP, or when the output is closed.
    """
    run = _Run(trainer, train, test, log, metadata, validation)
    if resume is not None:
        run.restore(resume)
    with (
        _stop_signals() as stop,
        training_bar(
            trainer.total_steps * run.batch_size, run.images_done, show_progress=trainer.context.is_main
        ) as bar,
    ):
        if evaluate_first:
            run.evaluate_head(stop)
        return run.run(stop, bar)


@dataclass(frozen=True)
class StepEvents:
    """What is due after a step because of its number; signals and checkpoint_minutes may add a checkpoint."""

    last: bool  # of the run
    log_now: bool
    epoch_end: bool  # or the run's end
    eval_now: bool
    save_now: bool

    @property
    def any_due(self) -> bool:
        return self.log_now or self.epoch_end or self.eval_now or self.save_now


class _Run:
    """What fit keeps between steps; `state_dict` is the part of it that a checkpoint holds."""

    def __init__(
        self,
        trainer: Trainer,
        train: Split,
        test: Split | None,
        log: RunLog,
        metadata: dict[str, Any],
        validation: Split | None,
    ):
        if test is None and validation is None:
            raise ValueError("nothing to evaluate on: expected held-out images where no test images are looked at")
        self.trainer, self.train, self.test, self.log, self.metadata = trainer, train, test, log, metadata
        self.validation = validation
        config = self.config = trainer.config
        self.is_main = trainer.context.is_main
        self.batch_size = config.batch_size
        self.eval_steps = trainer.steps(config.eval_every)
        self.checkpoint_steps = trainer.steps(config.checkpoint_every)
        # 0 if there is no cool-down or nothing before it: steps_done is never 0 after a step.
        self.cooldown_start_step = trainer.total_steps - trainer.cooldown_steps if trainer.cooldown_steps else 0
        self.checkpoints = Checkpoints(log.folder, config.keep_checkpoints, spare=self.cooldown_start_step)
        self.clock, self.saved_at = _Clock(), time.monotonic()
        self.best_top1, self.loss_steps = -1.0, 0
        self.scores: Scores | None = None  # of the last epoch line, if it has any
        model = trainer.model
        self.flop_per_image = flops.training_flop_per_image(
            model.arch, model.res, model.num_classes, backbone=trainer.backbone
        )

    @cached_property
    def peak_flop_per_s(self) -> float | None:
        """The peak of all devices; a CPU's is measured at the first call in a process."""
        return self.trainer.context.world_size * (_peak(self.trainer.device, torch.get_num_threads()) or 0.0) or None

    @property
    def images_done(self) -> int:
        return self.trainer.steps_done * self.batch_size

    def state_dict(self) -> dict[str, Any]:
        return {
            "config": asdict(self.config),
            "train_beton": self.train.fingerprint,
            "normalization": self._normalization,
            "trainer": self.trainer.state_dict(),
            "train_s": self.clock.seconds,
            "best_top1": self.best_top1,
            "loss_steps": self.loss_steps,
            "log_bytes": self.log.position(),
        }

    @property
    def _normalization(self) -> dict[str, Any]:
        """The mean and std of the images, which may come from the model in config.weights or from a sidecar file."""
        return {name: self.metadata[name] for name in ("mean", "std") if name in self.metadata}

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Take over a state_dict; raise ValueError if it is of another training file, or of another mean or std."""
        if checkpoint["train_beton"] != self.train.fingerprint:
            raise ValueError(
                f"{self.train.path} is not the file that the run in {self.log.folder} was trained on: "
                "restore that file, or start another run with --cfg.run_dir"
            )
        now = self._normalization
        is_known = not now or self.metadata.get("dataset") in SPECS
        before = checkpoint.get("normalization", now if is_known else OWN_STATISTICS_OF_0_1)
        if before != now:
            raise ValueError(
                f"the run in {self.log.folder} normalises images with {before}, now it would with {now}: restore the "
                "model in --cfg.weights or the JSON file beside the beton, or start another run with --cfg.run_dir"
            )
        try:
            self.trainer.load_state_dict(checkpoint["trainer"])
        except (KeyError, IndexError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            path = self.checkpoints.path(checkpoint["trainer"]["steps_done"])
            raise ValueError(
                f"{path} does not fit this run: delete it to resume from another ({in_one_line(error)})"
            ) from error
        self.clock.seconds, self.best_top1 = checkpoint["train_s"], checkpoint["best_top1"]
        self.loss_steps = checkpoint["loss_steps"]

    def evaluate_head(self, stop: list[int]) -> None:
        """Write a "head" line on the model that training begins with; if nothing becomes better, it is best.pt."""
        scores = self._evaluate()
        self.log.write("head", **self._score_values(scores))
        if self.is_main:
            with _output(stop):
                logger.info(f"before training{self._describe(scores)}")

    def run(self, stop: list[int], bar: Any) -> Result:
        """Take the steps that are left; `stop` receives signals (_stop_signals)."""
        trainer = self.trainer
        started_at, started_s = trainer.steps_done, self.clock.seconds
        self.step_line = self.epoch_line = trainer.steps_done, self.clock.seconds
        self._restart_clock()
        trainer.timer.seconds()  # drops what was counted before the first step
        while trainer.steps_done < trainer.total_steps:
            epoch, first_batch = divmod(trainer.steps_done, self.train.batches_per_epoch)
            for images, labels in self.train.batches(epoch, first_batch):
                loss = trainer.step(images, labels)
                self.loss_steps += 1
                with _output(stop):
                    bar.update(self.batch_size)
                self._after_step(loss, stop)
                if trainer.steps_done == trainer.total_steps:
                    break
        self.clock.pause()
        steps, seconds = trainer.steps_done - started_at, self.clock.seconds - started_s
        # There are no scores if the run had been killed between its last checkpoint and its last line.
        scores = self.scores or self._evaluate()
        images_per_s = steps * self.batch_size / max(seconds, 1e-9)
        if self.validation is None:
            return Result(scores, self.best_top1, None, None, images_per_s, self.clock.seconds)
        test, best = self._look_at_test() if self.test is not None else (None, None)
        return Result(test, self.best_top1, best, scores, images_per_s, self.clock.seconds)

    def _after_step(self, loss: Tensor, stop: list[int]) -> None:
        """Log, evaluate and save if that is due; raise Interrupted, after a checkpoint, if a signal asked to stop."""
        events, context = self._events(), self.trainer.context
        # Several processes have to agree on the step at which they stop, and each agreement makes them wait.
        sync_step = events.any_due or (context.world_size == 1 and (bool(stop) or self._checkpoint_due()))
        if not sync_step:
            return
        self._check_finite()
        if events.log_now:
            self._log_step(float(context.all_reduce_mean(loss)))
        if events.epoch_end or events.eval_now:
            self.scores = self._log_epoch(events.eval_now, stop)
        stop_requested = context.all_reduce_any(bool(stop))
        if events.save_now or stop_requested or context.all_reduce_any(self._checkpoint_due()):
            checkpoint = self._save()
            if stop_requested and not events.last:
                raise Interrupted(stop[0] if stop else signal.SIGTERM, checkpoint)

    def _events(self) -> StepEvents:
        done, last = self.trainer.steps_done, self.trainer.steps_done == self.trainer.total_steps
        return StepEvents(
            last=last,
            log_now=done % self.config.log_every == 0,
            epoch_end=last or done % self.train.batches_per_epoch == 0,
            eval_now=last or done % self.eval_steps == 0,
            save_now=done == self.cooldown_start_step
            or (bool(self.checkpoint_steps) and done % self.checkpoint_steps == 0),
        )

    def _checkpoint_due(self) -> bool:
        minutes = self.config.checkpoint_minutes
        return bool(minutes) and time.monotonic() - self.saved_at > 60 * minutes

    def _check_finite(self) -> None:
        try:
            self.trainer.check_finite()
        except FloatingPointError as error:
            newest = self.checkpoints.paths()
            hint = f"; the last checkpoint is {newest[-1]}" if newest else "; there is no checkpoint yet"
            raise FloatingPointError(f"{error}{hint}") from None

    def _log_step(self, loss: float) -> None:
        """Write a "step" line: loss, rates, and where the time since the last one went."""
        trainer = self.trainer
        phases = trainer.timer.seconds()
        self.clock.pause()
        steps, seconds = trainer.steps_done - self.step_line[0], self.clock.seconds - self.step_line[1]
        self.step_line = trainer.steps_done, self.clock.seconds
        images_per_s = steps * self.batch_size / seconds
        mfu = flops.mfu(images_per_s, self.flop_per_image, self.peak_flop_per_s)
        self.log.write(
            "step",
            step=trainer.steps_done,
            loss=loss,
            lr=trainer.optimizer.param_groups[0]["lr"],
            images_per_s=round(images_per_s, 1),
            mfu=mfu and round(mfu, 4),
            **{
                f"{name}_s_per_step": round(phases.get(name, 0.0) / steps, 6)
                for name in ("data", "forward_backward", "optimizer")
            },
            data_wait_share=round(phases.get("data", 0.0) / seconds, 4),
            peak_memory_bytes=devices.peak_memory_bytes(trainer.device),
        )
        self._restart_clock()

    def _log_epoch(self, eval_now: bool, stop: list[int]) -> Scores | None:
        """Write an "epoch" line and print it; return the scores if eval_now."""
        trainer = self.trainer
        train_loss = trainer.pop_mean_loss(self.loss_steps)
        self.loss_steps = 0
        self.clock.pause()
        steps, seconds = trainer.steps_done - self.epoch_line[0], self.clock.seconds - self.epoch_line[1]
        self.epoch_line = trainer.steps_done, self.clock.seconds
        epoch = trainer.steps_done / self.train.batches_per_epoch
        line = {
            "epoch": round(epoch, 4),
            "step": trainer.steps_done,
            "train_loss": train_loss,
            "lr": trainer.optimizer.param_groups[0]["lr"],
            "images_per_s": round(steps * self.batch_size / seconds, 1),
        }
        epochs = trainer.total_steps / self.train.batches_per_epoch
        message = f"epoch {epoch:4.4g}/{epochs:g}  train loss {train_loss:.4f}"
        scores = self._evaluate() if eval_now else None
        if scores:
            line |= self._score_values(scores)
            message += self._describe(scores)
        self.log.write("epoch", **line)
        if self.is_main:
            with _output(stop):
                logger.info(f"{message}  {line['images_per_s']:,.0f} images/sec")
        self._restart_clock()
        return scores

    @property
    def _split(self) -> str:
        """What the log calls the images that the run evaluates on."""
        return "eval" if self.validation is None else "val"

    def _score_values(self, scores: Scores) -> dict[str, float]:
        return {f"{self._split}_{name}": getattr(scores, name) for name in ("top1", "top5", "loss")}

    def _describe(self, scores: Scores) -> str:
        where = "test" if self.validation is None else "validation"
        return f"  {where} top-1 {scores.top1:.2%}  top-5 {scores.top5:.2%}"

    @property
    def _evaluated(self) -> nn.Module:
        """What takes the batches of the splits: the head alone, if these hold features."""
        return self.trainer.model.linear_out if self.trainer.backbone == "cached" else self.trainer.model

    def _evaluate(self) -> Scores:
        """Evaluate the moving average, or the weights if there is none; save them if they are the best or the last."""
        trainer, scores = self.trainer, None
        if self.is_main:
            with trainer.ema_weights():
                split = self.validation or self.test
                assert split is not None
                loading = threading.Thread(target=plots.load_matplotlib)  # meanwhile, for the curve
                loading.start()
                found = evaluate_detailed(self._evaluated, split, show_progress=False)
                loading.join()
                scores = found.scores
                if scores.top1 > self.best_top1:
                    self.best_top1 = scores.top1
                    self._save_model("best", scores)
                if trainer.steps_done == trainer.total_steps:
                    self._save_model("final", scores)
                    if self.validation is None:
                        self._keep_predictions(found)
        scores, self.best_top1 = trainer.context.broadcast((scores, self.best_top1))
        return scores

    def _look_at_test(self) -> tuple[Scores, Scores]:
        """Return the test scores of final.pt and best.pt. The trainer's model has the weights of best.pt afterwards."""
        found = []
        if self.is_main:
            assert self.test is not None
            for name in ("final", "best"):
                state_dict = load_model(self.log.folder / f"{name}.pt")[0].state_dict()
                self.trainer.model.load_state_dict(state_dict)
                found.append(evaluate_detailed(self._evaluated, self.test, show_progress=False))
            self._keep_predictions(found[0])
        return self.trainer.context.broadcast([one.scores for one in found])

    def _save_model(self, name: str, scores: Scores) -> None:
        stored = to_stored({f"{self._split}_top1": scores.top1, f"{self._split}_top5": scores.top5})
        metadata = {**self.metadata, **stored, "steps": self.trainer.steps_done}
        save_model(self.log.folder / f"{name}.pt", self.trainer.model, metadata)

    def _keep_predictions(self, found: DetailedScores) -> None:
        assert self.test is not None
        keep_predictions(self.log.folder, found, self.metadata.get("classes", ()), self.test)

    def _save(self) -> Path:
        """Save a checkpoint; return its path once it is on disk."""
        path = self.checkpoints.path(self.trainer.steps_done)
        trainer = self.trainer
        self.clock.pause()
        # The checkpoint holds one loss_sum for all processes.
        trainer.loss_sum.copy_(trainer.context.all_reduce_mean(trainer.loss_sum))
        if self.is_main:
            if trainer.steps_done == self.cooldown_start_step and self.best_top1 >= 0:
                self.checkpoints.keep_best(self.log.folder / "best.pt")
            self.checkpoints.save(trainer.steps_done, self.state_dict())
        trainer.context.broadcast(None)  # no process stops before the file is on disk
        self.saved_at = time.monotonic()
        self._restart_clock()
        return path

    def _restart_clock(self) -> None:
        """Count time as training again, after something else."""
        self.trainer.timer.mark("aside")
        self.clock.go()


class _Clock:
    """Seconds of training; paused during anything else."""

    def __init__(self) -> None:
        self.seconds, self._since = 0.0, time.perf_counter()

    def pause(self) -> None:
        self.seconds += time.perf_counter() - self._since

    def go(self) -> None:
        self._since = time.perf_counter()


@contextmanager
def _output(stop: list[int]) -> Iterator[None]:
    """Ask for a stop, as SIGHUP does, if the pipe or the terminal that is written to has been closed."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        stop.append(signal.SIGPIPE)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP (a closed terminal) in a list, so that the loop stops after a checkpoint.

    A second SIGINT raises KeyboardInterrupt at once. A second SIGTERM does not, since torchrun sends it to processes
    that are still saving.
    """
    stop: list[int] = []

    def collect(number: int, frame: Any) -> None:
        if stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.append(number)

    if threading.current_thread() is not threading.main_thread():  # only there does Python allow handlers
        yield stop
        return
    numbers = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]  # as nohup sets it
    before = {number: signal.signal(number, collect) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
