"""Runs in .venv-dry: compiles, counts, and prints one JSON line. benchmarks/dry_run.py starts it.

python -m dry.worker STUB CARD ARCH RES CLASSES BATCH FOLDER
"""

import dataclasses
import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from .load import load_torch


def main() -> None:
    stub, card_name, arch, *sizes, folder = sys.argv[1:]
    load_torch(Path(stub))
    import torch

    from fastmlp.device import compute_dtype

    from .account import account
    from .card import FakeCard, pretend
    from .cubins import compile_kernel
    from .graphs import captured
    from .ledger import Ledger
    from .step import Case, augment, train

    logging.getLogger("torch._inductor").setLevel(logging.ERROR)  # that a card has few multiprocessors, for one

    case, card = Case(arch, *map(int, sizes)), FakeCard(card_name)
    pixels, steps, others = Ledger(), Ledger(), Ledger()

    def launched(*arguments: Any) -> None:
        for ledger in (pixels, steps, others):
            ledger.launched(*arguments)

    with pretend(card), captured(launched) as graphs, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dtype = compute_dtype(torch.device("cuda", 0))
        augment(case, dtype, pixels)
        interpreted = {str(dtype).removeprefix("torch."): graphs[-1].kernels} if graphs else {}
        if dtype != torch.float32:  # only for the interpreter, which is exact there
            augment(case, torch.float32, others)
            interpreted["float32"] = graphs[-1].kernels if graphs else {}
        done = train(case, card, graphs, steps)
        entries = [*pixels.entries, *steps.entries]
        resources: dict[str, Any] = {}
        with tempfile.TemporaryDirectory(dir=folder) as sources:
            for name, source in {(e.name, graphs[e.graph].kernels[e.name]) for e in entries if e.graph is not None}:
                resources[source] = dataclasses.asdict(compile_kernel(name, source, Path(sources)))
    notices = sorted({str(one.message) for one in caught if "torch.compile failed" in str(one.message)})
    results = account(case, card_name, entries, graphs, resources, done, steps.memory)
    Path(folder, "interpreted.json").write_text(json.dumps({"case": dataclasses.asdict(case), "sources": interpreted}))
    print(json.dumps({**results, "notices": notices}))


if __name__ == "__main__":
    try:
        main()
    except MemoryError as error:  # the trainer's: not even two images fit on the card
        raise SystemExit(str(error)) from None
