"""Runs the real augmentation and the real Trainer.step on the pretended card, under a ledger."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from fastmlp.arch import parse_arch
from fastmlp.config import PretrainConfig
from fastmlp.device import compute_dtype
from fastmlp.models.mlp import MLP, new_model
from fastmlp.training import trainer as trainer_module
from fastmlp.training.trainer import Trainer
from fastmlp.transforms import torch_path
from fastmlp.transforms.augment_params import Augment
from fastmlp.transforms.torch_path import PARAM_BYTES, AugmentOnDevice

from .card import FakeCard
from .graphs import Graph
from .ledger import PARTS, Ledger

STEPS = 4  # each with another weight of MixUp; the last one is counted
AUGMENTATION, EMBEDDING, BLOCKS, LOSS, OPTIMISER = PARTS


@dataclass(frozen=True)
class Case:
    """What is trained: --case ARCH,RES,CLASSES,BATCH."""

    arch: str
    res: int
    classes: int
    batch: int


@dataclass
class Step:
    """What the steps did, beside the ledger's entries."""

    micro_batch_size: int = 0
    graphs_before: int = 0  # compiled by the trainer's constructor
    graphs_by_step: list[int] = field(default_factory=list)
    stored: list[dict[str, Any]] = field(default_factory=list)  # tensors kept for the backward pass


def augment(case: Case, dtype: torch.dtype, ledger: Ledger) -> Tensor:
    """Augment a batch twice, and count the second time; return the images, (B, 3 * res * res)."""
    statistics = (128.0,) * 3
    operation = AugmentOnDevice(Augment(), case.res, mean=statistics, std=statistics, dtype=dtype)
    function = operation.generate_code()
    images = torch.empty(case.batch, case.res, case.res, 3, dtype=torch.uint8, device="cuda")
    arguments = images, np.empty((case.batch, PARAM_BYTES), np.uint8), np.arange(case.batch), 0
    torch_path._whole.cache_clear()
    function(*arguments)
    with ledger, ledger.at(AUGMENTATION, "forward"):
        return function(*arguments)


def train(case: Case, card: FakeCard, graphs: list[Graph], ledger: Ledger) -> Step:
    """Take STEPS steps with the settings of pre-training, LION and the default micro-batch, and count the last one."""
    done = Step()
    with mock.patch.object(trainer_module, "PhaseTimer", _NoTimer):
        with torch.device("cuda"):
            model = new_model(parse_arch(case.arch), case.res, case.classes)
        card.used_bytes = sum(p.nbytes for p in model.parameters())
        config = PretrainConfig(arch=case.arch, res=case.res, batch_size=case.batch, weight_decay=1e-3)
        before = len(graphs)
        trainer = Trainer(model, config, batches_per_epoch=700)
        done.micro_batch_size, done.graphs_before = trainer.micro_batch_size, len(graphs) - before
        dtype = compute_dtype(trainer.device)
        images = torch.empty(case.batch, 3 * case.res**2, dtype=dtype, device="cuda")
        labels = torch.empty(case.batch, dtype=torch.int64, device="cuda")
        for number in range(STEPS):
            before = len(graphs)
            if number + 1 < STEPS:
                trainer.step(images, labels)
            else:
                model.zero_grad(set_to_none=True)
                _note_all(ledger, trainer, images, labels)
                with ledger, _parts(trainer, ledger, done):
                    trainer.step(images, labels)
                for p in model.parameters():
                    if p.grad is not None:
                        ledger.memory.rename(p.grad, "gradients")
            done.graphs_by_step.append(len(graphs) - before)
    return done


class _NoTimer:
    """Stands for PhaseTimer: the pretended card has no events."""

    def __init__(self, device: torch.device):
        pass

    def mark(self, name: str) -> None:
        pass

    def seconds(self) -> dict[str, float]:
        return {"compile": 0.0}


def _note_all(ledger: Ledger, trainer: Trainer, images: Tensor, labels: Tensor) -> None:
    """Tell the memory what is there before the step."""
    matrices = [tuple(p.shape) for p in trainer.model.parameters() if p.ndim == 2]
    ledger.weight_shapes = {shape for m, k in matrices for shape in ((m, k), (k, m)) if shape[0] != len(images)}
    for role, tensors in {
        "weights": list(trainer.model.parameters()),
        "optimiser": [t for state in trainer.optimizer.state.values() for t in state.values()],
        "moving average": trainer.ema,
        "batch": [images, labels],
    }.items():
        for tensor in tensors:
            ledger.memory.note(tensor, role)


@contextmanager
def _parts(trainer: Trainer, ledger: Ledger, done: Step) -> Iterator[None]:
    """A context in which the ledger knows which part of the step runs.

    Forward, the model's forward_blocks tells: before it is the embedding, after it the loss, with the head. Backward,
    the gradients of its input and of its output tell, since hooks run as soon as these are there.
    """
    model: MLP = trainer.model
    backward, update, forward_blocks = torch.Tensor.backward, trainer.optimizer.step, model.forward_blocks

    def enter(part: str) -> None:
        ledger.part = part

    def blocks(z: Tensor, *arguments: Any) -> Tensor:
        z.register_hook(lambda _: enter(EMBEDDING))
        enter(BLOCKS)
        out = forward_blocks(z, *arguments)
        enter(LOSS)
        out.register_hook(lambda _: enter(BLOCKS))
        return out

    def run_backward(loss: Tensor, *arguments: Any) -> None:
        if not done.stored:
            done.stored = _stored(ledger)
        with ledger.at(ledger.part, "backward"):
            backward(loss, *arguments)
        enter(EMBEDDING)

    def run_update(*arguments: Any) -> Any:
        enter(OPTIMISER)
        ledger.phase = "update"
        return update(*arguments)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(model, "forward_blocks", blocks))
        stack.enter_context(mock.patch.object(torch.Tensor, "backward", run_backward))
        stack.enter_context(mock.patch.object(trainer.optimizer, "step", run_update))
        stack.enter_context(ledger.at(EMBEDDING, "forward"))
        yield


def _stored(ledger: Ledger) -> list[dict[str, Any]]:
    """Return what the forward pass has left in memory, by part, shape and type."""
    sizes: Counter[tuple[str, tuple[int, ...], str]] = Counter()
    counts: Counter[tuple[str, tuple[int, ...], str]] = Counter()
    for one in ledger.memory.live():
        part, phase = one.origin
        if phase == "forward":
            key = part, one.shape, one.dtype
            sizes[key] += one.bytes
            counts[key] += 1
    return [
        {"part": part, "shape": shape, "dtype": dtype, "count": counts[part, shape, dtype], "bytes": size}
        for (part, shape, dtype), size in sizes.most_common()
    ]
