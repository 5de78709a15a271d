"""The process group of several ranks; two real processes train in training/test_resume.py."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from fastmlp.distributed import DistributedContext, init_distributed


@pytest.fixture
def calls(monkeypatch):
    """What would be called of torch.distributed by rank 1 of 2."""
    made = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", lambda backend: made.update(backend=backend))
    monkeypatch.setattr(dist, "new_group", lambda **options: made.update(control=options) or "control")
    monkeypatch.setattr(dist, "destroy_process_group", lambda: made.update(destroyed=True))
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    return made


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda:1", "nccl")])
def test_each_device_has_its_backend(calls, device, backend):
    with init_distributed(torch.device(device)) as context:
        assert context == DistributedContext(1, 2, "control")
    assert calls["backend"] == backend and calls["control"]["backend"] == "gloo" and calls["destroyed"]


def test_an_evaluation_may_take_hours(calls, monkeypatch):
    """The other ranks wait for the main one's scores outside of NCCL, which gives up after 10 minutes."""
    used = []
    monkeypatch.setattr(dist, "broadcast_object_list", lambda box, src, group: used.append(group))
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, op, group: used.append((tensor.device.type, group)))
    with init_distributed(torch.device("cuda:1")) as context:
        context.broadcast("scores")
        context.all_reduce_any(False)
    assert calls["control"]["timeout"] >= timedelta(days=1)
    assert used == ["control", ("cpu", "control")]


def test_a_single_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with init_distributed(torch.device("cpu")) as context:
        assert context == DistributedContext() and context.broadcast("scores") == "scores"
