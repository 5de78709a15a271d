"""The closed formulas against built models, torch's own counter and the storages that autograd holds."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastmlp.arch import parse_arch
from fastmlp.cost import flops, hardware
from fastmlp.models.loss import mixed_cross_entropy
from fastmlp.models.weights import build_model
from fastmlp.training.optimizer import build_optimizer

# name: parameters in millions at 64 px and 11,230 classes, as the paper prints them
PAPER = {
    "B_6-Wi_256": 9,
    "B_12-Wi_256": 12,
    "B_6-Wi_512": 24,
    "B_12-Wi_512": 37,
    "B_6-Wi_1024": 74,
    "B_12-Wi_1024": 124,
}
SMALL = ["B_2-Wi_16", "B_3-Wi_24-E_2", "S_3-Wi_20"]
OTHER_NORMS = ["B_2-Wi_16-N_none", "S_3-Wi_40-N_none", "B_3-Wi_24-E_2-N_batch", "S_3-Wi_20-N_batch"]


@pytest.mark.parametrize("name", [*PAPER, *OTHER_NORMS, "B_12-Wi_512-E_2", "S_12-Wi_1024", "S_1-Wi_1"])
def test_parameters(name):
    with torch.device("meta"):  # no memory
        model = build_model(name, 64, 11230)
    counted = flops.parameters(parse_arch(name), 64, 11230)
    assert counted == sum(p.numel() for p in model.parameters())
    assert flops.weights(parse_arch(name), 64, 11230) == sum(p.numel() for p in model.parameters() if p.ndim == 2)
    if name in PAPER:
        assert abs(counted / 1e6 - PAPER[name]) < 1


@pytest.mark.parametrize("name", SMALL)
def test_flop_are_those_that_torch_counts(name):
    model, batch = build_model(name, 4, 7), 6
    arch = parse_arch(name)
    with FlopCounterMode(display=False) as forward:
        logits = model(torch.rand(batch, 48))
    assert forward.get_total_flops() == batch * flops.forward_flop_per_image(arch, 4, 7)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    total = forward.get_total_flops() + backward.get_total_flops()
    assert total == batch * flops.training_flop_per_image(arch, 4, 7)
    # The paper's 3x would be right if the gradient with respect to the images were needed.
    with FlopCounterMode(display=False) as whole:
        model(torch.rand(batch, 48, requires_grad=True)).sum().backward()
    assert whole.get_total_flops() == batch * flops.training_flop_per_image(arch, 4, 7, exact=False)


def test_flop_of_the_paper_s_largest_model():
    arch = parse_arch("B_12-Wi_1024")
    weights = 12288 * 1024 + 12 * 2 * 4 * 1024**2 + 1024 * 11230
    assert flops.forward_flop_per_image(arch, 64, 11230) == 2 * weights
    assert flops.training_flop_per_image(arch, 64, 11230, exact=False) == 6 * weights
    assert flops.training_flop_per_image(arch, 64, 11230) == 6 * weights - 2 * 12288 * 1024


def saved_bytes(model, batch, half=False, compiled=False):
    """Return the bytes of the storages that autograd holds after a forward pass and the loss.

    Parameters and their casts are left out.
    """
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {tuple(p.shape) for p in model.parameters()} | {tuple(p.shape)[::-1] for p in model.parameters()}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters and tuple(tensor.shape) not in shapes:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    forward_blocks = torch.compile(model.forward_blocks) if compiled else model.forward_blocks
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            embedded = model.embed(torch.rand(batch, 3 * model.res**2))
            # a leaf on the same storage, since torch.compile warns about others
            logits = model.linear_out(forward_blocks(embedded.detach().requires_grad_()))
        loss = mixed_cross_entropy(logits, torch.zeros(batch, dtype=torch.long), 0.7, 0.1)
    assert loss.requires_grad  # so that it is alive until here
    return sum(held.values())


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", [*SMALL, *OTHER_NORMS])
def test_activations_are_what_autograd_holds(name, half):
    measured = saved_bytes(build_model(name, 4, 7), 50, half)
    assert measured == pytest.approx(flops.activation_bytes(parse_arch(name), 4, 7, 50, 2 if half else 4), rel=0.03)


def test_activations_of_many_classes():
    measured = saved_bytes(build_model("B_1-Wi_16", 4, 1000), 50)
    assert measured == pytest.approx(flops.activation_bytes(parse_arch("B_1-Wi_16"), 4, 1000, 50), rel=0.01)


def test_activations_compiled():
    measured = saved_bytes(build_model("B_2-Wi_16", 4, 7), 50, compiled=True)
    assert measured == pytest.approx(flops.activation_bytes(parse_arch("B_2-Wi_16"), 4, 7, 50), rel=0.03)


def peak_bytes(model, batch):
    """Return the peak of the bytes that torch has allocated during forward and backward pass, images included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        images = torch.rand(batch, 3 * model.res**2)
        mixed_cross_entropy(model(images), torch.zeros(batch, dtype=torch.long), 0.7, 0.1).backward()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(held)


@pytest.mark.parametrize(
    ("name", "classes"),
    [("B_3-Wi_64", 10), ("S_6-Wi_64", 10), ("B_1-Wi_32", 2000), ("B_3-Wi_64-N_batch", 10), ("S_6-Wi_64-N_none", 10)],
)
def test_peak_memory_of_a_pass(name, classes):
    batch = 1000
    low = flops.activation_bytes(parse_arch(name), 4, classes, batch)
    peak = peak_bytes(build_model(name, 4, classes), batch)
    widest = max(4 * 64 if name[0] == "B" else 64, classes)
    assert 0.99 * low < peak < low + 2.1 * batch * 4 * widest + 4 * flops.parameters(parse_arch(name), 4, classes)


@pytest.mark.parametrize("optimizer", ["lion", "sgd", "adamw", "muon"])
@pytest.mark.parametrize("name", SMALL)
def test_optimizer_state(optimizer, name):
    model = build_model(name, 4, 7)
    built = build_optimizer(optimizer, model, 0.1, 0.1)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    built.step()
    tensors = [t for state in built.state.values() for t in state.values() if t is not None and t.ndim]
    assert sum(4 * t.numel() for t in tensors) == flops.optimizer_bytes(optimizer, parse_arch(name), 4, 7)


def test_unknown_optimizers_and_precisions_are_refused():
    with pytest.raises(ValueError, match="unknown optimiser 'adam'"):
        flops.optimizer_bytes("adam", parse_arch("S_1-Wi_1"), 1, 1)
    with pytest.raises(ValueError, match="unknown precision 'fp8'"):
        hardware.peak_flop_per_s("NVIDIA H200", "fp8")


@pytest.mark.parametrize(
    ("card", "bfloat16", "tf32", "float32"),
    [
        ("NVIDIA RTX A5000", 111.1, 55.6, 27.8),
        ("NVIDIA GeForce RTX 3090", 71, 35.6, 35.6),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6, 82.6),
        ("NVIDIA A100-SXM4-40GB", 312, 156, 19.5),
        ("NVIDIA A100-SXM4-80GB", 312, 156, 19.5),
        ("A100-PCIE-40GB", 312, 156, 19.5),
        ("NVIDIA A100 80GB PCIe", 312, 156, 19.5),
        ("NVIDIA L40S", 362.05, 183, 91.6),
        ("NVIDIA H100 80GB HBM3", 989.5, 494.5, 67),
        ("NVIDIA H100 PCIe", 756.5, 378, 51),
        ("NVIDIA H200", 989.5, 494.5, 67),
        ("NVIDIA B200", 2250, 1100, 75),
        ("Tesla T4", None, None, 8.1),
        ("Tesla V100-SXM2-16GB", None, None, 15.7),
        ("Tesla V100-PCIE-32GB", None, None, 14),
    ],
)
def test_peak_rates_by_name(card, bfloat16, tf32, float32):
    found = [hardware.peak_flop_per_s(card, precision) for precision in ("bfloat16", "tf32", "float32")]
    assert found == [None if rate is None else pytest.approx(rate * 1e12) for rate in (bfloat16, tf32, float32)]


@pytest.mark.parametrize(
    "card",
    [
        "",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA H100 NVL",
        "NVIDIA H200 NVL",
        "NVIDIA GH200 480GB",
        "NVIDIA L40",
        "NVIDIA GB200",
        "NVIDIA RTX A5000 Laptop GPU",
        "AMD Instinct MI300X",
    ],
)
def test_unknown_cards_have_no_rate(card):
    assert hardware.peak_flop_per_s(card, "float32") is None


def test_tensor_cores_are_no_slower_than_cuda_cores():
    for card in hardware.CARDS.values():
        known = [rate for rate in (card.float32, card.tf32, card.bfloat16) if rate is not None]
        assert known == sorted(known)


def test_mfu():
    # The paper's B-12/Wi-1024: 26.2 k images/sec on an A5000 whose TF32 peak is 55.6 TFLOP/s
    flop = flops.training_flop_per_image(parse_arch("B_12-Wi_1024"), 64, 11230, exact=False)
    peak = hardware.peak_flop_per_s("NVIDIA RTX A5000", "tf32")
    assert flops.mfu(26_200, flop, peak) == pytest.approx(0.353, abs=0.001)
    assert flops.mfu(26_200, flop, None) is None


def test_measured_peak_counts_the_products_it_times(monkeypatch):
    ticks = iter([0, 0.5, 10, 12, 20, 21, 30, 33, 40, 44])  # rounds of 0.5 (to warm up), 2, 1, 3, 4 s
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(ticks))
    assert hardware.measured_peak(((2, 3, 4), (5, 6, 7)), seconds=10) == 2 * (24 + 210) / 1
    assert not list(ticks)


def test_measured_peak_of_this_machine():
    assert 1e8 < hardware.measured_peak(((256, 256, 256),), seconds=0.01) < 1e15


def test_the_formulas_do_without_torch():
    code = (
        "import importlib.machinery, importlib.util, sys, types; import pathlib;"
        "package = types.ModuleType('fastmlp'); package.__path__ = [sys.argv[1]]; sys.modules['fastmlp'] = package;"
        "import fastmlp.cost.flops, fastmlp.duration; sys.exit('torch' in sys.modules)"
    )
    package = str(Path(flops.__file__).parents[1])
    assert subprocess.run([sys.executable, "-c", code, package]).returncode == 0
