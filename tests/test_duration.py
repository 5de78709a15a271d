"""Durations: what is accepted, and steps without off-by-one."""

import pytest

from fastmlp.duration import Duration


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("30", 30, "epochs"),
        (30, 30, "epochs"),
        (0.5, 0.5, "epochs"),
        (" 0.5 epochs ", 0.5, "epochs"),
        ("1 epoch", 1, "epochs"),
        ("5000 steps", 5000, "steps"),
        ("1e6 images", 1_000_000, "images"),
        ("1e6images", 1_000_000, "images"),
        ("1.5E+3 Images", 1500, "images"),
        ("0", 0, "epochs"),
    ],
)
def test_parse(text, amount, unit):
    duration = Duration.parse(text)
    assert (duration.amount, duration.unit) == (amount, unit)
    assert Duration.parse(str(duration)) == duration


@pytest.mark.parametrize(
    "text",
    [
        "",
        "epochs",
        "-1",
        "nan",
        "inf",
        "1e999",
        "3 weeks",
        "1.5 steps",
        "0.5 images",
        "1,000",
        "1.2.3",
        "True",
        "5 steps 3",
        "٣ epochs",
    ],
)
def test_anything_else_is_refused_saying_what_is_accepted(text):
    with pytest.raises(ValueError, match=r"is no duration .*'5000 steps', '1e6 images' or '0.5 epochs'"):
        Duration.parse(text)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        # 10 steps of 64 images an epoch
        ("3", 30),
        ("0.5", 5),
        ("0.26", 3),
        ("0.24", 2),
        ("0.3 epochs", 3),  # 0.3 * 10 is 3 in floating point, 0.1 * 3 is not 0.3: no floor here
        ("7 steps", 7),
        ("640 images", 10),
        ("641 images", 11),
        ("639 images", 10),
        ("64 images", 1),
        ("65 images", 2),
        ("1 image", 1),
        ("0.001 epochs", 1),  # never nothing
        ("0", 0),
        ("0 images", 0),
    ],
)
def test_steps(text, steps):
    assert Duration.parse(text).steps(batch_size=64, steps_per_epoch=10) == steps


def test_fractions_of_an_epoch_do_not_lose_a_step_to_rounding():
    for steps_per_epoch in range(1, 200):
        for step in range(1, steps_per_epoch + 1):
            duration = Duration(step / steps_per_epoch)
            assert duration.steps(1, steps_per_epoch) == step


def test_unknown_units_are_refused():
    with pytest.raises(ValueError, match="unknown unit 'hours'"):
        Duration(1, "hours")
