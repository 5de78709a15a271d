"""What must hold for a case, and the sentences that say what does not."""

from collections.abc import Iterator, Mapping
from typing import Any

GIB = 2**30
LEAST, MOST = 0.9, 1.05  # of the budget's memory, without its margin
BFLOAT16_ULP = 2.0**-7  # of a value from 1 to 2; the interpreter cuts off, and eager rounds


def failures(results: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each expectation that does not hold."""
    return [*results["notices"], *_kernels(results), *_graphs(results), *_memory(results), *_interpreter(results)]


def _kernels(results: Mapping[str, Any]) -> Iterator[str]:
    augmentation = [row for row in results["kernels"] if row["part"] == "augmentation"]
    launches = sum(row["launches"] for row in augmentation)
    launches += sum(row["calls"] for row in results["eager"] if row["part"] == "augmentation" and not _sends(row))
    if launches != 1:
        yield f"the augmentation is {launches} kernels instead of one"
    for row in results["kernels"]:
        if row["spill_bytes"]:
            yield f"{row['kernel']} ({row['part']}) spills {row['spill_bytes']} bytes of registers"


def _sends(row: Mapping[str, Any]) -> bool:
    """Whether an eager operation is the copy of boxes and flips to the device."""
    return row["operation"] == "_to_copy" and row["calls"] == 1


def _graphs(results: Mapping[str, Any]) -> Iterator[str]:
    _, *later = results["graphs_by_step"]
    for step, count in enumerate(later, 1):
        if count:
            yield f"step {step} compiles {count} graphs anew"


def _memory(results: Mapping[str, Any]) -> Iterator[str]:
    memory = results["memory"]
    ratio = memory["peak_bytes"] / memory["budget_bytes"]
    if not LEAST <= ratio <= MOST:
        peaks = " and ".join(f"{memory[key] / GIB:.3f}" for key in ("peak_bytes", "budget_bytes"))
        yield f"the peak is {ratio:.2f} of the budget's, {peaks} GiB"


def _interpreter(results: Mapping[str, Any]) -> Iterator[str]:
    if "interpreter" not in results:
        return
    training = "bfloat16" if results["precision"] == "bfloat16" else "float32"
    for dtype in sorted({"float32", training} - {name for name, crops in results["interpreter"].items() if crops}):
        yield f"the augmentation in {dtype} is not one kernel, so it was not interpreted"
    for dtype, crops in results["interpreter"].items():
        for crop, one in crops.items():
            allowed = 0.0 if dtype == "float32" else BFLOAT16_ULP * one["largest_value"]
            if not one["max_difference"] <= allowed:  # a NaN, too
                yield f"interpreted, {dtype} {crop} differs from eager by {one['max_difference']:.3g}"
