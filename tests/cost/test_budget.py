"""Predicted costs against cases computed by hand, and the effect of changing one part."""

from dataclasses import replace

import pytest

from fastmlp.arch import parse_arch
from fastmlp.cost import budget as budgets
from fastmlp.cost import flops, hardware
from fastmlp.cost.budget import Host, TrainingJob, explain, memory, predict
from fastmlp.cost.hardware import Machine, card

SMALL = TrainingJob(parse_arch("B_1-Wi_4-E_2"), 2, 3, 1000, 10, 2, "adamw", micro_batch_size=5)
FAST = Machine("x", 1e9, 1e9, 1e12, 1e6, "float32", 0.5)


def test_a_tiny_model_by_hand():
    # weights: 12*4 in, 4*8 + 8*4 block, 4*3 out = 124; the images' gradient, 2*12*4, is left out: 3*248 - 96 = 648 FLOP
    assert flops.training_flop_per_image(SMALL.arch, 2, 3) == 648
    traffic = budgets.traffic_bytes_per_image(SMALL, FAST, 5)
    parameters = 124 + 4 + 8 + 4 + 8 + 3  # biases of in, expand, collapse; ln_weight and ln_bias; out
    assert flops.parameters(SMALL.arch, 2, 3) == parameters
    by_hand = 1 * 4 * (10 * 4 + 6 * 8) + (12 + 12 * 4 * 2) + 4 * 4 * 3
    by_hand += (3 * 4 * parameters + 2 * 2 * 4 * parameters) / 10 + 3 * 4 * parameters / 5
    assert traffic == pytest.approx(by_hand)
    budget = predict(SMALL, FAST)
    device = 1 / (648 / 0.5e9 + traffic / (1e12 * hardware.MEMORY_EFFICIENCY))
    assert budget.bounds["device"] == pytest.approx(device)
    assert budget.bounds["host link"] == pytest.approx(1e6 * budgets.LINK_EFFICIENCY / (12 + 17))
    assert budget.binding == "host link" and budget.epoch_s == pytest.approx(1000 / budget.images_per_s)
    assert budget.days == pytest.approx(2 * budget.epoch_s / 86_400)


def test_memory_by_part():
    parts = memory(SMALL, FAST, 5)
    parameters = flops.parameters(SMALL.arch, 2, 3)
    assert parts["weights"] == parts["gradients"] == 4 * parameters and parts["optimiser"] == 8 * parameters
    assert parts["activations"] == flops.activation_bytes(SMALL.arch, 2, 3, 5) + 2 * 4 * 5 * 8
    assert parts["batches"] == 3 * 10 * (12 + 12 * 4) and parts["cached data"] == 0
    half = memory(SMALL, replace(FAST, precision="bfloat16"), 5)
    assert half["weights"] == 6 * parameters and half["activations"] < parts["activations"]
    assert memory(replace(SMALL, cached=True), FAST, 5)["cached data"] == 12_000


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


def test_the_micro_batch_is_the_largest_that_fits():
    run = TrainingJob(parse_arch("B_12-Wi_1024"), 64, 11_230, 10**6, 16_384, 1)
    tight = replace(card("A5000", "tf32"), memory_bytes=10e9)
    budget = predict(run, tight)
    assert budget.fits and sum(budget.memory.values()) <= 10e9 - budgets.RESERVED_BYTES
    assert sum(memory(run, tight, 2 * budget.micro_batch_size).values()) > 10e9 - budgets.RESERVED_BYTES
    none = predict(run, replace(tight, memory_bytes=3e9))
    assert not none.fits and any("does not fit" in text for text in none.advice)


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


def test_what_no_card_has_is_told():
    with pytest.raises(ValueError, match="T4 has no bfloat16"):
        card("T4", "bfloat16")
    with pytest.raises(ValueError, match="unknown card 'GTX'"):
        card("GTX")
