"""Predicted costs against cases computed by hand, and the effect of changing one part."""

from dataclasses import replace

import pytest

from fastmlp.arch import parse_arch
from fastmlp.cost import budget as budgets
from fastmlp.cost import flops, hardware
from fastmlp.cost.budget import Host, TrainingJob, explain, fitting_micro_batch, memory, predict
from fastmlp.cost.hardware import Machine, card
from fastmlp.data.split import Split
from fastmlp.datasets import get_dataset
from fastmlp.transforms import torch_path

SMALL = TrainingJob(parse_arch("B_1-Wi_4-E_2"), 2, 3, 1000, 10, 2, "adamw", micro_batch_size=5)
FAST = Machine("x", 1e9, 1e9, 1e12, 1e6, "float32", 0.5)


def test_a_tiny_model_by_hand():
    # weights: 12*4 in, 4*8 + 8*4 block, 4*3 out = 124; the images' gradient, 2*12*4, is left out: 3*248 - 96 = 648 FLOP
    assert flops.training_flop_per_image(SMALL.arch, 2, 3) == 648
    traffic = budgets.traffic_bytes_per_image(SMALL, FAST, 5)
    parameters = 124 + 4 + 8 + 4 + 8 + 3  # biases of in, expand, collapse; ln_weight and ln_bias; out
    assert flops.parameters(SMALL.arch, 2, 3) == parameters
    by_hand = 1 * 4 * (12 * 4 + 6 * 8) + (12 + 12 * 4) + 17 * 4 * 4 + 3 * 4 * 3  # block, images, embedding, loss
    by_hand += (3 * 4 * parameters + 2 * 2 * 4 * parameters) / 10  # update, of ten images
    by_hand += 3 * 4 * parameters / 10  # one of the two micro-batches is added to the other
    assert traffic == pytest.approx(by_hand)
    budget = predict(SMALL, FAST)
    device = 1 / (648 / 0.5e9 + traffic / (1e12 * hardware.MEMORY_EFFICIENCY))
    assert budget.bounds["device"] == pytest.approx(device)
    assert budget.bounds["host link"] == pytest.approx(1e6 * budgets.LINK_EFFICIENCY / (12 + 17))
    assert budget.binding == "host link" and budget.epoch_s == pytest.approx(1000 / budget.images_per_s)
    assert budget.days == pytest.approx(2 * budget.epoch_s / 86_400)


def test_memory_by_part():
    parts = memory(SMALL, "float32", 5)
    parameters = flops.parameters(SMALL.arch, 2, 3)
    assert parts["weights"] == parts["gradients"] == 4 * parameters and parts["optimiser"] == 8 * parameters
    # z, LN(z), its two statistics, W_e LN(z) and its GELU; the last z; the logits' gradient; one more hidden and z
    activations = 5 * 4 * ((4 + 4 + 2 + 8 + 8) + 4 + 3 + (8 + 4))
    assert parts["activations"] == activations
    batches = 3 * (10 * (12 + 17 + 12 * 4) + 8192 * 12)
    assert parts["batches"] == batches and parts["cached data"] == parts["moving average"] == 0
    assert parts["exchanged gradients"] == 0
    assert memory(SMALL, "tf32", 5) == parts
    half = memory(SMALL, "bfloat16", 5)
    assert half["weights"] == 6 * parameters - 2 * 12 * 4 and half["activations"] < parts["activations"]
    assert half["batches"] == batches - 3 * 10 * 12 * 2
    assert memory(replace(SMALL, cached=True), "float32", 5)["cached data"] == 12_000
    averaged = memory(replace(SMALL, ema=True), "float32", 5)
    assert averaged == {**parts, "moving average": 4 * parameters}
    more = budgets.traffic_bytes_per_image(replace(SMALL, ema=True), FAST, 5)
    assert more - budgets.traffic_bytes_per_image(SMALL, FAST, 5) == pytest.approx(3 * 4 * parameters / 10)


def test_the_loader_s_buffers_are_those_of_the_loader(data_dir):
    split = Split(get_dataset("synthetic", data_dir), "train", "train", data_dir=data_dir, res=8, batch_size=10)
    assert split.loader.batches_ahead + 2 == budgets.LOADER_SLOTS and torch_path.PARAM_BYTES == budgets.PARAM_BYTES


def test_gradients_of_one_micro_batch_take_the_place_of_activations():
    parameters = flops.parameters(SMALL.arch, 2, 3)
    one = memory(replace(SMALL, batch_size=5), "float32", 5)
    assert one["activations"] + one["gradients"] == max(one["activations"], 4 * parameters)
    wide = replace(SMALL, arch=parse_arch("B_1-Wi_400"), batch_size=5)
    parts = memory(wide, "float32", 5)
    assert parts["activations"] + parts["gradients"] == 4 * flops.parameters(wide.arch, 2, 3)


def test_several_devices_share_a_batch_and_exchange_gradients():
    """Two devices with half of a batch each are twice as fast as one with that half; each also holds the buckets."""
    machine, parameters = replace(FAST, link_bytes_per_s=1e9), flops.parameters(SMALL.arch, 2, 3)
    half, both = predict(replace(SMALL, batch_size=5), machine), predict(replace(SMALL, num_devices=2), machine)
    assert both.bounds["device"] == pytest.approx(2 * half.bounds["device"])
    assert both.bounds["host link"] == pytest.approx(2 * half.bounds["host link"])
    # A ring of two: each sends half of its gradients to be added up, and half of the sums.
    step_s = 2 * 4 * parameters * (1 / 2) / (1e9 * budgets.LINK_EFFICIENCY)
    assert both.bounds["gradient exchange"] == pytest.approx(10 / step_s) and "gradient exchange" not in half.bounds
    assert both.memory == {**half.memory, "exchanged gradients": 4 * parameters}
    assert both.pinned_bytes == 2 * half.pinned_bytes == 2 * 3 * (5 + 8192) * (12 + 17)
    slow = predict(replace(SMALL, num_devices=2), replace(machine, link_bytes_per_s=1e3))
    assert slow.binding == "gradient exchange" and any("larger batch" in text for text in slow.advice)
    assert "page-locked memory of the host: 0.00 GiB" in explain(both) and explain(both).startswith(
        "predicted for 2 x x:"
    )
    assert fitting_micro_batch(replace(SMALL, num_devices=3), "float32", 1e9) == 4  # of ten images


# Counted by benchmarks/dry_run.py: card, case, bytes outside of the products per image, peak without the loader's [GiB]
COUNTED = [
    ("A5000", ("B_12-Wi_1024", 64, 11_230, 16_384), 1_146_400, 5.983),
    ("A5000", ("B_6-Wi_256", 64, 11_230, 16_384), 264_600, 1.618),
    ("T4", ("B_6-Wi_512", 64, 1000, 8192), 598_800, 1.541),
]


@pytest.mark.parametrize("name, case, traffic, peak", COUNTED)
def test_passes_and_peak_are_those_of_the_compiled_step(name, case, traffic, peak):
    arch, res, classes, batch = case
    job, machine = TrainingJob(parse_arch(arch), res, classes, 10**6, batch, 1), card(name)
    assert budgets.traffic_bytes_per_image(job, machine, batch) == pytest.approx(traffic, rel=0.05)
    parts = memory(job, machine.precision, batch)
    images = batch * 3 * res**2 * (2 if machine.precision == "bfloat16" else 4)  # the step's one batch
    assert sum(parts.values()) - parts["batches"] + images == pytest.approx(peak * budgets.GIB, rel=0.05)


def test_each_part_can_bind():
    run = replace(SMALL, micro_batch_size=0, images=10**9)
    machine = replace(FAST, link_bytes_per_s=1e12)
    assert predict(run, machine).binding == "device"
    assert predict(run, FAST).binding == "host link"
    assert predict(run, machine, Host(loader_images_per_s=10)).binding == "loader"
    slow = Host(disk_bytes_per_s=100, memory_bytes=1e9)
    assert predict(run, machine, slow).binding == "disk"
    assert "disk" not in predict(replace(run, images=10**6), machine, slow).bounds  # it fits in the host's memory
    assert set(predict(replace(run, cached=True), FAST, replace(slow, loader_images_per_s=1)).bounds) == {"device"}


LARGE = TrainingJob(parse_arch("B_12-Wi_1024"), 64, 11_230, 10**6, 16_384, 1)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16", "float32"])
@pytest.mark.parametrize("job", [LARGE, replace(LARGE, ema=True, optimizer="adamw"), replace(LARGE, batch_size=1000)])
def test_the_micro_batch_is_the_largest_that_fits(job, precision):
    sizes, first = [], min(16_384, job.batch_size)
    while not sizes or sizes[-1] > 2:  # by hand: halves, rounded up to even numbers
        half = first if not sizes else sizes[-1] // 2
        sizes.append(half + (half % 2 if sizes else 0))
    needed = {size: 1.15 * sum(memory(job, precision, size).values()) for size in sizes}
    for room in (bytes_ + more for bytes_ in needed.values() for more in (-1, 1)):
        expected = next((size for size in sizes if needed[size] <= room), 0)
        assert fitting_micro_batch(job, precision, room) == expected
    assert fitting_micro_batch(job, precision, 1e15) == first and sizes[-1] == 2


def test_micro_batches_of_small_and_odd_batches():
    assert fitting_micro_batch(replace(SMALL, batch_size=1), "float32", 1e9) == 1
    assert fitting_micro_batch(replace(SMALL, batch_size=1), "float32", 1e3) == 0
    assert fitting_micro_batch(replace(SMALL, batch_size=11), "float32", 1e9) == 11
    seen = {fitting_micro_batch(replace(SMALL, batch_size=11), "float32", room) for room in range(0, 400_000, 10)}
    assert seen == {0, 2, 4, 6, 11}


def test_the_budget_s_micro_batch_is_the_trainer_s():
    tight = replace(card("A5000", "tf32"), memory_bytes=10e9)
    room = 10e9 - budgets.RESERVED_BYTES
    budget = predict(LARGE, tight)
    assert budget.fits and budget.micro_batch_size == fitting_micro_batch(LARGE, "tf32", room) == 4096
    # 124 M parameters with gradients and momentum: 1.5 GB; batches 3.3; 12 * 10 * 1024 + 1024 and twice 11,230 numbers
    # of 4 bytes, 2.4 GB for 4096 images: 7.2 GB. For 8192: 9.6.
    assert sum(budget.memory.values()) == pytest.approx(7.2e9, rel=0.01)
    none = predict(LARGE, replace(tight, memory_bytes=3e9))
    assert not none.fits and none.micro_batch_size == 2
    assert any("it does not fit: 5.2 GiB, with a margin of 15%, of 1.8;" in text for text in none.advice)


def test_a_given_micro_batch_needs_the_margin_too():
    job = replace(LARGE, micro_batch_size=8192)
    room = sum(memory(job, "tf32", 8192).values())
    for share, fits in ((1.16, True), (1.14, False)):
        budget = predict(job, replace(card("A5000", "tf32"), memory_bytes=share * room + budgets.RESERVED_BYTES))
        assert budget.micro_batch_size == 8192 and budget.fits is fits


def test_the_paper_s_largest_run_on_an_a5000():
    # bfloat16: 8.1 GB, TF32: 13.9; 15 % more is 9.4 and 16.0, of 24 - 1.07 GB
    for precision, used in (("bfloat16", 8.14e9), ("tf32", 13.92e9)):
        budget = predict(LARGE, card("A5000", precision))
        assert budget.micro_batch_size == 16_384 and sum(budget.memory.values()) == pytest.approx(used, rel=0.01)
    assert predict(LARGE, card("T4")).micro_batch_size == 8192  # 13.9 GB do not fit, 9.6 do


def test_the_paper_s_epochs_and_the_link_that_would_bind():
    names = "B_12-Wi_1024", "B_6-Wi_1024"
    large, small = (TrainingJob(parse_arch(name), 64, 11_230, 11_801_680, 16_384, 1) for name in names)
    machine = card("A5000", "tf32")
    assert machine.efficiency == hardware.EFFICIENCY and machine.flop_per_s == 55.6e12
    assert predict(large, machine).epoch_s == pytest.approx(450, rel=0.05)
    assert predict(small, machine).epoch_s == pytest.approx(250, rel=0.10)
    need = predict(small, machine).images_per_s * (3 * 64 * 64 + 17) / budgets.LINK_EFFICIENCY
    for factor, binding in ((1.01, "device"), (0.99, "host link")):
        assert predict(small, replace(machine, link_bytes_per_s=factor * need)).binding == binding
    starved = predict(small, replace(machine, link_bytes_per_s=0.5 * need))
    assert any("32 px" in text for text in starved.advice)
    tiny = predict(replace(small, images=50_000), replace(machine, link_bytes_per_s=0.5 * need))
    assert any('cache="device"' in text for text in tiny.advice)


@pytest.mark.parametrize("name", hardware.CARDS)
def test_every_card_is_explained(name):
    budget = predict(
        TrainingJob(parse_arch("B_6-Wi_512"), 64, 1000, 1_281_167, 16_384, 100), card(name), Host(5e5, 2e9, 64e9)
    )
    text = explain(budget)
    assert text.startswith(f"predicted for {name}: B_6-Wi_512") and "assumed: " in text and "<- binds" in text


def test_a_mig_slice_is_its_share_of_the_card():
    whole = card("A100")
    half = hardware.mig_slice(whole, "3g.40gb")
    assert half.flop_per_s == pytest.approx(312e12 * 3 / 7) and half.memory_bytes == 40e9
    assert half.memory_bytes_per_s == 2039e9 / 2 and half.link_bytes_per_s == whole.link_bytes_per_s
    assert hardware.mig_slice(whole, "1g.10gb").memory_bytes_per_s == 2039e9 / 8
    assert hardware.mig_slice(whole, "7g.80gb").flop_per_s == whole.flop_per_s
    assert explain(predict(LARGE, half)).startswith("predicted for A100 3g.40gb")
    for name, profile, text in (
        ("A5000", "1g.5gb", "A5000 has no MIG"),
        ("A100", "5g.1", "unknown"),
        ("A100", "7g.10gb", "has no 7g.10gb: a slice of 7g has about 80 GB"),
    ):
        with pytest.raises(ValueError, match=text):
            hardware.mig_slice(card(name), profile)


def test_sizes_below_one_are_refused():
    for name in ("res", "num_classes", "images", "batch_size", "num_devices"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            replace(SMALL, **{name: 0})


def test_what_no_card_has_is_told():
    with pytest.raises(ValueError, match="T4 has no bfloat16"):
        card("T4", "bfloat16")
    with pytest.raises(ValueError, match="unknown card 'GTX'"):
        card("GTX")
    with pytest.raises(ValueError, match="unknown precision 'fp8'"):
        card("T4", "fp8")
