"""Peers of the benchmark: each gives every image once with its own label, and one that fails or hangs is named."""

import multiprocessing
import time

import numpy as np
import peers
import pytest


def arrays(count: int, res: int = 8):
    """Images whose first four bytes are their number, and labels that follow from it."""
    images = np.zeros((count, res, res, 3), np.uint8)
    images.reshape(count, -1)[:, :4] = np.arange(count, dtype="<u4")[:, None].view(np.uint8)
    return images, np.arange(count) * 7 % 1000


@pytest.mark.parametrize("name", peers.PEERS)
@pytest.mark.filterwarnings("default")  # theirs
def test_an_epoch_has_every_image_once_with_its_label(name, tmp_path):
    pytest.importorskip(peers.PEERS[name].module)
    images, labels = arrays(300)
    with peers.clean(tmp_path):
        batches = peers.PEERS[name].make(images, labels, tmp_path, 64)
        for _ in range(2):
            epoch = [(np.asarray(x).copy(), np.asarray(y)) for x, y in batches]
            assert max(len(x) for x, _ in epoch) == 64
            found, answers = (np.concatenate(parts) for parts in zip(*epoch, strict=True))
            assert found.shape == images.shape and found.dtype == np.uint8
            numbers = np.ascontiguousarray(found.reshape(300, -1)[:, :4]).view("<u4")[:, 0]
            assert (np.sort(numbers) == np.arange(300)).all() and (numbers[:64] != np.arange(64)).any()
            assert (answers == labels[numbers]).all()
        del batches
    assert not multiprocessing.active_children()


def broken(*_):
    raise RuntimeError("no\n  such thing")


def hanging(*_):
    time.sleep(30)


@pytest.mark.serial
def test_peers_that_fail_hang_or_miss_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(
        peers,
        "PEERS",
        {
            "good": peers.Peer(peers.dataloader_batched, "torch", "torch"),
            "broken": peers.Peer(broken, "torch", "torch"),
            "hanging": peers.Peer(hanging, "torch", "torch"),
            "missing": peers.Peer(broken, "no_such_module", "no-such-package"),
        },
    )
    monkeypatch.setattr(peers, "MAX_S", 0.5)
    monkeypatch.setattr(peers, "RUN_S", 0.001)
    runs = peers.Runs(*arrays(300), tmp_path, 64)
    assert list(runs.candidates()) == ["good"] and runs.images["good"] == 300
    assert runs.failed == {"broken": "RuntimeError: no such thing", "hanging": "TimeoutError: took more than 0.5 s"}
    assert peers.absent() == ["no-such-package"]
    monkeypatch.setattr(peers, "drain", broken)
    runs.candidates()["good"]()  # fails in the middle of the benchmark
    assert "good" in runs.failed
