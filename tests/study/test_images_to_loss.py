"""Images to equal loss: on power laws, whose ratio is known."""

import math

import pytest

from fastmlp.study.images_to_loss import compare_images, curves, images_to


def law(scale, exponent=-0.3, lengths=(1e4, 2e4, 4e4)):
    return [(images, (images / scale) ** exponent) for images in lengths]


@pytest.mark.parametrize("faster", [1.3, 2.0, 3.1])
def test_the_ratio_of_two_power_laws_is_that_of_their_scales(faster):
    """An arm that learns as the other does from `faster` times fewer images, which differ by a factor of 4."""
    slow, fast = {s: law(100 * (1 + 0.01 * s)) for s in range(6)}, {s: law(100 / faster) for s in range(6)}
    found = compare_images("fast > slow", "batch 7", fast, slow)
    assert found.by_seed[0] == pytest.approx(faster) and not found.is_bound
    verdict = found.verdict()
    assert verdict.claim == "fast > slow, batch 7: fewer images" and verdict.p < 1e-5
    assert 10**verdict.mean == pytest.approx(math.prod(found.by_seed.values()) ** (1 / 6))
    assert compare_images("slow > fast", "", slow, fast).by_seed[0] == pytest.approx(1 / faster)


def test_beyond_the_lengths_a_ratio_is_a_bound():
    found = compare_images("a > b", "", {s: law(10) for s in range(5)}, {s: law(100) for s in range(5)})
    assert found.is_bound and found.by_seed[0] == pytest.approx(4) and "; a bound" in found.verdict().difference


def test_a_loss_that_is_not_reached():
    with pytest.raises(ValueError, match="no length reaches the loss 0.01: the lowest is"):
        images_to(0.01, law(100))
    assert images_to(law(100)[2][1], law(100)) == pytest.approx((4e4, False))


def test_rows_become_curves():
    row = {"of_arm": "a", "where": "batch 7", "seed": 0, "eval_loss": 0.5, "images_seen": 20}
    rows = [row, {**row, "images_seen": 10, "eval_loss": 0.9}, {**row, "seed": 1, "eval_loss": None}]
    assert curves(rows) == {("batch 7", "a"): {0: [(10, 0.9), (20, 0.5)]}}
