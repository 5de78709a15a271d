"""The lines that a GPU would run, on the simulated accelerator (simulated_device.py): the loader and planted races.

torch.compile is off: what it builds for a device is not simulated.
"""

import contextlib
import gc
import inspect
import textwrap
import threading

import numpy as np
import pytest
import torch
from numbered_images import numbered
from simulated_device import (
    INSIDE,
    NAME,
    RaceError,
    Stream,
    current_stream,
    reset,
    run_inside,
    sim,
    stream,
    synchronize,
)

from fastmlp import Loader, OrderOption
from fastmlp.beton.writer import write_beton
from fastmlp.device import StreamHandoff
from fastmlp.loader.iterator import EpochIterator, _Producer
from fastmlp.transforms import torch_path
from fastmlp.transforms.augment_params import Augment
from fastmlp.transforms.pipelines import image_pipelines, raw_pipelines

SAMPLES, BATCH, EPOCHS, SEED = 58, 16, 3, 3
MEAN, STD = (125.0, 120.0, 110.0), (60.0, 61.0, 62.0)
SEEDS = 20
OTHERS = (
    "tests/test_simulator.py",
    "tests/training/simulated_training.py",
    "tests/evaluation/simulated_evaluation.py",
    "tests/benchmarks/simulated_benchmarks.py",
)
KINDS = {
    "raw": lambda device: raw_pipelines(device),
    "augmented": lambda device: image_pipelines(
        Augment("random_resized", flip=True), 12, mean=MEAN, std=STD, seed=5, device=device, augment_on="device"
    ),
    "by area": lambda device: image_pipelines(
        Augment("random_resized", flip=True),
        12,
        mean=MEAN,
        std=STD,
        seed=5,
        device=device,
        augment_on="device",
        resampling="area",
    ),
    "cropped on the host": lambda device: image_pipelines(
        Augment("random_resized", flip=True), 12, mean=MEAN, std=STD, seed=5, device=device, augment_on="host"
    ),
}


if INSIDE:
    torch_path._works = False


def test_on_the_simulated_device():
    """The functions named simulated_* of these files, in one process."""
    run_inside(__file__, *OTHERS)


@pytest.fixture(scope="module")
def beton(tmp_path_factory):
    return write_beton(tmp_path_factory.mktemp("beton") / "n.beton", numbered(SAMPLES), 8, seed=None)


@pytest.fixture(scope="module")
def expected(beton):
    """expected(kind)[epoch][number]: the batches of the CPU's loader; of the same operations, so bit for bit."""
    found = {}

    def batches(kind):
        if kind not in found:
            pipelines = KINDS[kind]("cpu")
            if kind == "cropped on the host":  # a device receives rounded pixels, and normalises them there
                pipelines = image_pipelines(
                    Augment("random_resized", flip=True), 12, mean=MEAN, std=STD, seed=5, augment_on="host"
                )
            with make(beton, pipelines) as loader:
                found[kind] = [[tuple(t.clone() for t in batch) for batch in loader] for _ in range(EPOCHS + 1)]
        return found[kind]

    return batches


def make(beton, pipelines, **keywords):
    settings = {"num_workers": 1, "order": OrderOption.RANDOM, "seed": SEED, "drop_last": False, "batches_ahead": 1}
    return Loader(beton, BATCH, pipelines=pipelines, **{**settings, **keywords})


class Reader:
    """A caller that keeps what it has read as a copy on the device, made in the stream's order, to compare it later."""

    def __init__(self, loader, batches):
        self.loader, self.batches, self.kept = loader, batches, []

    def keep(self, epoch, number, batch):
        """Submit work that reads a batch."""
        self.kept.append((epoch, number, tuple(tensor.clone() for tensor in batch)))

    def read_all(self, epoch):
        for number, batch in enumerate(self.loader):
            self.keep(epoch, number, batch)

    def break_off(self, epoch):
        """End the loop, and go on to submit work on the last batch."""
        for number, batch in enumerate(self.loader):
            if number == 2:
                break
            self.keep(epoch, number, batch)
        self.keep(epoch, number, batch)

    def close(self, epoch):
        iterator = iter(self.loader)
        batch = next(iterator)
        iterator.close()
        self.keep(epoch, 0, batch)

    def take_first(self, epoch):
        """Use tensors whose iterator is already gone."""
        images, labels = next(iter(self.loader))
        self.keep(epoch, 0, (images, labels))

    def receive_nothing(self, epoch):
        """Drop an iterator that has loaded ahead."""
        iter(self.loader)

    def change_streams(self, epoch):
        """Receive each batch on one stream, go on with it on another, and ask for the next one there."""
        batches, here, there = iter(self.loader), current_stream(), Stream(NAME)
        batch = next(batches)
        for number in range(len(self.loader)):
            there.wait_stream(here)
            with stream(there):
                for tensor in batch:
                    tensor.record_stream(there)
                self.keep(epoch, number, batch)
                batch = next(batches, None)
            here, there = there, here
        here.wait_stream(there)

    HOW = (read_all, break_off, close, take_first, receive_nothing, change_streams)

    def check(self, tolerance=0.0):
        for device in range(sim.devices):
            synchronize(device)
        for epoch, number, batch in self.kept:
            for mine, theirs in zip(batch, self.batches[epoch][number], strict=True):
                torch.testing.assert_close(mine.cpu(), theirs, rtol=0, atol=tolerance)
        assert self.kept


# --- the loader ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["none", "device"])
@pytest.mark.parametrize("kind", KINDS)
def simulated_batches_are_those_of_the_cpu(beton, expected, kind, cache):
    with make(beton, KINDS[kind](f"{NAME}:0"), cache=cache) as loader:
        reader = Reader(loader, expected(kind))
        for epoch in range(EPOCHS):
            reader.read_all(epoch)
        reader.check(0.51 / min(STD) if kind == "cropped on the host" else 0.0)


@pytest.mark.parametrize("how", Reader.HOW[1:], ids=lambda how: how.__name__)
def simulated_epochs_that_end_early(beton, expected, how):
    with make(beton, KINDS["augmented"](NAME)) as loader:
        reader = Reader(loader, expected("augmented"))
        how(reader, 0)
        reader.read_all(1)
        how(reader, 2)
        reader.read_all(3)
        reader.check()


@pytest.mark.parametrize("cache", ["none", "device"])
def simulated_resuming(beton, expected, cache):
    with make(beton, KINDS["augmented"](NAME), cache=cache) as loader:
        reader = Reader(loader, expected("augmented"))
        reader.break_off(0)
        state = loader.state_dict()
    with make(beton, KINDS["augmented"](NAME), cache=cache) as loader:
        reader.loader = loader
        loader.load_state_dict(state)
        for number, batch in enumerate(loader):
            reader.keep(0, number + 3, batch)
        assert number + 3 == len(expected("augmented")[0]) - 1
        reader.read_all(1)
        reader.check()


def simulated_consumer_on_a_stream_of_its_own(beton, expected):
    with make(beton, KINDS["augmented"](NAME)) as loader:
        reader = Reader(loader, expected("augmented"))
        for epoch in range(EPOCHS):
            with stream(Stream(NAME)):  # another one each time
                reader.HOW[epoch](reader, epoch)
        reader.check()


@pytest.mark.parametrize("kind", ["raw", "augmented"])
def simulated_device_other_than_the_current_one(beton, expected, kind):
    with make(beton, KINDS[kind](f"{NAME}:1")) as loader:
        reader = Reader(loader, expected(kind))
        for epoch in range(EPOCHS):
            reader.HOW[epoch](reader, epoch)
        assert reader.kept[0][2][0].device == torch.device(NAME, 1)
        assert sim.counters.contexts == {1}  # of torchrun's ranks above 0, none opens the device of rank 0
        reader.check()


def simulated_images_and_labels_on_two_devices(beton, expected):
    pipelines = {"image": raw_pipelines(f"{NAME}:0")["image"], "label": raw_pipelines(f"{NAME}:1")["label"]}
    with make(beton, pipelines) as loader:
        reader = Reader(loader, expected("raw"))
        for epoch in range(EPOCHS):
            reader.HOW[epoch](reader, epoch)
        assert [tensor.device.index for tensor in reader.kept[0][2]] == [0, 1]
        reader.check()


@pytest.mark.parametrize("cache", ["none", "device"])
def simulated_device_without_a_number_beside_another(beton, expected, cache):
    pipelines = {"image": raw_pipelines(NAME)["image"], "label": raw_pipelines(f"{NAME}:1")["label"]}
    with make(beton, pipelines, cache=cache) as loader:
        reader = Reader(loader, expected("raw"))
        reader.read_all(0)
        assert [tensor.device.index for tensor in reader.kept[0][2]] == [0, 1]
        reader.check()


def simulated_pipelines_of_the_cpu_touch_no_device(beton):
    with make(beton, KINDS["augmented"]("cpu")) as loader:
        for _ in range(2):
            for _ in loader:
                pass
    counters = sim.counters
    assert not counters.contexts and not counters.streams and not counters.pinned_buffers and not counters.launches


def simulated_epochs_keep_their_stream_and_memory(beton):
    backend = torch.get_device_module(NAME)
    with make(beton, KINDS["augmented"](NAME)) as loader:
        reserved = []
        for _ in range(5):
            for images, _labels in loader:
                images.sum()
            del images, _labels
            reserved.append(backend.memory_reserved())
        assert reset().streams == 1
        assert reserved[1:] == reserved[1:2] * 4


@pytest.mark.parametrize("cache", ["none", "device"])
def simulated_only_page_locked_memory_is_sent(beton, cache):
    """After the first batch the loading thread waits for slots and for its own end, and for no copy."""
    with make(beton, KINDS["augmented"](NAME), cache=cache) as loader:
        for images, _ in loader:
            images.sum()
        reset()
        for images, _ in loader:
            images.sum()
        kinds = {kind for (thread, kind) in sim.counters.by_thread if thread == "fastmlp-loader"}
        assert kinds - {"launches", "pinned_buffers"} == {"event.synchronize"}


# --- planted bugs ----------------------------------------------------------------------------------------------------


def exercise(beton, expected, seed):
    """Read epochs in an order, of pipelines, on streams and ended in ways that the seed draws. Raises RaceError."""
    rng = np.random.default_rng(seed)
    kind, cache = ("raw", "augmented")[rng.integers(2)], ("none", "device")[rng.integers(2)]
    with make(beton, KINDS[kind](NAME), cache=cache, batches_ahead=int(rng.integers(3))) as loader:
        reader = Reader(loader, expected(kind))
        for epoch in range(EPOCHS):
            with stream(Stream(NAME)) if rng.integers(2) else contextlib.nullcontext():
                reader.HOW[rng.integers(len(reader.HOW))](reader, epoch)
            if rng.integers(2):  # lets the loading thread end and give its slots back
                for thread in threading.enumerate():
                    if thread.name == "fastmlp-loader":
                        thread.join()
        if reader.kept:
            reader.check()


def plant(monkeypatch, owner, name, line, bug):
    """Exchange one line of a method."""
    function = inspect.unwrap(inspect.getattr_static(owner, name))
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(line) == 1, f"{line!r} is not a line of {owner.__name__}.{name}"
    names = {}
    exec(source.replace(line, bug), vars(inspect.getmodule(function)), names)
    monkeypatch.setattr(owner, name, names[name])


def bugs():
    return {
        "no reuse sync": (_Producer, "_load_all", "source.handoff.wait(slot.released)", "pass"),
        "no wait_event": (StreamHandoff, "receive", "reader.wait_event(event)", "pass"),
        "no record_stream": (StreamHandoff, "receive", "tensor.record_stream(", "id("),
        "no give-back event": (StreamHandoff, "submitted", "for device, stream in readers", "for device, stream in ()"),
        "stream-only ordering": (
            StreamHandoff,
            "wait",
            "event.synchronize()",
            "[stream.wait_event(event) for stream in self._streams.values()]",
        ),
        "no finish": (StreamHandoff, "finish", "self.wait(self.loaded())", "pass"),
        "the slot's event precedes later work": (_Producer, "_return_slots", "slot.released = None", "pass"),
        "the consumer's change of streams is not noted": (
            EpochIterator,
            "_give_back",
            "slot.readers.update(self._handoff.current_streams())",
            "pass",
        ),
        "readers are not noted": (EpochIterator, "__next__", "loaded.slot.readers |= ", ""),
    }


@pytest.mark.parametrize("bug", list(bugs()))
def simulated_planted_bug_is_caught(beton, expected, monkeypatch, bug):
    plant(monkeypatch, *bugs()[bug])
    with pytest.raises(RaceError):
        for seed in range(SEEDS):
            exercise(beton, expected, seed)
    gc.collect()
    for _ in range(2):  # drops the races that are left
        with contextlib.suppress(RaceError):
            reset()


def simulated_without_a_bug_there_is_no_race(beton, expected):
    for seed in range(SEEDS):
        exercise(beton, expected, seed)
