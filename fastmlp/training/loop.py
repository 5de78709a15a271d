"""The loop around the step: evaluation, log lines, checkpoints, and an end whenever one is asked for."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import device as devices
from ..cost import flops as compute
from ..cost import hardware
from ..data.split import Split
from ..evaluation.evaluate import Scores, evaluate
from ..models.weights import save_model
from .checkpoints import Checkpoints
from .run_log import RunLog, progress_bar
from .trainer import Trainer


@dataclass(frozen=True)
class Result:
    """What a run came to. images_per_s and train_s are of training alone, evaluation and checkpoints excluded; the
    rate is of the steps taken since the run was last started."""

    scores: Scores
    best_top1: float
    images_per_s: float
    train_s: float


class Interrupted(KeyboardInterrupt):
    """The run was told to stop, and has saved a checkpoint."""

    def __init__(self, number: int, checkpoint: Path):
        super().__init__(number)
        self.number, self.checkpoint = number, checkpoint


def fit(
    trainer: Trainer,
    train: Split,
    test: Split,
    log: RunLog,
    metadata: dict[str, Any],  # saved beside weights: data set, normalisation
    resume: dict[str, Any] | None = None,  # a checkpoint's content
) -> Result:
    """Trains until trainer.total_steps. Writes log lines, checkpoints, best.pt and final.pt into log.folder.

    Raises FloatingPointError naming the step where the loss stopped being finite and the last checkpoint, Interrupted
    after SIGINT or SIGTERM.
    """
    run = _Run(trainer, train, test, log, metadata)
    if resume is not None:
        run.go_on(resume)
    with (
        _stop_signals() as stop,
        progress_bar(
            trainer.total_steps * run.batch_size, run.images_done, show_progress=trainer.context.is_main
        ) as bar,
    ):
        return run.through(stop, bar)


class _Run:
    """What fit keeps between steps; what of it a checkpoint holds is in `content`."""

    def __init__(self, trainer: Trainer, train: Split, test: Split, log: RunLog, metadata: dict[str, Any]):
        self.trainer, self.train, self.test, self.log, self.metadata = trainer, train, test, log, metadata
        config = self.config = trainer.config
        self.first = trainer.context.is_main
        self.batch_size = config.batch_size
        self.eval_steps = trainer.steps(config.eval_every)
        self.checkpoint_steps = trainer.steps(config.checkpoint_every)
        # 0, which no step ends at, without a cool-down, or where there is nothing before it.
        self.cools_from = trainer.total_steps - trainer.cooldown_steps if trainer.cooldown_steps else 0
        self.checkpoints = Checkpoints(log.folder, config.keep_checkpoints, spare=self.cools_from)
        self.clock, self.saved_at = _Clock(), time.monotonic()
        self.best_top1, self.loss_steps = -1.0, 0
        model = trainer.model
        self.flop = compute.training_flop_per_image(model.arch, model.res, model.num_classes, backbone=trainer.backbone)
        self.peak = trainer.context.world_size * (hardware.device_peak_flop_per_s(trainer.device) or 0.0) or None

    @property
    def images_done(self) -> int:
        return self.trainer.steps_done * self.batch_size

    def content(self) -> dict[str, Any]:
        return {
            "config": asdict(self.config),
            "train_beton": self.train.fingerprint,
            "trainer": self.trainer.state_dict(),
            "train_s": self.clock.seconds,
            "best_top1": self.best_top1,
            "loss_steps": self.loss_steps,
            "log_bytes": self.log.position(),
        }

    def go_on(self, content: dict[str, Any]) -> None:
        if content["train_beton"] != self.train.fingerprint:
            raise ValueError(
                f"{self.train.path} is not the file that the run in {self.log.folder} was trained on: "
                "bring that back, or start another run with --cfg.run_dir"
            )
        self.trainer.load_state_dict(content["trainer"])
        self.clock.seconds, self.best_top1 = content["train_s"], content["best_top1"]
        self.loss_steps = content["loss_steps"]

    def through(self, stop: list[int], bar: Any) -> Result:
        trainer, config = self.trainer, self.config
        started_at, started_s = trainer.steps_done, self.clock.seconds
        scores: Scores | None = None
        self.step_line = self.epoch_line = trainer.steps_done, self.clock.seconds
        self._go_on()
        trainer.watch.seconds()  # from here on
        while trainer.steps_done < trainer.total_steps:
            epoch, first = divmod(trainer.steps_done, self.train.batches_per_epoch)
            for images, labels in self.train.batches(epoch, first):
                loss = trainer.step(images, labels)
                self.loss_steps += 1
                bar.update(self.batch_size)
                done, last = trainer.steps_done, trainer.steps_done == trainer.total_steps
                logs, ends = done % config.log_every == 0, last or done % self.train.batches_per_epoch == 0
                tests, saves = last or done % self.eval_steps == 0, self._saves(done)
                # Several processes have to agree on the step at which they stop, which costs them a wait.
                meets = (
                    logs or ends or tests or saves or (trainer.context.world_size == 1 and (stop or self._overdue()))
                )
                if not meets:
                    continue
                self._check_finite()
                if logs:
                    self._log_step(float(trainer.context.all_reduce_mean(loss)))
                if ends or tests:
                    scores = self._log_epoch(bar, tests)
                asked = trainer.context.all_reduce_any(bool(stop))
                if saves or asked or trainer.context.all_reduce_any(self._overdue()):
                    path = self._save()
                    if asked and not last:
                        raise Interrupted(stop[0] if stop else signal.SIGTERM, path)
                if last:
                    break
        self.clock.pause()
        steps, seconds = trainer.steps_done - started_at, self.clock.seconds - started_s
        scores = scores or self._evaluate()  # the run had been ended between its last checkpoint and its last line
        return Result(scores, self.best_top1, steps * self.batch_size / max(seconds, 1e-9), self.clock.seconds)

    def _saves(self, done: int) -> bool:
        return done == self.cools_from or (bool(self.checkpoint_steps) and done % self.checkpoint_steps == 0)

    def _overdue(self) -> bool:
        minutes = self.config.checkpoint_minutes
        return bool(minutes) and time.monotonic() - self.saved_at > 60 * minutes

    def _check_finite(self) -> None:
        try:
            self.trainer.check_finite()
        except FloatingPointError as error:
            newest = self.checkpoints.paths()
            kept = f"; the last checkpoint is {newest[-1]}" if newest else "; there is no checkpoint yet"
            raise FloatingPointError(f"{error}{kept}") from None

    def _log_step(self, loss: float) -> None:
        """Where the time since the last such line went."""
        trainer = self.trainer
        parts = trainer.watch.seconds()
        self.clock.pause()
        self.clock.go()
        steps, seconds = trainer.steps_done - self.step_line[0], self.clock.seconds - self.step_line[1]
        self.step_line = trainer.steps_done, self.clock.seconds
        images_per_s = steps * self.batch_size / seconds
        mfu = compute.mfu(images_per_s, self.flop, self.peak)
        self.log.write(
            "step",
            step=trainer.steps_done,
            loss=loss,
            lr=trainer.optimizer.param_groups[0]["lr"],
            images_per_s=round(images_per_s, 1),
            mfu=mfu and round(mfu, 4),
            **{
                f"{name}_s_per_step": round(parts.get(name, 0.0) / steps, 6)
                for name in ("data", "forward_backward", "optimizer")
            },
            data_wait_share=round(parts.get("data", 0.0) / seconds, 4),
            peak_memory_bytes=devices.peak_memory_bytes(trainer.device),
        )
        trainer.watch.mark("aside")  # else the writing would count as waiting for data

    def _log_epoch(self, bar: Any, tests: bool) -> Scores | None:
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
        scores = self._evaluate() if tests else None
        if scores:
            line |= {"eval_top1": scores.top1, "eval_top5": scores.top5, "eval_loss": scores.loss}
            message += f"  test top-1 {scores.top1:.2%}  top-5 {scores.top5:.2%}"
        self.log.write("epoch", **line)
        if self.first:
            bar.write(f"{message}  {line['images_per_s']:,.0f} images/sec")
        self._go_on()
        return scores

    def _evaluate(self) -> Scores:
        """On the moving average, where there is one; saves the weights where they are the best or the last."""
        trainer, scores = self.trainer, None
        if self.first:
            with trainer.ema_weights():
                scores = evaluate(
                    trainer.model.linear_out if trainer.backbone == "cached" else trainer.model, self.test
                )
                if scores.top1 > self.best_top1:
                    self.best_top1 = scores.top1
                    self._save_model("best", scores)
                if trainer.steps_done == trainer.total_steps:
                    self._save_model("final", scores)
        scores, self.best_top1 = trainer.context.broadcast((scores, self.best_top1))
        return scores

    def _save_model(self, name: str, scores: Scores) -> None:
        metadata = {
            **self.metadata,
            "eval_top1": scores.top1,
            "eval_top5": scores.top5,
            "steps": self.trainer.steps_done,
        }
        save_model(self.log.folder / f"{name}.pt", self.trainer.model, metadata)

    def _save(self) -> Path:
        path = self.checkpoints.path(self.trainer.steps_done)
        trainer = self.trainer
        self.clock.pause()
        trainer.loss_sum.copy_(
            trainer.context.all_reduce_mean(trainer.loss_sum)
        )  # so that it stands for all in a checkpoint
        if self.first:
            if trainer.steps_done == self.cools_from and self.best_top1 >= 0:
                self.checkpoints.keep_best(self.log.folder / "best.pt")
            self.checkpoints.save(trainer.steps_done, self.content())
        trainer.context.broadcast(None)  # nobody ends before it lies on disk
        self.saved_at = time.monotonic()
        self._go_on()
        return path

    def _go_on(self) -> None:
        """After something that is no training."""
        self.trainer.watch.mark("aside")
        self.clock.go()


class _Clock:
    """Seconds of training alone."""

    def __init__(self) -> None:
        self.seconds, self._since = 0.0, time.perf_counter()

    def pause(self) -> None:
        self.seconds += time.perf_counter() - self._since

    def go(self) -> None:
        self._since = time.perf_counter()


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM, collected instead of raised: the loop ends after a checkpoint. A second SIGINT ends at once;
    torchrun sends SIGTERM to whoever is still saving.
    """
    stop: list[int] = []

    def note(number: int, frame: Any) -> None:
        if stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.append(number)

    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield stop
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
