"""The training step: forward, backward and update on one effective batch, in micro-batches."""

import warnings
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import PretrainConfig
from ..cost.flops import activation_bytes
from ..device import PhaseTimer, autocast, compute_dtype, free_bytes, tune_malloc
from ..distributed import DistributedContext
from ..duration import Duration
from ..models.bottleneck_autograd import lean_block
from ..models.loss import mixed_cross_entropy
from ..models.mlp import BMLP, MLP, Block
from ..transforms.mixup import mix, mixup_lam
from .optimizer import build_optimizer, set_learning_rate
from .schedule import learning_rate

CPU_MICRO_BATCH = 1024  # B_6-Wi_512 loses 14 % at 512 in adding up gradients; B_6-Wi_256 is as fast at 512 to 2048
MAX_MICRO_BATCH_SIZE = 16384
NEVER = 2**62  # a step
Backbone = Literal["trained", "frozen", "cached"]
MEMORY_SHARE = 0.5  # of a device's free memory, for activations


class Trainer:
    """Model, optimiser and schedule; `step` does one optimiser step on one effective batch.

    steps_done, weights, optimiser, moving average and running loss are its state (`state_dict`): a trainer with that
    state takes the same steps, bit for bit with the same micro-batch, threads and compilation.

    body: "frozen" trains the head alone, and nothing but the head has gradients, optimiser state or a moving average;
    with "cached" batches are features, (B, m) as model.features gives them, in the place of images.
    """

    def __init__(
        self,
        model: MLP,
        config: PretrainConfig,
        batches_per_epoch: int,
        context: DistributedContext | None = None,
        micro_batch_size: int = 0,  # 0: the config's, or chosen
        backbone: Backbone = "trained",
    ):
        model.requires_grad_(backbone == "trained").linear_out.requires_grad_()
        model.train(
            backbone == "trained"
        )  # a frozen BatchNorm's running statistics stay, too, and are what it norms by
        self.backbone, self.trained = backbone, [p for p in model.parameters() if p.requires_grad]
        self.model, self.config, self.batches_per_epoch = model, config, batches_per_epoch
        self.context = context or DistributedContext()
        self.device = next(model.parameters()).device
        if self.device.type == "cpu":
            tune_malloc()
        self.max_micro_batch_size = micro_batch_size or config.micro_batch_size or choose_micro_batch(model)
        self.local_batch_size = self.context.local_batch_size(config.batch_size)  # of each batch
        if backbone == "cached" and config.mixup_alpha:
            raise ValueError(
                "--cfg.mixup_alpha mixes embeddings, which cached features no longer are: use --cfg.mixup_alpha=0"
            )
        self.total_steps, self.warmup_steps, self.cooldown_steps = config.step_counts(batches_per_epoch)
        self._rate(0)  # an impossible schedule ends here
        self.watch, self.compile_s = PhaseTimer(self.device), 0.0
        if model.arch.norm == "batch" and backbone == "trained" and self.local_batch_size % self.micro_batch_size == 1:
            raise ValueError(
                f"BatchNorm needs two images at least, {self.local_batch_size} in micro-batches of "
                f"{self.micro_batch_size} leave one: choose another --cfg.batch_size or --cfg.micro_batch_size"
            )
        compiles = self.device.type == "cuda" if config.compile == "auto" else config.compile == "on"
        if model.arch.norm != "layer":
            if config.compile == "on":
                warnings.warn(f"torch.compile serves blocks behind LayerNorm: {model.arch} goes without", stacklevel=2)
            compiles = False
        block = self._compiled_block() if compiles and backbone == "trained" else None
        compiled = block is not None
        if not compiled and self.device.type == "cpu" and isinstance(model, BMLP):
            block = lean_block
        self.optimizer = build_optimizer(
            config.optimizer,
            model,
            config.lr,
            config.weight_decay,
            decay_norms_and_biases=config.decay_norms_and_biases,
            backbone_lr_scale=config.backbone_lr_scale,
            compile=compiled,
        )
        self._loss_module: nn.Module = LossModule(model, block, backbone)
        if self.context.world_size > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            self._loss_module = DistributedDataParallel(self._loss_module, device_ids=ids)
        # Running statistics are averaged as the weights are: those of the last steps belong to the last weights.
        self.ema_sources = [
            *self.trained,
            *(b for b in model.buffers() if b.is_floating_point() and backbone == "trained"),
        ]
        self.ema = [p.detach().clone() for p in self.ema_sources] if config.ema_decay else []
        self.steps_done = 0
        # Since they were last read: the summed loss, and the first step whose loss was not finite.
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.first_nonfinite_step = torch.full((), NEVER, dtype=torch.int64, device=self.device)

    def steps(self, duration: str) -> int:
        return Duration.parse(duration).steps(self.config.batch_size, self.batches_per_epoch)

    def _rate(self, step: int) -> float:
        config = self.config
        return learning_rate(step, self.total_steps, config.lr, config.schedule, self.warmup_steps, self.cooldown_steps)

    @property
    def micro_batch_size(self) -> int:
        """Images of a micro-batch; the last of a batch may be smaller."""
        return even_chunk_size(self.local_batch_size, self.max_micro_batch_size)

    def _compiled_block(self) -> Block | None:
        """The model's block through torch.compile; None, with a notice, where that fails (no compiler, an odd path)."""
        block = torch.compile(self.model.block, dynamic=False)
        size = self.micro_batch_size
        self.watch.mark("aside")
        try:
            for part in {size, self.local_batch_size % size or size}:  # the last part may be smaller
                z = torch.zeros(
                    part,
                    self.model.arch.width,
                    device=self.device,
                    dtype=compute_dtype(self.device),
                    requires_grad=True,
                )
                with autocast(self.device):
                    out = block(z, *next(self.model.block_parameters()))
                out.sum().backward()
        except Exception as error:  # whatever the compiler stumbles over
            self.model.zero_grad(set_to_none=True)
            self.watch.seconds()
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            warnings.warn(f"torch.compile failed ({reason}): training goes on without it", stacklevel=2)
            return None
        self.model.zero_grad(set_to_none=True)
        self.watch.mark("compile")
        self.compile_s = self.watch.seconds()["compile"]
        return block

    def step(
        self,
        images: Tensor,  # (B, 3 * res * res), this process's part of the batch; or features (B, m)
        labels: Tensor,  # (B,) int64
    ) -> Tensor:
        """Loss of the batch, mean over its images, () float32 on the device, of this process's part.

        The batch goes through in micro-batches whose gradients add up to those of the whole.
        """
        config = self.config
        self.watch.mark("data")
        set_learning_rate(self.optimizer, self._rate(self.steps_done))
        weight = mixup_lam(config.mixup_alpha, config.seed, self.steps_done)
        total = torch.zeros((), device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        size = even_chunk_size(len(images), self.max_micro_batch_size)
        parts = list(zip(images.split(size), labels.split(size), strict=True))
        for number, (part, answers) in enumerate(parts):
            with self._no_sync_if(number + 1 < len(parts)):
                loss = self._loss_module(part, answers, weight, config.label_smoothing) / len(images)
                loss.backward()
            total += loss.detach()
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.trained, config.clip_norm)
        self.watch.mark("forward_backward")
        self.optimizer.step()
        if self.ema:
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.ema_sources], 1 - config.ema_decay)
        self.watch.mark("optimizer")
        self.steps_done += 1
        self.loss_sum += total
        self.first_nonfinite_step.clamp_(max=torch.where(total.isfinite(), NEVER, self.steps_done))
        return total

    def _no_sync_if(self, more: bool) -> Any:
        """With several processes, gradients are exchanged with the last micro-batch alone."""
        return (
            self._loss_module.no_sync()
            if more and isinstance(self._loss_module, DistributedDataParallel)
            else nullcontext()
        )

    def check_finite(self) -> None:
        """Raises FloatingPointError, in every process, naming the first step whose loss was not finite, or that left
        weights that are not. Waits for the device.
        """
        step, what = int(self.context.all_reduce_min(self.first_nonfinite_step)), "the training loss is"
        if step == NEVER and not nn.utils.get_total_norm(self.trained, float("inf")).isfinite():
            step, what = self.steps_done, "weights are"
        if step < NEVER:
            raise FloatingPointError(f"{what} not finite at step {step}: lower --cfg.lr, or lengthen --cfg.warmup")

    def pop_mean_loss(self, steps: int) -> float:
        """The mean loss of the last `steps` steps, since the last call."""
        mean = float(self.context.all_reduce_mean(self.loss_sum)) / max(1, steps)
        self.loss_sum.zero_()
        return mean

    def ema_weights(self) -> "_Averaged":
        """`with trainer.averaged():` the model has its moving average as weights, where there is one."""
        return _Averaged(self)

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps_done": self.steps_done,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema,
            "loss_sum": self.loss_sum,
            "micro_batch": self.max_micro_batch_size,
            "threads": torch.get_num_threads(),
            "processes": self.context.world_size,
            "body": self.backbone,
            "batches_per_epoch": self.batches_per_epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps_done = state["steps_done"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for mine, theirs in zip(self.ema, state["ema"], strict=True):
            mine.copy_(theirs)
        self.loss_sum.copy_(state["loss_sum"])


class LossModule(nn.Module):
    """From images to the summed loss: what DistributedDataParallel wraps."""

    def __init__(self, model: MLP, block: Block | None, backbone: Backbone):
        super().__init__()
        self.model, self._block, self._body = model, block, backbone

    def forward(self, images: Tensor, labels: Tensor, weight: float, label_smoothing: float) -> Tensor:
        with autocast(images.device):
            if self._body != "cached":
                images = self.model.through_blocks(mix(self.model.embed(images), weight), self._block)
            logits = self.model.linear_out(images)
        return mixed_cross_entropy(logits.float(), labels, weight, label_smoothing)


class _Averaged:
    """Swaps weights and moving average, and back."""

    def __init__(self, trainer: Trainer):
        self._trainer = trainer

    @torch.no_grad()
    def _swap(self) -> None:
        for p, average in zip(self._trainer.ema_sources, self._trainer.ema, strict=False):
            kept = p.clone()
            p.copy_(average)
            average.copy_(kept)

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()


def even_chunk_size(batch: int, most: int) -> int:
    """The size of the fewest parts of at most `most` images, about equal and even: MixUp pairs neighbours."""
    count = -(-batch // most)
    return min(most, 2 * -(-batch // (2 * count)))


def choose_micro_batch(model: MLP) -> int:
    """Images per pass: on the CPU measured best, on CUDA what fits half of the free memory, a power of two."""
    device = next(model.parameters()).device
    if device.type == "cpu":
        return CPU_MICRO_BATCH
    per_image = activation_bytes(model.arch, model.res, model.num_classes, 1, compute_dtype(device).itemsize)
    most = max(2, int(MEMORY_SHARE * free_bytes(device) / (2 * per_image)))  # twice: the backward pass's own
    return min(MAX_MICRO_BATCH_SIZE, 1 << (most.bit_length() - 1))
