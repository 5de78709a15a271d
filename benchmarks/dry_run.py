"""Every GPU kernel of the augmentation and of a training step, compiled for a card that is not there.

    python benchmarks/dry_run.py --card A5000                                  # a minute or two; no GPU
    python benchmarks/dry_run.py --card T4 --case B_2-Wi_256,32,100,2048 --interpret

The real augmentation and the real Trainer.step run on tensors without memory, on a pretended card. Inductor writes the
Triton kernels that the card would run, and Triton and ptxas compile them. Told are registers, spills and bytes of each
kernel, the peak of the memory beside the budget's, and lower bounds in ms. All of it is compiled, counted or computed:
nothing is measured. It cannot show times, what cuBLAS chooses, the rounding of the card's products, or streams.

The first use makes .venv-dry (690 MiB, 10 s), beside the project's .venv.
Exit codes: 1 if an expectation fails (the augmentation is one kernel, nothing spills, no step after the first compiles,
the peak is 0.9 to 1.05 of the budget's, the interpreter's float32 equals eager's), 2 for a wrong option, 3 if it
cannot run here.
Tables go to stderr, one JSON line to stdout.
"""

import argparse
import sys
import tempfile
import time

import measure
from dry.chips import CHIPS
from dry.environment import CannotRun, Environment
from dry.expectations import failures
from dry.report import print_results

from fastmlp.arch import parse_arch

DEFAULT_CASE = "B_12-Wi_1024,64,11230,16384"


def dry_run(card: str, case: tuple[str, int, int, int], interpret: bool) -> dict:
    """Return the results of a case. Raises CannotRun."""
    environment = Environment()
    stub, started = environment.prepare(), time.monotonic()
    with tempfile.TemporaryDirectory(dir=environment.build) as folder:
        results = environment.run("dry.worker", str(stub), card, *map(str, case), folder, scratch=folder)
        if interpret:
            told = f"{folder}/interpreted.json"
            results["interpreter"] = environment.run("dry.interpret", told, scratch=folder, interpret=True)
    results["failures"] = failures(results)
    results["took_s"] = time.monotonic() - started
    results["environment"] = environment.made
    return results


def parse_case(text: str) -> tuple[str, int, int, int]:
    try:
        arch, res, classes, batch = text.split(",")
        if parse_arch(arch).norm != "layer":
            raise ValueError("only models with LayerNorm are compiled")
        sizes = int(res), int(classes), int(batch)
        if min(sizes) < 1:
            raise ValueError("sizes are at least 1")
        return arch, *sizes
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected ARCH,RES,CLASSES,BATCH, got {text!r}: {error}") from None


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--card", choices=CHIPS, default="A5000", help="(default: %(default)s)")
    parser.add_argument("--case", type=parse_case, default=DEFAULT_CASE, help="(default: %(default)s)")
    parser.add_argument(
        "--interpret", action="store_true", help="also run the augmentation's kernel on the CPU, against eager"
    )
    options = measure.parse(parser)
    title = f"{','.join(map(str, options.case))} on a pretended {options.card}"
    try:
        results = dry_run(options.card, options.case, options.interpret)
    except CannotRun as reason:
        print(f"the dry run cannot run here: {reason}", file=sys.stderr)
        raise SystemExit(3) from None
    print_results(title, results)
    measure.emit("dry_run", {**vars(options), "kind": "compiled, counted or computed; not measured"}, results)
    for failure in results["failures"]:
        print(f"expectation failed: {failure}", file=sys.stderr)
    if results["failures"]:
        raise SystemExit(1)


if __name__ == "__main__":
    from fastmlp import cli

    cli.run(main)
