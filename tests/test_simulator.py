"""The simulated accelerator itself: it finds each kind of race, and correct programs compute what the CPU does.

test_simulated_device.py runs the functions named simulated_*.
"""

import contextlib
import sys
import threading

import pytest
import simulated_device
import torch
from simulated_device import NAME, Event, RaceError, Stream, current_stream, reset, sim, stream, synchronize
from torch import Tensor, nn

GPU, OTHER = torch.device("privateuseone", 0), torch.device("privateuseone", 1)  # simgpu, once it is installed
KB = 1024


def test_works_with_the_pinned_torch():
    assert torch.__version__ != "2.13.0+cpu" or simulated_device.self_test() == ""


@contextlib.contextmanager
def race(*words: str):
    """Expect a RaceError with some words, by the end of the block or of the queued work."""
    with pytest.raises(RaceError) as caught:
        yield
        synchronize()
    for word in words:
        assert word in str(caught.value)


def pinned_ones() -> Tensor:
    return torch.empty(4, pin_memory=True).fill_(1)


def used_on_a_side_stream() -> tuple[Stream, Tensor, Tensor]:
    """Return another stream, ones that it reads, and its result of twos."""
    side, values = Stream(), torch.ones(4, device=GPU)
    side.wait_stream(current_stream())
    with stream(side):
        return side, values, values + 1


# --- races -----------------------------------------------------------------------------------------------------------


def simulated_read_without_waiting_for_the_write():
    values = torch.ones(4, device=GPU)
    with race("reads", "written by fill_", "test_simulator.py"), stream(Stream()):
        values + 1


def simulated_write_without_waiting_for_the_write():
    values = torch.ones(4, device=GPU)
    with race("writes", "written by"), stream(Stream()):
        values.zero_()


def simulated_write_without_waiting_for_the_read():
    side, values, result = used_on_a_side_stream()
    with race("writes", "read by add"):
        values.zero_()
    side.synchronize()
    assert result.tolist() == [2] * 4


def simulated_event_recorded_too_early():
    side, event = Stream(), Event()
    event.record()
    values = torch.ones(4, device=GPU)
    side.wait_event(event)
    with race("reads"), stream(side):
        values + 1


def simulated_item_without_waiting():
    with stream(Stream()):
        value = torch.ones((), device=GPU)
    with race("item on stream 0"):
        value.item()


def simulated_data_dependent_shape_without_waiting():
    with stream(Stream()):
        values = torch.ones(4, device=GPU)
    with race("nonzero on stream 0"):
        values.nonzero()


def simulated_freed_while_another_stream_uses_it():
    side, values, result = used_on_a_side_stream()
    with race("is freed while add", "record_stream"):
        del values
    assert result.shape == (4,)


def simulated_freed_after_record_stream():
    side, values, result = used_on_a_side_stream()
    values.record_stream(side)
    del values
    torch.zeros(4, device=GPU)
    side.synchronize()
    assert result.tolist() == [2] * 4


def simulated_freed_after_the_owner_waited():
    side, values, result = used_on_a_side_stream()
    current_stream().wait_stream(side)
    del values
    assert result.tolist() == [2] * 4


def simulated_pinned_buffer_overwritten_before_its_copy():
    host = pinned_ones()
    sent = host.to(GPU, non_blocking=True)
    with race("overwrote a pinned buffer", "test_simulator.py"):
        host.zero_()
    assert sent.shape == (4,)


def simulated_queued_copies_do_not_refer_to_their_buffers():
    """A program that reuses a buffer as soon as nothing refers to it would otherwise seem to be correct."""
    host, values = torch.empty(4, pin_memory=True), torch.empty(4, device=GPU)
    array = host.numpy()

    def references():
        storages = [tensor.untyped_storage()._cdata for tensor in (host, values)]
        return [sys.getrefcount(array), *map(torch._C._storage_Use_Count, storages)]

    before = references()
    values.copy_(host, non_blocking=True)
    values.add_(values)
    host.copy_(values, non_blocking=True)
    assert not waits() and references() == before


def simulated_pinned_memory_lives_until_it_is_copied():
    sent = pinned_ones().to(GPU, non_blocking=True)
    pinned_ones().zero_()
    assert not waits() and sent.tolist() == [1] * 4


def simulated_pinned_buffer_overwritten_after_its_event():
    host, copied = pinned_ones(), Event()
    sent = host.to(GPU, non_blocking=True)
    copied.record()
    copied.synchronize()
    host.zero_()
    assert sent.tolist() == [1] * 4


@pytest.mark.parametrize("pinned", [True, False])
def simulated_blocking_copies_wait(pinned):
    host = pinned_ones() if pinned else torch.ones(4)
    sent = host.to(GPU)
    host.zero_()
    assert sent.tolist() == [1] * 4 and ("copy to the device", 1) in [(kind, n) for (kind, _), n in waits()]


def simulated_memory_that_is_not_pinned_is_read_at_once():
    host = torch.ones(4)
    sent = host.to(GPU, non_blocking=True)
    host.zero_()
    assert not waits() and sent.tolist() == [1] * 4


def simulated_copy_to_the_host_read_too_early():
    values = torch.ones(4, device=GPU)
    host = torch.empty(4, pin_memory=True).copy_(values, non_blocking=True)
    assert host.isnan().all() and not waits()
    synchronize()
    assert host.tolist() == [1] * 4


def simulated_two_devices_in_one_operation():
    with pytest.raises(RaceError, match="mixes tensors"):
        torch.ones(4, 4, device=GPU) @ torch.ones(4, 4, device=OTHER)


def simulated_uninitialised_memory_shows():
    assert torch.empty(4, device=GPU).isnan().all() and torch.empty(4, dtype=torch.int64, device=GPU).eq(-1).all()


# --- programs without races ------------------------------------------------------------------------------------------


def waits():
    return list(sim.counters.syncs.items())


def simulated_streams_hand_over_by_events():
    side, written = Stream(), Event()
    with stream(side):
        values = torch.ones(4, device=GPU)
        written.record()
    current_stream().wait_event(written)
    values.record_stream(current_stream())
    result = values + 1
    assert not waits() and result.tolist() == [2] * 4


def simulated_order_is_transitive():
    first, second, values = Stream(), Stream(), torch.ones(4, device=GPU)
    first.wait_stream(current_stream())
    second.wait_stream(first)
    with stream(second):
        result = values + 1
    current_stream().wait_stream(second)
    assert result.tolist() == [2] * 4


def simulated_copies_between_devices():
    values = torch.arange(4.0, device=GPU)
    there = values.to(OTHER)
    values.zero_()
    back = (there + 1).to(GPU) + values
    assert there.device == OTHER and not waits() and back.tolist() == [1, 2, 3, 4]


OPERATIONS = {
    "index": lambda x: x[torch.tensor([2, 0], device=x.device)],
    "index_put": lambda x: x.clone().index_put_((torch.tensor([1], device=x.device),), x[:1]),
    "mask": lambda x: x[x > 0],
    "arange": lambda x: torch.arange(3, device=x.device),
    "promotion": lambda x: x.int() * 0.5 + torch.tensor(2.0, dtype=torch.float64),
    "bytes": lambda x: x.view(torch.uint8).sum(),
    "foreach": lambda x: torch._foreach_lerp([x], [x + 1], 0.3)[0],
    "transposed": lambda x: x.new_empty_strided((3, 1), (1, 9)).copy_(x[:, :1]).T.contiguous(),
}


@pytest.mark.parametrize("name", OPERATIONS)
def simulated_operations_equal_the_cpu(name):
    values = torch.randn(3, 4)
    expected, got = OPERATIONS[name](values), OPERATIONS[name](values.to(GPU))
    assert got.device == GPU and got.dtype == expected.dtype and torch.equal(got.cpu(), expected)


def simulated_autocast_dtypes():
    weight = torch.ones(4, 4, device=GPU)
    with torch.autocast(NAME, torch.bfloat16):
        product = weight @ weight
        assert product.dtype == nn.functional.linear(weight, weight, weight[0]).dtype == torch.bfloat16
        assert product.softmax(1).dtype == nn.functional.layer_norm(product, (4,)).dtype == torch.float32
        assert nn.functional.cross_entropy(product, product).dtype == product.sum().dtype == torch.float32
        assert (weight.double() @ weight.double()).dtype == torch.float64


# --- memory and counters ---------------------------------------------------------------------------------------------


@pytest.fixture(name="account")
def account_fixture():
    simulated_device.empty_cache()
    torch.get_device_module(NAME).reset_peak_memory_stats()
    return simulated_device.memory(GPU)


def simulated_memory_is_counted(account):
    before = account.allocated
    values = torch.ones(8 * KB, dtype=torch.uint8, device=GPU)
    assert account.allocated == before + 8 * KB
    half = values[: 4 * KB]
    del values
    assert account.allocated == before + 8 * KB
    del half
    assert (account.allocated, account.max_allocated) == (before, before + 8 * KB)
    assert account.reserved == before + 8 * KB
    simulated_device.empty_cache()
    assert account.reserved == before


def simulated_streams_keep_their_memory(account):
    def grown(wanted: Stream) -> int:
        before = account.reserved
        with stream(wanted):
            torch.ones(8 * KB, dtype=torch.uint8, device=GPU)
        return account.reserved - before

    side = Stream()
    assert [grown(side), grown(side), grown(Stream()), grown(Stream())] == [8 * KB, 0, 8 * KB, 8 * KB]


def simulated_recorded_memory_returns_when_its_stream_is_done(account):
    side, before = Stream(), account.reserved
    for done, reserved in ((False, 8 * KB), (False, 16 * KB), (True, 24 * KB), (False, 24 * KB)):
        values = torch.ones(8 * KB, dtype=torch.uint8, device=GPU)
        side.wait_stream(current_stream())
        values.record_stream(side)
        del values
        assert account.reserved == before + reserved
        if done:
            side.synchronize()


def simulated_out_of_memory(account, monkeypatch):
    monkeypatch.setattr(sim, "limit_bytes", account.reserved + 16 * KB)
    values = torch.ones(12 * KB, dtype=torch.uint8, device=GPU)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 8192 bytes"):
        torch.ones(8 * KB, dtype=torch.uint8, device=GPU)
    with pytest.raises(torch.OutOfMemoryError):
        values.to(torch.float32)
    assert torch.get_device_module(NAME).mem_get_info(GPU) == (4 * KB, sim.limit_bytes)
    del values
    with stream(Stream()):  # free memory of another stream is given up first
        torch.ones(8 * KB, dtype=torch.uint8, device=GPU)


def simulated_counters():
    def work() -> None:
        with stream(Stream(1)):
            torch.ones(4, device=OTHER)

    assert sim.counters.contexts == set()
    torch.empty(4, pin_memory=True)
    value = torch.ones((), device=GPU)
    thread = threading.Thread(target=work, name="worker")
    thread.start()
    thread.join()
    value.item()
    counters = reset()
    assert counters.contexts == {0, 1} and counters.streams == counters.pinned_buffers == 1
    assert counters.launches == 3 and counters.by_thread["MainThread", "item"] == 1
    [(kind, site)] = [(kind, site) for kind, site in counters.syncs if kind == "item"]
    assert site.startswith("tests/test_simulator.py:") and site.endswith(" simulated_counters")
