"""Other loaders: each gives uint8 images and labels, in random order, in batches, from a folder of its own.

Each peer is a function that writes arrays into a folder, as its documentation advises, and returns an iterable, each
iteration of which is an epoch: batches of images (B, res, res, 3) uint8 and labels (B,) int64, every image once.
The start of workers does not count: they stay from one epoch to the next.
"""

import gc
import importlib.util
import multiprocessing
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import drain
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

Batches = Iterable[Any]  # of (images, labels)
WORKERS = 2
RUN_S = 1.0  # a peer gets as many images as take about this long in an epoch
PROBE_IMAGES = 2048  # in the epochs that find this number; they do not count
MAX_S = 30  # to prepare, or for an epoch: a peer that takes longer has failed


class Arrays(Dataset):
    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Any) -> Any:
        return self.images[rows], self.labels[rows]


def dataloader_per_sample(images: np.ndarray, labels: np.ndarray, folder: Path, batch_size: int) -> Batches:
    return DataLoader(Arrays(images, labels), batch_size, shuffle=True)


# No workers: with two it was 4 times slower, because batches are copied through shared memory.
def dataloader_batched(images: np.ndarray, labels: np.ndarray, folder: Path, batch_size: int) -> Batches:
    data = Arrays(images, labels)
    return DataLoader(data, batch_size=None, sampler=BatchSampler(RandomSampler(data), batch_size, drop_last=False))


def webdataset(images: np.ndarray, labels: np.ndarray, folder: Path, batch_size: int) -> Batches:
    import webdataset as wds

    res = images.shape[1]
    with wds.ShardWriter(f"{folder}/%06d.tar", maxcount=-(-len(images) // (4 * WORKERS)), verbose=0) as shards:
        for n, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            shards.write({"__key__": f"{n:08d}", "raw": image.tobytes(), "cls": label})

    def decode(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
        return torch.frombuffer(bytearray(sample["raw"]), dtype=torch.uint8).view(res, res, 3), int(sample["cls"])

    paths = sorted(map(str, folder.glob("*.tar")))
    data = wds.WebDataset(paths, shardshuffle=100).shuffle(1000).map(decode).batched(batch_size)
    # wds.WebLoader wraps DataLoader in a pipeline that would not end its workers.
    return DataLoader(data, batch_size=None, num_workers=WORKERS, persistent_workers=True)


def litdata(images: np.ndarray, labels: np.ndarray, folder: Path, batch_size: int) -> Batches:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import Cache

    # What each process of its optimize() does, without the seconds that the processes take to start.
    cache = Cache(str(folder / "chunks"), chunk_bytes="64MB")
    for n, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        cache[n] = (image, label)
    cache.done()
    cache.merge()
    data = StreamingDataset(str(folder / "chunks"), cache_dir=str(folder / "cache"), shuffle=True)
    return StreamingDataLoader(data, batch_size=batch_size)


def streaming(images: np.ndarray, labels: np.ndarray, folder: Path, batch_size: int) -> Batches:
    from streaming import MDSWriter, StreamingDataset

    res = images.shape[1]
    with MDSWriter(out=str(folder), columns={"image": f"ndarray:uint8:{res},{res},3", "label": "int"}) as writer:
        for image, label in zip(images, labels.tolist(), strict=True):
            writer.write({"image": image, "label": label})
    data = StreamingDataset(local=str(folder), shuffle=True, batch_size=batch_size)
    return DataLoader(data, batch_size, num_workers=WORKERS, persistent_workers=True, collate_fn=_pairs)


def _pairs(samples: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(np.stack([sample["image"] for sample in samples]))
    return images, torch.tensor([sample["label"] for sample in samples])


@dataclass(frozen=True)
class Peer:
    make: Callable[[np.ndarray, np.ndarray, Path, int], Batches]
    module: str  # that it needs
    package: str  # that has the module

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None


PEERS: dict[str, Peer] = {
    "DataLoader, per sample": Peer(dataloader_per_sample, "torch", "torch"),
    "DataLoader, batched": Peer(dataloader_batched, "torch", "torch"),
    "webdataset": Peer(webdataset, "webdataset", "webdataset"),
    "litdata": Peer(litdata, "litdata", "litdata"),
    "streaming": Peer(streaming, "streaming", "mosaicml-streaming"),
}


def absent() -> list[str]:
    """Return the packages of the peers that are not installed."""
    return [peer.package for peer in PEERS.values() if not peer.installed]


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError, in the main thread, if the body takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def clean(folder: Path) -> Iterator[None]:
    """Keep what peers leave (caches, locks) in the folder; afterwards end their processes, free their shared memory."""
    others, temporary = multiprocessing.active_children(), tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = temporary
        gc.collect()  # loaders end their workers when they are collected
        for child in multiprocessing.active_children():
            if child not in others:
                child.kill()
                child.join()
        if "streaming" in sys.modules:
            sys.modules["streaming"].base.util.clean_stale_shared_memory()


def ffcv_loader(path: Path, **options: Any) -> Any:
    """Return FFCV's own Loader, with torch's number of threads as it was: FFCV's Loader sets it."""
    import ffcv.loader

    threads = torch.get_num_threads()
    loader = ffcv.loader.Loader(str(path), **options)
    torch.set_num_threads(threads)
    return loader


class Runs:
    """Peers as candidates for measure.alternate; `failed` gives the reason for each that did not finish."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, folder: Path, batch_size: int):
        self.failed: dict[str, str] = {}
        self.images: dict[str, int] = {}  # per epoch
        self._batches: dict[str, Batches] = {}
        for name, peer in PEERS.items():
            if peer.installed:
                self._try(name, lambda n=name, m=peer.make: self._prepare(n, m, images, labels, folder, batch_size))

    def _prepare(
        self,
        name: str,
        make: Callable[..., Batches],
        images: np.ndarray,
        labels: np.ndarray,
        folder: Path,
        batch_size: int,
    ) -> None:
        for count in (PROBE_IMAGES, 0):
            if not count:  # the number that its second epoch suggests
                started = time.perf_counter()
                drain(self._batches[name])
                count = int(RUN_S * self.images[name] / (time.perf_counter() - started))
                if count <= PROBE_IMAGES:
                    return
            self.images[name] = count = min(count, len(images))
            own = Path(tempfile.mkdtemp(dir=folder))
            self._batches.pop(name, None)  # its workers end
            self._batches[name] = make(images[:count], labels[:count], own, batch_size)
            drain(self._batches[name])

    def _try(self, name: str, run: Callable[[], None]) -> None:
        try:
            with time_limit(MAX_S):
                run()
        except Exception as error:  # an error in a peer must not stop the benchmark
            self.failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
            self._batches.pop(name, None)

    def candidates(self) -> dict[str, Callable[[], None]]:
        def run(name: str) -> None:
            if name not in self.failed:
                self._try(name, lambda: drain(self._batches[name]))

        return {name: lambda n=name: run(n) for name in self._batches}

    def close(self) -> None:
        self._batches.clear()
