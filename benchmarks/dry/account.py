"""The account as one dictionary: kernels, bytes by part, tensors, memory beside the budget's, lower bounds in ms."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fastmlp.arch import parse_arch
from fastmlp.cost import budget, flops, hardware

from .graphs import Graph
from .ledger import PARTS, Entry
from .live_memory import LiveMemory
from .step import Case, Step

LARGE_BYTES = 2**20  # of a tensor that is listed


def account(
    case: Case,
    card: str,
    entries: Sequence[Entry],
    graphs: Sequence[Graph],
    resources: Mapping[str, Any],  # by a kernel's source
    done: Step,
    memory: LiveMemory,
) -> dict[str, Any]:
    machine, products = hardware.card(card), [e for e in entries if e.flop]
    others = [e for e in entries if not e.flop]
    rate = machine.memory_bytes_per_s * hardware.MEMORY_EFFICIENCY
    parts = {}
    for part in PARTS:
        size = sum(e.bytes for e in others if e.part == part)
        again = sum(e.reread_bytes for e in others if e.part == part)
        parts[part] = {
            "bytes": size,
            "reread_bytes": again,
            "bytes_per_image": size / case.batch,
            "ms": 1e3 * size / rate,
        }
    flop = sum(e.flop for e in products)
    job = budget.TrainingJob(parse_arch(case.arch), case.res, case.classes, case.batch, case.batch, 1)
    return {
        "precision": machine.precision,
        "total": _total(parts),
        "micro_batch_size": done.micro_batch_size,
        "parts": parts,
        "products": {
            "count": len(products),
            "flop": flop,
            "formula_flop": case.batch * flops.training_flop_per_image(job.arch, case.res, case.classes),
            "bytes": sum(e.bytes for e in products),
            "ms": 1e3 * flop / (machine.flop_per_s * hardware.EFFICIENCY),
        },
        "graphs": _graphs(others, graphs),
        "graphs_before_the_steps": done.graphs_before,
        "graphs_by_step": done.graphs_by_step,
        "kernels": _kernels(others, graphs, resources, case),
        "eager": _eager(others),
        "tensors": _tensors(others),
        "stored_for_backward": [one for one in done.stored if one["bytes"] >= LARGE_BYTES],
        "memory": _memory(job, machine, done, memory),
    }


def _total(parts: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {key: sum(part[key] for part in parts.values()) for key in ("bytes", "bytes_per_image", "ms")}


def _grouped(entries: Iterable[Entry], key: Callable[[Entry], tuple]) -> dict[tuple, list[Entry]]:
    groups: dict[tuple, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(key(entry), []).append(entry)
    return groups


def _graphs(entries: Sequence[Entry], graphs: Sequence[Graph]) -> list[dict[str, Any]]:
    """Return the graphs that ran: how many kernels each has, and how many launches there were of them all."""
    rows = []
    for (number, part, phase), group in _grouped(entries, lambda e: (e.graph, e.part, e.phase)).items():
        if number is not None:
            counts = Counter(e.name for e in group)
            rows.append(
                {
                    "graph": number,
                    "part": part,
                    "phase": phase,
                    "kernels": len(graphs[number].kernels),
                    "launches": counts.total(),
                }
            )
    return rows


def _kernels(
    entries: Sequence[Entry], graphs: Sequence[Graph], resources: Mapping[str, Any], case: Case
) -> list[dict[str, Any]]:
    rows = []
    groups = _grouped((e for e in entries if e.graph is not None), lambda e: (e.part, e.phase, e.graph, e.name))
    for (part, phase, number, name), group in groups.items():
        size = sum(e.bytes for e in group)
        rows.append(
            {
                "kernel": name,
                "graph": number,
                "part": part,
                "phase": phase,
                "launches": len(group),
                **resources[graphs[number].kernels[name]],
                "bytes": size,
                "bytes_per_image": size / case.batch,
                "reread_bytes": sum(e.reread_bytes for e in group),
                "of_one_launch": [dataclasses.asdict(access) for access in group[0].accesses],
            }
        )
    return rows


def _eager(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    groups = _grouped((e for e in entries if e.graph is None), lambda e: (e.part, e.phase, e.name))
    rows = [
        {
            "operation": name,
            "part": part,
            "phase": phase,
            "calls": len(group),
            "bytes": sum(e.bytes for e in group),
        }
        for (part, phase, name), group in groups.items()
    ]
    return sorted(rows, key=lambda row: -row["bytes"])


def _tensors(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return the large tensors that are read or written outside of the products, by part, shape and type."""
    rows: dict[tuple, dict[str, Any]] = {}
    for entry in entries:
        for access in entry.accesses:
            if access.bytes >= LARGE_BYTES:
                key = entry.part, access.shape, access.dtype
                row = rows.setdefault(
                    key,
                    {"part": key[0], "shape": key[1], "dtype": key[2], "read": 0, "written": 0, "bytes": 0},
                )
                row[access.kind] += 1
                row["bytes"] += access.bytes
    return sorted(rows.values(), key=lambda row: -row["bytes"])


def _memory(job: budget.TrainingJob, machine: hardware.Machine, done: Step, memory: LiveMemory) -> dict[str, Any]:
    predicted, parts = budget.memory(job, machine.precision, done.micro_batch_size), memory.peak_by_role()
    predicted["batches"] = parts.get("batch", 0)  # the budget's are the loader's three batches; here there is one
    return {
        "peak_bytes": memory.peak_bytes,
        "parts": parts,
        "budget_bytes": sum(predicted.values()),
        "budget_parts": predicted,
        "budget_micro_batch_size": budget.predict(job, machine).micro_batch_size,
        "needed_bytes": budget.needed_bytes(predicted),
    }
