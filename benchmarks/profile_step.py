"""Where the time of a training step goes: what `python benchmarks/train_step.py --profile FOLDER` does.

Every operation's own time (without what it calls) counts for one part. On the CPU the parts are host time; on CUDA
they are the kernels' time, except the wait for data. The rest is what is left of the step's wall time: Python, the
autograd engine, launching kernels.
"""

import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import measure
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function, supported_activities

from fastmlp import device as devices
from fastmlp import plots
from fastmlp.training import trainer as training
from fastmlp.training.trainer import Trainer

STEPS = 9  # odd: one of them is the median
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm")
NORMS = ("aten::native_layer_norm", "aten::native_layer_norm_backward", "aten::gelu", "aten::gelu_backward")
NORMS += tuple(  # models/fused_passes.py
    f"fastmlp::{name}" for name in ("layer_norm", "layer_norm_backward", "gelu_and_slope", "multiply_and_sum")
)
LOSS_NODE = "_LossFunctionBackward"  # models.loss.mixed_cross_entropy's; its forward pass is marked as "loss"
PARTS = ("waiting for data", "matrix products", "LayerNorm and GELU", "other passes", "loss", "optimiser", "rest")


def part_of(event: Any) -> str:
    """Return the part that an operation's own time counts for: its callers decide first, then what it is."""
    caller = event
    while caller is not None:
        if caller.name == "data":
            return "waiting for data"
        if caller.name.startswith("Optimizer."):
            return "optimiser"
        node = caller.name.removeprefix("autograd::engine::evaluate_function: ")
        if caller.name == "loss" or node == LOSS_NODE:
            return "loss"
        caller = caller.cpu_parent
    if event.name in PRODUCTS:
        return "matrix products"
    if event.name in NORMS:
        return "LayerNorm and GELU"
    return "other passes" if event.name.startswith("aten::") else "rest"


def parts(events: Any, device: torch.device) -> list[dict[str, float]]:
    """Return the milliseconds of each part, of each profiled step; they add up to the step's wall time."""
    host = [event for event in events if event.device_type == DeviceType.CPU]
    steps = sorted((e.time_range.start, e.time_range.end) for e in host if e.name == "step")
    found = [dict.fromkeys(PARTS, 0.0) for _ in steps]
    for event in host:
        number = next((n for n, (a, b) in enumerate(steps) if a <= event.time_range.start < b), None)
        if number is None or event.name == "step":
            continue
        part = part_of(event)
        on_host = device.type == "cpu" or part == "waiting for data"
        if part != "rest":
            found[number][part] += (event.self_cpu_time_total if on_host else event.self_device_time_total) / 1e3
    for step, (start, end) in zip(found, steps, strict=True):
        # Kernels of a step run one after another, so they cannot take longer than the step; clocks may differ slightly.
        step["rest"] = max(0.0, (end - start) / 1e3 - sum(step.values()))
    return found


def take_step(trainer: Trainer, batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> None:
    with record_function("step"):
        with record_function("data"):
            batch = next(batches)
        trainer.step(*batch)
        devices.synchronize(trainer.device)


def picture(typical: dict[str, float], title: str, path: Path) -> None:
    """Save a picture: one bar, with its parts named below, their milliseconds and shares."""
    figure, wall, left = plots.new_figure(8, 3), sum(typical.values()), 0.0
    axes = figure.subplots()
    colours = ("#b8b8b8", "#3b6ea5", "#e0a030", "#f0d090", "#a05a9c", "#4f9d69", "#e4e4e4")
    for (name, ms), colour in zip(typical.items(), colours, strict=True):
        axes.barh([0], [ms], left=left, color=colour, edgecolor="white", label=f"{name}: {ms:.1f} ms, {ms / wall:.1%}")
        if ms > 0.06 * wall:
            axes.text(left + ms / 2, 0, f"{ms / wall:.0%}", ha="center", va="center", fontsize=9)
        left += ms
    axes.set_xlim(0, wall)
    axes.set_yticks([])
    axes.set_xlabel("ms of a step")
    axes.set_title(title, fontsize=10)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    plots.save_figure(figure, path, dpi=120)


def profiled(trainer: Trainer, batches: Iterator[tuple[torch.Tensor, torch.Tensor]], path: Path) -> Any:
    """Return the profiler's events of STEPS steps, and save the trace."""
    kinds = [ProfilerActivity.CPU] if trainer.device.type == "cpu" else list(supported_activities())
    loss = training.mixed_cross_entropy
    with mock.patch.object(training, "mixed_cross_entropy", record_function("loss")(loss)):
        with profile(activities=kinds, acc_events=True) as profiler:
            for _ in range(STEPS):
                take_step(trainer, batches)
    partial = path.with_name(path.name + ".partial")
    profiler.export_chrome_trace(str(partial))
    os.replace(partial, path)
    return profiler.events()


def run(
    trainer: Trainer,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    settings: dict[str, Any],  # of the case
    folder: Path,  # for trace.json and profile.png
) -> dict[str, Any]:
    """Return the parts of the step whose wall time is the median, and each part's range over the steps."""
    folder.mkdir(parents=True, exist_ok=True)
    bare = []  # without the profiler, whose own time is mostly in the rest
    for _ in range(STEPS + 2):
        started = time.perf_counter()
        take_step(trainer, batches)
        bare.append(time.perf_counter() - started)
    steps = parts(profiled(trainer, batches, folder / "trace.json"), trainer.device)
    typical = sorted(steps, key=lambda step: sum(step.values()))[len(steps) // 2]
    wall = sum(typical.values())
    results = {
        "wall_ms": wall,
        "wall_without_profiler_ms": 1e3 * statistics.median(bare[2:]),
        "parts": {
            name: {
                "ms": ms,
                "share": ms / wall,
                "least_ms": min(step[name] for step in steps),
                "most_ms": max(step[name] for step in steps),
            }
            for name, ms in typical.items()
        },
    }
    title = (
        f"{settings['arch']}, {settings['res']} px, batch {settings['batch']:,}: a step of {wall:.0f} ms "
        f"({results['wall_without_profiler_ms']:.0f} ms without the profiler)"
    )
    picture(typical, title, folder / "profile.png")
    rows = [
        [name, f"{part['ms']:.1f} ms", f"{part['share']:.1%}", f"({part['least_ms']:.1f} to {part['most_ms']:.1f})"]
        for name, part in results["parts"].items()
    ]
    measure.print_table(f"{title}; {folder / 'trace.json'}, {folder / 'profile.png'}", rows)
    measure.emit("profile", settings, results)
    return results
