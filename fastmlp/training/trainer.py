"""The training step: forward, backward and update on one effective batch, in micro-batches."""

import inspect
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .. import device as devices
from ..arch import Arch
from ..config import PretrainConfig
from ..cost.budget import TrainingJob, fitting_micro_batch
from ..cost.flops import optimizer_bytes, parameters
from ..device import PhaseTimer, autocast, compiled_or_none, compute_dtype, tune_malloc
from ..distributed import DistributedContext
from ..duration import Duration
from ..models import grey_images
from ..models.bottleneck_autograd import bottleneck_own_backward
from ..models.loss import LossKernel, loss_kernel, mixed_cross_entropy
from ..models.mlp import BMLP, MLP, Block
from ..transforms.mixup import mix, mixup_lam
from .lion import Lion
from .optimizer import build_optimizer, set_learning_rate
from .parametrization import lr_scales
from .schedule import learning_rate

CPU_MICRO_BATCH = 1024  # B_6-Wi_512 loses 14 % at 512 in adding up gradients; B_6-Wi_256 is as fast at 512 to 2048
# torch gives up on a function after 8 shapes, unless each trainer's compilations count for themselves (torch 2.13).
ISOLATED: dict[str, Any] = {k: True for k in inspect.signature(torch.compile).parameters if k == "isolate_recompiles"}
NEVER = 2**62  # later than any step
Backbone = Literal["trained", "frozen", "cached"]
K = TypeVar("K")


class Trainer:
    """Model, optimiser and schedule; `step` does one optimiser step on one effective batch.

    steps_done, weights, optimiser, moving average and summed loss are its state (`state_dict`). A trainer with that
    state takes the same steps, bit for bit if micro-batch size, threads and compilation are the same, too.

    backbone: "frozen" trains only the head, and only the head has gradients, optimiser state and a moving average;
    with "cached", batches hold features, (B, m) as model.features returns them, instead of images.

    Raises ValueError for an impossible schedule, MixUp on cached features, and BatchNorm on a micro-batch of one image.
    """

    def __init__(
        self,
        model: MLP,
        config: PretrainConfig,
        batches_per_epoch: int,
        context: DistributedContext | None = None,
        micro_batch_size: int = 0,  # 0: the config's, and choose_micro_batch's if that is 0, too
        backbone: Backbone = "trained",
    ):
        model.requires_grad_(backbone == "trained").linear_out.requires_grad_()
        # A frozen BatchNorm normalises by its running statistics, which stay.
        model.train(backbone == "trained")
        self.backbone, self.trained = backbone, [p for p in model.parameters() if p.requires_grad]
        self.model, self.config, self.batches_per_epoch = model, config, batches_per_epoch
        self.context = context or DistributedContext()
        self.device = next(model.parameters()).device
        if self.device.type == "cpu":
            tune_malloc()
        self.local_batch_size = self.context.local_batch_size(config.batch_size)  # of each batch
        given = micro_batch_size or config.micro_batch_size
        self.max_micro_batch_size = given or choose_micro_batch(model, config, self.context.world_size, backbone)
        # Chosen by a prediction, so it may be halved once, while no step depends on it. Several processes would have
        # to agree on that.
        self._may_halve = not given and self.device.type != "cpu" and self.context.world_size == 1
        self.total_steps, self.warmup_steps, self.cooldown_steps = config.step_counts(batches_per_epoch)
        self._validate()
        self.timer, self.compile_s = PhaseTimer(self.device), 0.0
        try:
            kernels = self._choose_kernels()
        except Exception as error:
            if not self._can_halve_after(error):
                raise
            kernels = None
        if kernels is None:  # tried again here, where the error no longer keeps its tensors
            self._halve_micro_batch()
            kernels = self._choose_kernels()
        self.compiled_block = kernels.compiled_block
        self.optimizer = build_optimizer(
            config.optimizer,
            model,
            config.lr,
            config.weight_decay,
            decay_norms_and_biases=config.decay_norms_and_biases,
            backbone_lr_scale=config.backbone_lr_scale,
            lr_scales=lr_scales(model, config),
            compile=self.compiled_block and self.device.type != "cpu",
        )
        if isinstance(self.optimizer, Lion):
            self.optimizer.warm_up()
        # None on the CPU, where backward() imports sympy, for 1 s, to compare a given gradient's shape (torch 2.13).
        self._root_gradient = None if self.device.type == "cpu" else torch.ones((), device=self.device)
        self._loss_module: nn.Module = LossModule(model, kernels, backbone, self._root_gradient)
        if self.context.world_size > 1:
            device_ids = [self.device] if self.device.type != "cpu" else None
            self._loss_module = DistributedDataParallel(self._loss_module, device_ids=device_ids)
        # Running statistics are averaged like the weights: those of the last steps fit only the last weights.
        statistics = [b for b in model.buffers() if b.is_floating_point()] if backbone == "trained" else []
        self.ema_sources = [*self.trained, *statistics]
        self.ema = [p.detach().clone() for p in self.ema_sources] if config.ema_decay else []
        self.steps_done = 0
        # Since they were last read: the summed loss, and the first step whose loss was not finite.
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.first_nonfinite_step = torch.full((), NEVER, dtype=torch.int64, device=self.device)

    def _validate(self) -> None:
        if self.backbone == "cached" and self.config.mixup_alpha:
            raise ValueError(
                "--cfg.mixup_alpha mixes embeddings, and cached features have none: use --cfg.mixup_alpha=0"
            )
        self._lr_at(0)  # raises ValueError for an impossible schedule
        size, norm_trains = self.micro_batch_size, self.model.arch.norm == "batch" and self.backbone == "trained"
        if norm_trains and self.local_batch_size % size == 1:
            raise ValueError(
                f"BatchNorm needs at least two images in a micro-batch, but {self.local_batch_size} images in "
                f"micro-batches of {size} leave one: choose another --cfg.batch_size or --cfg.micro_batch_size"
            )

    def _choose_kernels(self) -> "Kernels":
        """Choose the implementations of the blocks and of the loss, and compile them for the micro-batches' sizes.

        On the CPU the loss is not compiled.
        """
        setting, arch, on_cpu = self.config.compile, self.model.arch, self.device.type == "cpu"
        compiles = setting == "on" or setting == "auto" and not on_cpu
        loss = self._compiled(self._compile_loss) if compiles and not on_cpu else None
        embed = grey_images.embed if on_cpu else linear
        if arch.norm != "layer":
            if setting == "on":
                warnings.warn(f"torch.compile is only used with LayerNorm: {arch} is trained without it", stacklevel=3)
            compiles = False
        block = self._compiled(self._compile_block) if compiles and self.backbone == "trained" else None
        if block is not None:
            return Kernels(block, loss, embed, compiled_block=True)
        return Kernels(bottleneck_own_backward if on_cpu and isinstance(self.model, BMLP) else None, loss, embed)

    def steps(self, duration: str) -> int:
        """Return a duration in steps, such as 7 for "7 steps"."""
        return Duration.parse(duration).steps(self.config.batch_size, self.batches_per_epoch)

    def _lr_at(self, step: int) -> float:
        config = self.config
        return learning_rate(step, self.total_steps, config.lr, config.schedule, self.warmup_steps, self.cooldown_steps)

    @property
    def micro_batch_size(self) -> int:
        """Images in a micro-batch; the last micro-batch of a batch may be smaller."""
        return even_chunk_size(self.local_batch_size, self.max_micro_batch_size)

    def _compiled(self, compile_it: Callable[[], K]) -> K | None:
        """Return what a method compiles, and add the time to compile_s; None, with a warning, if that fails."""
        self.timer.mark("aside")
        kernel = compiled_or_none(compile_it, "training continues without it")
        self.timer.mark("compile")
        seconds = self.timer.seconds()["compile"]
        if kernel is not None:
            self.compile_s += seconds
        return kernel

    @property
    def _micro_batch_sizes(self) -> set[int]:
        """The sizes of the micro-batches of a step."""
        size = self.micro_batch_size
        return {size, self.local_batch_size % size or size}

    def _compile_block(self) -> Block:
        block = torch.compile(self.model.block, dynamic=False, **ISOLATED)
        for images in self._micro_batch_sizes:
            z = torch.zeros(
                images,
                self.model.arch.width,
                device=self.device,
                dtype=compute_dtype(self.device),
                requires_grad=True,
            )
            with autocast(self.device):
                out = block(z, *next(self.model.block_parameters()))
            out.sum().backward()
        self.model.zero_grad(set_to_none=True)
        return block

    @torch.no_grad()
    def _compile_loss(self) -> LossKernel:
        kernel = torch.compile(loss_kernel, dynamic=False, **ISOLATED)
        lam, smoothing = torch.ones((), device=self.device), self.config.label_smoothing
        for images in self._micro_batch_sizes:
            logits = torch.zeros(images, self.model.num_classes, device=self.device, dtype=compute_dtype(self.device))
            labels = torch.zeros(images, dtype=torch.int64, device=self.device)
            kernel(logits, labels, labels.clone(), lam, smoothing, self.local_batch_size)
        return kernel

    def step(
        self,
        images: Tensor,  # (B, 3 * res * res), this process's shard of the batch; or features (B, m)
        labels: Tensor,  # (B,) int64
    ) -> Tensor:
        """Update the weights; return the shard's mean loss over its images, () float32 on the device.

        The gradients of the micro-batches add up to those of the whole batch. If the device's memory is too small for
        a micro-batch that was chosen automatically, the first step halves it, with a notice.
        """
        config = self.config
        self.timer.mark("data")
        set_learning_rate(self.optimizer, self._lr_at(self.steps_done))
        compute_gradients = self._first_gradients if self._may_halve else self._accumulate_gradients
        total = compute_gradients(images, labels)
        self._may_halve = False
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.trained, config.clip_norm)
        self.timer.mark("forward_backward")
        self.optimizer.step()
        if self.ema:
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.ema_sources], 1 - config.ema_decay)
        self.timer.mark("optimizer")
        self.steps_done += 1
        self.loss_sum += total
        self.first_nonfinite_step.clamp_(max=torch.where(total.isfinite(), NEVER, self.steps_done))
        return total

    def _accumulate_gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        """Compute the gradients of a batch, one micro-batch after the other; return its mean loss, ()."""
        config = self.config
        lam = mixup_lam(config.mixup_alpha, config.seed, self.steps_done)
        total = torch.zeros((), device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        size = even_chunk_size(len(images), self.max_micro_batch_size)
        chunks = list(zip(images.split(size), labels.split(size), strict=True))
        for number, (image_chunk, label_chunk) in enumerate(chunks):
            with self._no_sync_if(number + 1 < len(chunks)):
                loss = self._loss_module(image_chunk, label_chunk, lam, config.label_smoothing, len(images))
                loss.backward(self._root_gradient)
            total += loss.detach()
        return total

    def _first_gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        """Compute the gradients of the first step beside room for the optimiser's state, which that step allocates.

        Nothing depends on an attempt that fails for lack of memory: a smaller micro-batch is tried once.
        """
        statistics = [b.clone() for b in self.model.buffers()]
        try:
            _state = torch.empty(self._optimizer_bytes, dtype=torch.uint8, device=self.device)  # freed at the return
            return self._accumulate_gradients(images, labels)
        except Exception as error:
            if not self._can_halve_after(error):
                raise
        self._halve_micro_batch()  # here, where the error no longer keeps its activations
        for buffer, before in zip(self.model.buffers(), statistics, strict=True):
            buffer.copy_(before)
        kernels = self._choose_kernels()  # compiled for other sizes
        self._loss_module = LossModule(self.model, kernels, self.backbone, self._root_gradient)
        return self._accumulate_gradients(images, labels)

    @property
    def _optimizer_bytes(self) -> int:
        """Bytes of the optimiser's state; for a head alone, at most."""
        if self.backbone != "trained":
            return 2 * sum(p.nbytes for p in self.trained)
        return optimizer_bytes(self.config.optimizer, self.model.arch, self.model.res, self.model.num_classes)

    def _can_halve_after(self, error: Exception) -> bool:
        return self._may_halve and self.micro_batch_size > 3 and devices.is_out_of_memory(error)

    def _halve_micro_batch(self) -> None:
        """Halve the micro-batch after an out-of-memory error."""
        self._may_halve, before = False, self.micro_batch_size
        self.max_micro_batch_size = before // 4 * 2
        self.model.zero_grad(set_to_none=True)
        warnings.warn(
            f"the device's memory is too small for micro-batches of {before}: halved to {self.micro_batch_size}",
            stacklevel=3,
        )
        self._validate()

    @property
    def memory_advice(self) -> str:
        """What to do if the memory of the device is too small."""
        half = max(2, self.micro_batch_size // 4 * 2)
        resume = "the same command resumes once memory is free; otherwise " if self.steps_done else ""
        return f"{resume}start with --cfg.micro_batch_size={half} and a new --cfg.run_dir, or with a narrower model"

    def _no_sync_if(self, more_follow: bool) -> AbstractContextManager[Any]:
        """Return the context of a micro-batch: only after the last one do several processes exchange gradients."""
        if more_follow and isinstance(self._loss_module, DistributedDataParallel):
            return self._loss_module.no_sync()
        return nullcontext()

    def check_finite(self) -> None:
        """Raise FloatingPointError, in every process, if a loss or the weights are not finite. Waits for the device.

        The message names the first step whose loss was not finite, or else the current step.
        """
        step, subject = int(self.context.all_reduce_min(self.first_nonfinite_step)), "the training loss is"
        if step == NEVER and not nn.utils.get_total_norm(self.trained, float("inf")).isfinite():
            step, subject = self.steps_done, "weights are"
        if step < NEVER:
            raise FloatingPointError(f"{subject} not finite at step {step}: lower --cfg.lr, or lengthen --cfg.warmup")

    def pop_mean_loss(self, steps: int) -> float:
        """Return the mean loss of the steps since the last call, of which there were `steps`."""
        mean = float(self.context.all_reduce_mean(self.loss_sum)) / max(1, steps)
        self.loss_sum.zero_()
        return mean

    def ema_weights(self) -> "_EmaSwap":
        """Return a context in which the model has its moving average as weights, if there is one."""
        return _EmaSwap(self)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds; its keys are those of 0.1, "device", and "resampling" if not bilinear."""
        return {
            "steps_done": self.steps_done,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema,
            "loss_sum": self.loss_sum,
            "micro_batch": self.max_micro_batch_size,
            "device": devices.describe(self.device),
            "threads": torch.get_num_threads(),
            "processes": self.context.world_size,
            "body": self.backbone,
            "batches_per_epoch": self.batches_per_epoch,
            **({} if self.model.resampling == "bilinear" else {"resampling": self.model.resampling}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps_done = state["steps_done"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for mine, theirs in zip(self.ema, state["ema"], strict=True):
            mine.copy_(theirs)
        self.loss_sum.copy_(state["loss_sum"])


@dataclass(frozen=True)
class Kernels:
    """What computes the blocks and the loss; None is the model's own block, and models.loss.passes_in_place."""

    block: Block | None
    loss: LossKernel | None
    embed: Callable[[nn.Linear, Tensor], Tensor]
    compiled_block: bool = False


class LossModule(nn.Module):
    """From images to their part of the batch's mean loss: the module that DistributedDataParallel wraps.

    Call backward(root_gradient) on the result (models.loss.mixed_cross_entropy).
    """

    def __init__(self, model: MLP, kernels: Kernels, backbone: Backbone, root_gradient: Tensor | None):
        super().__init__()
        self.model, self._kernels, self._backbone, self._root_gradient = model, kernels, backbone, root_gradient

    def forward(self, images: Tensor, labels: Tensor, lam: float, label_smoothing: float, batch_size: int) -> Tensor:
        with autocast(images.device):
            if self._backbone != "cached":
                z = mix(self._kernels.embed(self.model.linear_in, images), lam)
                images = self.model.forward_blocks(z, self._kernels.block)
            logits = self.model.linear_out(images)
        return mixed_cross_entropy(
            logits, labels, lam, label_smoothing, batch_size, self._kernels.loss, self._root_gradient
        )


class _EmaSwap:
    """A context that swaps the weights and their moving average, and swaps them back."""

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


def linear(layer: nn.Linear, images: Tensor) -> Tensor:
    """Return layer(images)."""
    return layer(images)


def even_chunk_size(batch_size: int, max_size: int) -> int:
    """Return the size of the fewest chunks of at most max_size images, of which the last may be smaller.

    Chunks are about equal, and even, since MixUp pairs neighbours.
    """
    count = -(-batch_size // max_size)
    return min(max_size, 2 * -(-batch_size // (2 * count)))


def choose_micro_batch(model: MLP, config: PretrainConfig, num_devices: int = 1, backbone: Backbone = "trained") -> int:
    """Return the images per pass: the measured best on the CPU; on an accelerator as many as the step has room for.

    Each of num_devices has its shard of the batch. With a frozen backbone, activations are kept of one block at a time.
    Raises MemoryError if not even two images fit.
    """
    device = next(model.parameters()).device
    if device.type == "cpu":
        return CPU_MICRO_BATCH
    arch = model.arch if backbone == "trained" else replace(model.arch, blocks=1)
    job = TrainingJob(
        arch,
        model.res,
        model.num_classes,
        config.batch_size,
        config.batch_size,
        1,
        config.optimizer,
        stored_res=config.res,
        ema=config.ema_decay > 0,
        num_devices=num_devices,
    )
    weights = 4 * parameters(arch, model.res, model.num_classes)  # already there
    size = fitting_micro_batch(job, devices.precision(device), devices.free_bytes(device) + weights)
    if not size:
        raise MemoryError(
            f"{model.arch} with --cfg.batch_size={config.batch_size} does not fit into the "
            f"{devices.free_bytes(device) / 2**30:.2f} GiB that are free on {devices.describe(device)}: take a smaller "
            "batch or a narrower model"
        )
    return size


def check_memory(config: PretrainConfig, arch: Arch, res: int, num_classes: int) -> None:
    """Raise MemoryError if a run's weights and what has to stay beside them do not fit into the machine's free memory.

    Activations and batches come on top; before the first step of a run on a CPU, where a process that needs too much
    is killed without a word.
    """
    weights = 4 * parameters(arch, res, num_classes)
    average, state = weights * (config.ema_decay > 0), optimizer_bytes(config.optimizer, arch, res, num_classes)
    parts = {
        "weights": weights,
        "gradients": weights,
        "optimiser": state,
        "moving average": average,
        "a checkpoint": weights + state + average,  # which is made in memory
    }
    needed, free = sum(parts.values()), devices.free_bytes(torch.device("cpu"))
    if needed > free:
        listed = ", ".join(f"{name} {size / 2**30:,.1f}" for name, size in parts.items() if size)
        raise MemoryError(
            f"training {arch} for {res} px and {num_classes:,} classes takes {needed / 2**30:,.0f} GiB ({listed}) and "
            f"its activations, {free / 2**30:,.0f} GiB are free: take a narrower model or smaller images"
        )
