"""Resuming a loader from its state."""

import time

import numpy as np
import pytest
from ffcv.traversal_order.random import Random
from loading import (
    QUASI_RANDOM,
    RANDOM,
    SAMPLES,
    SEQUENTIAL,
    assert_batches,
    beton_fixture,  # noqa: F401
    drain,
    make,
    pages_fixture,  # noqa: F401
)
from numbered_images import index_of

from fastmlp.loader.order import random_order


@pytest.mark.parametrize("order", [SEQUENTIAL, RANDOM, QUASI_RANDOM])
@pytest.mark.parametrize("drop_last", [True, False])
def test_resume_after_every_batch(beton, order, drop_last):
    options = {"order": order, "seed": 5, "drop_last": drop_last}
    with make(beton, 60, **options) as loader:
        epochs = [drain(loader) for _ in range(3)]
    for received in range(len(epochs[1]) + 1):
        with make(beton, 60, **options) as loader:
            drain(loader)
            batches = iter(loader)
            for _ in range(received):
                next(batches)
            time.sleep(0.01)  # batches loaded ahead do not count
            state = loader.state_dict()
        with make(beton, 60, **options) as loader:
            loader.load_state_dict(state)
            assert loader.state_dict() == state
            assert_batches(drain(loader), epochs[1][received:])
            assert_batches(drain(loader), epochs[2])
    with make(beton, 60, **options) as loader:  # an exhausted epoch is over
        drain(loader)
        state = loader.state_dict()
        assert (state["epoch"], state["samples"]) == (1, 0)


def test_resume_with_another_batch_size_goes_on_at_the_sample(beton):
    with make(beton, 60, order=RANDOM, seed=5) as loader:
        batches = iter(loader)
        head = [index_of(next(batches)[0].numpy()) for _ in range(3)]
        state = loader.state_dict()
    with make(beton, 32, order=RANDOM, seed=5, drop_last=False) as loader:
        loader.load_state_dict(state)
        rest = drain(loader)
    np.testing.assert_array_equal(np.concatenate(head + rest), random_order(np.arange(SAMPLES), 5, 0))


@pytest.mark.parametrize("order", [RANDOM, QUASI_RANDOM])
def test_a_loader_without_a_seed_takes_that_of_the_state(beton, order):
    with make(beton, 60, order=order) as loader:
        drain(loader)
        batches = iter(loader)
        next(batches)
        state = loader.state_dict()
        rest, after = drain(batches), drain(loader)
    with make(beton, 60, order=order) as loader:
        assert loader.seed != state["seed"]
        loader.load_state_dict(state)
        assert loader.state_dict() == state
        assert_batches(drain(loader), rest)
        assert_batches(drain(loader), after)
        assert loader.filter("label", lambda label: True).seed == state["seed"]
    with make(beton, 60, order=order) as loader, loader.filter("label", lambda label: True) as found:
        found.load_state_dict(state)
        assert_batches(drain(found), rest)
        found.load_state_dict({**state, "seed": 7})  # another one
        assert found.seed == 7
    with make(beton, 60, order=order) as loader:
        loader.seed = 3  # given afterwards
        with pytest.raises(ValueError, match=r"seed .* \(here 3\)"):
            loader.load_state_dict(state)
    with make(beton, 60, order=order) as loader, pytest.raises(ValueError, match="seed='x': expected an integer"):
        loader.load_state_dict({**state, "seed": "x"})


def test_a_custom_order_without_a_seed_does_not_take_that_of_the_state(beton):
    """It has copied the loader's."""
    state = make(beton, order=Random).state_dict()
    with make(beton, order=Random) as loader, pytest.raises(ValueError, match="seed"):
        loader.load_state_dict(state)


def test_a_state_is_of_plain_numbers(beton):
    state = make(beton, order=RANDOM, seed=np.int64(3)).state_dict()
    assert {type(value) for value in state.values()} == {int}


def test_states_of_others_are_refused(beton, pages):
    state = make(beton, order=RANDOM, seed=1).state_dict()
    for other, message in (
        (make(pages, order=RANDOM, seed=1), "beton"),
        (make(beton, order=RANDOM, seed=2), r"seed 1 \(here 2\)"),
        (make(beton, order=SEQUENTIAL, seed=1), "order"),
        (make(beton, order=RANDOM, seed=1, indices=[1, 2]), "indices"),
    ):
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)
    for wrong in ({}, {**state, "samples": 501}, {**state, "samples": -1}, {**state, "epoch": -1}):
        with pytest.raises(ValueError):
            make(beton, order=RANDOM, seed=1).load_state_dict(wrong)
    windowed = make(beton, order=QUASI_RANDOM, seed=1, window_bytes=16 << 20).state_dict()
    with pytest.raises(ValueError, match="window_bytes"):
        make(beton, order=QUASI_RANDOM, seed=1).load_state_dict(windowed)
