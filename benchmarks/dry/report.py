"""The tables of a dry run, on stderr."""

from collections.abc import Mapping
from typing import Any

import measure

from fastmlp.cost.hardware import EFFICIENCY, MEMORY_EFFICIENCY

GIB, MIB = 2**30, 2**20


def print_results(title: str, results: Mapping[str, Any]) -> None:
    """Print what was compiled, counted and computed; nothing of it is measured."""
    print_parts(title, results)
    print_kernels(results)
    rows = [["tensor, outside of the products (counted)", "part", "read", "written", "GiB"]]
    for one in results["tensors"]:
        sizes = [f"{one['read']} times", f"{one['written']} times", f"{one['bytes'] / GIB:.3f}"]
        rows.append([_named(one), one["part"], *sizes])
    measure.print_table("tensors above 1 MiB", rows)
    rows = [["tensor (counted)", "part", "count", "GiB"]]
    for one in results["stored_for_backward"]:
        rows.append([_named(one), one["part"], str(one["count"]), f"{one['bytes'] / GIB:.3f}"])
    measure.print_table("stored for the backward pass", rows)
    print_memory(results["memory"])
    for dtype, crops in results.get("interpreter", {}).items():
        for crop, one in crops.items():
            same = f"largest difference {one['max_difference']:.3g}, {one['unequal']:.2%} of the values differ"
            same = same if one["max_difference"] else "equal bit for bit"
            measure.print_table("", [[f"interpreted against eager, {dtype}, {crop}:", same]])


def print_parts(title: str, results: Mapping[str, Any]) -> None:
    rows = [["part (counted)", "GiB", "kB/image", f"ms at {MEMORY_EFFICIENCY:.0%} of the memory's rate (computed)"]]
    for name, part in {**results["parts"], "together": results["total"]}.items():
        rows.append([name, f"{part['bytes'] / GIB:.3f}", f"{part['bytes_per_image'] / 1e3:.1f}", f"{part['ms']:.2f}"])
    products = results["products"]
    measure.print_table(f"{title}: bytes outside of the matrix products", rows)
    rows = [
        ["matrix products (counted)", f"{products['count']}, {products['flop'] / 1e12:.3f} TFLOP"],
        [f"ms at {EFFICIENCY:.0%} of the peak (computed)", f"{products['ms']:.2f}"],
        ["micro-batch (computed)", f"{results['micro_batch_size']:,}"],
        ["graphs compiled before the steps", str(results["graphs_before_the_steps"])],
        ["graphs compiled in each step", ", ".join(map(str, results["graphs_by_step"]))],
    ]
    measure.print_table("", rows)


def print_kernels(results: Mapping[str, Any]) -> None:
    rows = [["graph", "part", "kernels", "launches"]]
    for one in results["graphs"]:
        part = f"{one['part']}, {one['phase']}"
        rows.append([str(one["graph"]), part, str(one["kernels"]), str(one["launches"])])
    measure.print_table("graphs (compiled)", rows)
    rows = [["kernel", "launches", "registers", "spills", "shared", "MiB", "of it reread", "bytes/image"]]
    for one in results["kernels"]:
        sizes = [f"{one['bytes'] / MIB:,.1f}", f"{one['reread_bytes'] / MIB:,.1f}", f"{one['bytes_per_image']:,.0f}"]
        resources = [str(one[key]) for key in ("launches", "registers", "spill_bytes", "shared_bytes")]
        rows.append([f"{one['graph']} {one['kernel'][:72]}", *resources, *sizes])
    measure.print_table("kernels: registers, spills and shared memory [bytes] compiled, traffic counted", rows)
    rows = [["eager operation", "part", "calls", "MiB"]]
    for one in results["eager"]:
        if one["bytes"] >= MIB:
            part = f"{one['part']}, {one['phase']}"
            rows.append([one["operation"], part, str(one["calls"]), f"{one['bytes'] / MIB:,.1f}"])
    measure.print_table("operations outside of graphs (counted)", rows)


def print_memory(memory: Mapping[str, Any]) -> None:
    rows = [["memory at the peak (counted)", "GiB", "the budget's (computed)", "GiB"]]
    counted = [[name, f"{size / GIB:.3f}"] for name, size in memory["parts"].items()]
    predicted = [[name, f"{size / GIB:.3f}"] for name, size in memory["budget_parts"].items() if size]
    for number in range(max(len(counted), len(predicted))):
        left = counted[number] if number < len(counted) else ["", ""]
        rows.append([*left, *(predicted[number] if number < len(predicted) else ["", ""])])
    totals = [f"{memory[key] / GIB:.3f}" for key in ("peak_bytes", "budget_bytes")]
    rows.append(["together", totals[0], "together", totals[1]])
    measure.print_table("", rows)


def _named(tensor: Mapping[str, Any]) -> str:
    return f"{tensor['dtype']} {' x '.join(map(str, tensor['shape']))}"
