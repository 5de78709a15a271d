"""What report.py runs (SUITE), and which figures a reader wants to see first (HEADLINES)."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Benchmark:
    """A command of the suite."""

    title: str  # what it measures
    script: str  # benchmarks/{script}.py
    quick_flags: list[str]  # {out} stands for the report's folder
    full_flags: list[str]
    limit: str = ""  # the candidates whose name contains it are the limit of the others; a line may name another
    on_device: bool = False  # whether it takes --device

    def flags(self, full: bool, out: object, device: str = "auto") -> list[str]:
        flags = [flag.replace("{out}", str(out)) for flag in (self.full_flags if full else self.quick_flags)]
        return [*flags, "--device", device] if self.on_device and device != "auto" else flags


@dataclass(frozen=True)
class Headline:
    """A row of the short table: the candidate of the first line that has these settings."""

    what: str  # in words
    benchmark: str  # its name in SUITE
    settings: dict[str, Any]
    candidate: str  # its name, or the name before ", eager" and ", compiled" (the faster of them)
    limit: str = ""  # part of the names of the candidates that bound it, unless the line names its limit
    peer: str = ""  # name of the candidate to compare with
    in_readme: bool = False  # whether the table of --readme has it; the page has all


SUITE: dict[str, Benchmark] = {
    "loader": Benchmark(
        "Loading: uint8 batches in random order",
        "loader",
        ["--case", "64:16384:4", "64:2048:32", "32:16384:4", "--rounds", "5"],
        ["--rounds", "9"],
        "gather",
        on_device=True,
    ),
    "transforms": Benchmark(
        "Training-ready batches: crop, flip, normalise",
        "transforms",
        ["--case", "crop:64:64:4096", "--samples", "8192", "--rounds", "5"],
        ["--rounds", "5"],
        "write",
        on_device=True,
    ),
    "writer": Benchmark(
        "Writing betons",
        "writer",
        ["--images", "2400", "--arrays", "20000", "--rounds", "5"],
        ["--rounds", "5"],
        "bare",
    ),
    "startup": Benchmark(
        "From the constructor to the first batch",
        "startup",
        ["--samples", "65536", "1281167", "--skip-ffcv"],
        [],
    ),
    "cold": Benchmark(
        "Reading from a cold disk",
        "cold",
        ["--gigabytes", "1.5", "--window-bytes", str(1 << 28), "--rounds", "5"],
        ["--gigabytes", "6", "--window-bytes", str(1 << 29), "--rounds", "5"],
        "sequential",
    ),
    "train_step": Benchmark(
        "Training: from a beton to updated weights",
        "train_step",
        ["--case", "B_6-Wi_256,32,10,1024", "--rounds", "5"],
        ["--rounds", "9"],
        "gemm",
        on_device=True,
    ),
    "profile": Benchmark(
        "Where the time of a training step goes",
        "train_step",
        ["--profile", "{out}"],
        ["--profile", "{out}"],
        on_device=True,
    ),
    "growth": Benchmark(
        "How cost grows", "growth", ["--of", "batch", "--points", "3", "--rounds", "3"], [], on_device=True
    ),
    "inference": Benchmark(
        "Inference, crops at test time, probes",
        "inference",
        ["--images", "2048", "--rounds", "1", "--views", "5"],
        [],
        "gemm",
        on_device=True,
    ),
}

_LOADING = [
    Headline(
        f"loading {res} px, random order, batch {batch}, epochs of {batches}",
        "loader",
        {"res": res, "batch_size": batch, "batches": batches},
        "fastmlp",
        "bare gather",
        "ffcv, batches_ahead=1",  # its best in every case
        in_readme=(res, batches) == (64, 4) or batch == 2048,
    )
    for res, batch, batches in ((64, 16384, 4), (64, 16384, 32), (64, 2048, 32), (32, 16384, 4), (32, 16384, 32))
]
_OTHER_LOADERS = Headline(
    "the same, 64 px, batch 2048, against a DataLoader with whole batches",
    "loader",
    {"benchmark": "loader, peers", "batch_size": 2048},
    "fastmlp",
    "bare gather",
    "DataLoader, batched",
)
_STOCK = {"uint8": "ffcv", "flip": "ffcv, the paper's pipeline without MixUp"}  # for the other kinds of work, with it
_TRANSFORMS = [
    Headline(
        f"{what}, {stored} px to {res} px, batch {batch}",
        "transforms",
        {"work": work, "stored": stored, "res": res, "batch_size": batch},
        "fastmlp, host path" if work != "uint8" else "fastmlp",
        "bare write",
        _STOCK.get(work, "ffcv, the paper's pipeline"),
        in_readme=(work, stored, batch) == ("crop", 64, 4096),
    )
    for what, work, stored, res, batch in (
        ("training-ready float32 (random resized crop, flip, normalise)", "crop", 64, 64, 16384),
        ("training-ready float32 (random resized crop, flip, normalise)", "crop", 64, 64, 4096),
        ("flip and normalise", "flip", 64, 64, 16384),
        ("crop and flip as uint8", "uint8", 64, 64, 16384),
        ("random resized crop, flip, normalise", "crop", 32, 64, 16384),
    )
]
_FILES = [
    Headline(
        "writing 500 x 375 JPEG at 64 px",
        "writer",
        {"case": "jpeg"},
        "fastmlp",
        "bare decode and resize",
        "ffcv, as the paper",
        in_readme=True,
    ),
    Headline("writing 32 px arrays, with SHA-256 and sync to disk", "writer", {"case": "raw"}, "fastmlp", peer="ffcv"),
    Headline("a cold file in QUASI_RANDOM order", "cold", {}, "fastmlp", "sequential reads", in_readme=True),
]
_TRAINING = [
    Headline(
        f"training {arch}, 32 px, batch {batch}, from the beton{more}",
        "train_step",
        {"arch": arch, "batch": batch},
        "beton",
        limit,
        in_readme=(arch, batch, limit) == ("B_6-Wi_256", 1024, "gemm"),
    )
    for arch in ("B_6-Wi_256", "B_6-Wi_512")
    for batch in (1024, 16384)
    for limit, more in (("gemm", ""), ("predicted", ": measured over predicted"))
]
_INFERENCE = Headline("inference from a beton, B_6-Wi_256, 32 px", "inference", {}, "from a beton", "gemm")
HEADLINES: list[Headline] = [*_LOADING, _OTHER_LOADERS, *_TRANSFORMS, *_FILES, *_TRAINING, _INFERENCE]
