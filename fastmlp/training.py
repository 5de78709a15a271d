"""The training step and the loop around it."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import PretrainConfig
from .device import autocast
from .evaluation import Scores, evaluate
from .models import MLP
from .optim import build_optimizer, learning_rate
from .pipelines import Split
from .runlog import RunLog, progress_bar
from .transforms.mixup import mix, mixup_weight, swap_partners

# Images per forward and backward pass where the user does not say. On the CPU a pass of this size keeps its
# activations near the caches and its GEMMs at full speed; on CUDA it bounds the memory.
AUTO_MICRO_BATCH = {"cpu": 512, "cuda": 4096}


@dataclass(frozen=True)
class Result:
    """What a run came to. images_per_s and train_s are of training alone, evaluation excluded."""

    scores: Scores
    images_per_s: float
    train_s: float


def mixed_cross_entropy(
    logits: Tensor,  # (B, num_classes) float32
    labels: Tensor,  # (B,) int64
    weight: float,  # lambda of MixUp, 1 for none
    label_smoothing: float,
) -> Tensor:
    """Summed over the batch: lambda * CE(labels) + (1 - lambda) * CE(partners' labels)."""
    loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
    if weight == 1.0:
        return loss
    other = F.cross_entropy(logits, swap_partners(labels), reduction="sum", label_smoothing=label_smoothing)
    return weight * loss + (1 - weight) * other


def _compiled(model: MLP, micro_batch: int) -> Callable[[Tensor], Tensor]:
    """model.classify through torch.compile; as it is, with a notice, where that fails (no compiler, an odd path)."""
    compiled = torch.compile(model.classify)
    example = torch.zeros(micro_batch, model.arch.width, device=model.linear_in.weight.device, requires_grad=True)
    try:
        with autocast(example.device):
            compiled(example).sum().backward()
    except Exception as error:  # whatever the compiler stumbles over
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warnings.warn(f"torch.compile failed ({reason}): training goes on without it", stacklevel=2)
        return model.classify
    finally:
        model.zero_grad(set_to_none=True)
    return compiled


class Trainer:
    """Model, optimiser and schedule; `step` does one optimiser step on one effective batch."""

    def __init__(self, model: MLP, config: PretrainConfig, batches_per_epoch: int):
        self.model, self.config = model, config
        self.device = next(model.parameters()).device
        self.micro_batch = config.micro_batch or AUTO_MICRO_BATCH[self.device.type]
        self.total_steps = config.epochs * batches_per_epoch
        self.warmup_steps = min(round(config.warmup_epochs * batches_per_epoch), self.total_steps // 2)
        self.optimizer = build_optimizer(config.optimizer, model, config.lr, config.weight_decay)
        self.classify = _compiled(model, self.micro_batch) if config.compile else model.classify
        self.steps_done = 0

    def step(
        self,
        images: Tensor,  # (B, 3 * res * res)
        labels: Tensor,  # (B,) int64
    ) -> Tensor:
        """Loss of the whole batch, mean over its images, () float32 on the device.

        The batch goes through in micro-batches whose gradients add up to those of the whole.
        """
        config = self.config
        lr = learning_rate(self.steps_done, self.total_steps, config.lr, config.schedule, self.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        weight = mixup_weight(config.mixup, config.seed, self.steps_done)
        total = torch.zeros((), device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        for part, answers in zip(images.split(self.micro_batch), labels.split(self.micro_batch), strict=True):
            with autocast(self.device):
                logits = self.classify(mix(self.model.embed(part), weight))
            loss = mixed_cross_entropy(logits.float(), answers, weight, config.label_smoothing) / len(images)
            loss.backward()
            total += loss.detach()
        self.optimizer.step()
        self.steps_done += 1
        return total


def fit(model: MLP, train: Split, test: Split, config: PretrainConfig, log: RunLog) -> Result:
    """Trains for config.epochs, evaluates every config.eval_every and after the last one.

    Raises FloatingPointError naming the step where the loss stopped being finite.
    """
    trainer = Trainer(model, config, train.batches_per_epoch)
    images_per_epoch = train.batches_per_epoch * train.loader.batch_size
    train_s, scores = 0.0, None
    with progress_bar(config.epochs * images_per_epoch) as bar:
        for epoch in range(config.epochs):
            started = time.perf_counter()
            losses: list[Tensor] = []
            for images, labels in train.batches(epoch):
                losses.append(trainer.step(images, labels))
                if trainer.steps_done % config.log_every == 0:
                    log.write("step", step=trainer.steps_done, loss=_finite(losses[-1], trainer.steps_done),
                              lr=trainer.optimizer.param_groups[0]["lr"])  # fmt: skip
                bar.update(len(images))
            train_loss = _finite(torch.stack(losses).mean(), trainer.steps_done)
            epoch_s = time.perf_counter() - started
            train_s += epoch_s
            line = {
                "epoch": epoch + 1,
                "step": trainer.steps_done,
                "train_loss": train_loss,
                "lr": trainer.optimizer.param_groups[0]["lr"],
                "images_per_s": round(images_per_epoch / epoch_s, 1),
            }
            message = f"epoch {epoch + 1:3d}/{config.epochs}  train loss {train_loss:.4f}"
            if (epoch + 1) % config.eval_every == 0 or epoch + 1 == config.epochs:
                scores = evaluate(model, test)
                line |= {"test_top1": scores.top1, "test_top5": scores.top5, "test_loss": scores.loss}
                message += f"  test top-1 {scores.top1:.2%}  top-5 {scores.top5:.2%}"
            log.write("epoch", **line)
            bar.write(f"{message}  {line['images_per_s']:,.0f} images/sec")
    assert scores is not None  # the last epoch is always evaluated
    return Result(scores, config.epochs * images_per_epoch / train_s, train_s)


def _finite(loss: Tensor, step: int) -> float:
    value = float(loss)
    if value != value or value in (float("inf"), float("-inf")):
        raise FloatingPointError(
            f"the training loss is {value} at or before step {step}: lower --cfg.lr, or lengthen --cfg.warmup_epochs"
        )
    return value

