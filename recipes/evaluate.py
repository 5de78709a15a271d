"""What a trained MLP, ours or a released one, makes of a data set, or of a folder of plain images.

    python recipes/evaluate.py --cfg.weights=runs/.../final.pt
    python recipes/evaluate.py --cfg.weights=runs/.../final.pt --cfg.tta_crops=100
    python recipes/evaluate.py --cfg.weights=runs/.../final.pt --cfg.images=~/holiday

On a data set: top-1, top-5 and, where the beton holds its labels, ReaL, with 95 % intervals, per class, and the
confusion matrix; --cfg.tta_crops=100 averages over as many crops of each image, the same ones each time. Leaves
results.json, results.md, predictions.csv and confusion.png. On a folder: predictions.csv, and sheets of the surest and
the least sure. Normalisation is the one that the model was trained with. Images/sec: benchmarks/inference.py.
"""

import csv
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

from fastmlp import cli
from fastmlp.config import EvaluateConfig
from fastmlp.datasets import get_dataset

SHOWN = 32  # of the surest, and of the least sure


def main() -> None:
    config = cli.parse(EvaluateConfig, __doc__.splitlines()[0])
    if not config.weights:
        raise ValueError("name the trained model: --cfg.weights=runs/.../final.pt")
    from fastmlp import device as devices
    from fastmlp.models.weights import load_model

    model, metadata = load_model(config.weights)
    if missing := {"mean", "std", "dataset"} - set(metadata):
        raise ValueError(f"{config.weights} does not tell its {', '.join(sorted(missing))}: save_model(..., facts)")
    metadata = {"fit": "square", "classes": [], **metadata}
    model.to(devices.select(config.device))
    of = Path(config.images).expanduser().name if config.images else config.dataset or metadata["dataset"]
    out = Path(config.out) if config.out else Path(config.weights).parent / f"evaluation-{of}"
    if config.images:
        on_folder(config, model, metadata, out)
    else:
        on_dataset(config, model, metadata, out)


def on_dataset(config: EvaluateConfig, model: Any, metadata: dict[str, Any], out: Path) -> None:
    from dataclasses import asdict, replace

    from fastmlp.data.split import MULTI_LABEL, Split
    from fastmlp.evaluation.evaluate import evaluate_detailed, wilson_interval
    from fastmlp.training.run import metadata_of
    from fastmlp.transforms.augment_params import Augment

    if not config.dataset and metadata["dataset"] == "unknown":
        raise ValueError(f"{config.weights} does not tell its data set: --cfg.dataset=NAME")
    spec = get_dataset(config.dataset or metadata["dataset"], config.data_dir, config.res)
    if spec.num_classes != model.num_classes:
        raise ValueError(
            f"{config.weights} tells {model.num_classes} classes apart, {spec.name} has "
            f"{spec.num_classes}: recipes/finetune.py or recipes/linear_probe.py give it another head"
        )
    spec = replace(spec, mean=tuple(metadata["mean"]), std=tuple(metadata["std"]))
    crop = Augment(
        "random_resized",
        (config.min_crop_scale, 1.0),
        (config.min_crop_ratio, 1 / config.min_crop_ratio),
        flip=config.flip,
    )
    split = Split(
        spec,
        config.split or spec.eval_split,
        "tta" if config.tta_crops else "evaluate",
        data_dir=config.data_dir,
        res=config.res or spec.res,
        image_res=model.res,
        batch_size=config.batch_size,
        seed=config.seed,
        num_workers=config.num_workers,
        augment=crop if config.tta_crops else None,
        device=next(model.parameters()).device,
    )
    described = metadata_of(spec, split.path)
    if described["fit"] != metadata["fit"]:
        print(
            f"notice: the model was trained on images of --fit {metadata['fit']}, {split.path.name} has --fit "
            f"{described['fit']}: write it with --fit {metadata['fit']} for the figures to compare",
            file=sys.stderr,
        )
    if metadata["classes"] and described["classes"] and metadata["classes"] != described["classes"]:
        raise ValueError(
            f"{config.weights} tells {', '.join(metadata['classes'][:5])}, ... apart, {split.path.name} "
            f"{', '.join(described['classes'][:5])}, ...: name the data set of the same classes"
        )
    out.mkdir(parents=True, exist_ok=True)  # now, rather than after the work
    multi = split.multi_labels() if MULTI_LABEL in split.loader.reader.handlers else None
    started = time.perf_counter()
    found = evaluate_detailed(model, split, config.tta_crops or 1, config.tta_average, multi)
    seconds = time.perf_counter() - started
    classes = names_of(model, metadata["classes"] or described["classes"])
    shares = {"top-1": (found.scores.top1, found.scores.images), "top-5": (found.scores.top5, found.scores.images)}
    if found.real_top1 is not None and found.real_images:
        shares["ReaL"] = (found.real_top1, found.real_images)
    results = {
        **{
            name: {"share": share, "images": images, "interval_95": wilson_interval(share, images)}
            for name, (share, images) in shares.items()
        },
        "loss": found.scores.loss,
        "per_class_top1": {
            name: None if share != share else share
            for name, share in zip(classes, found.per_class_top1.tolist(), strict=True)
        },
        "dataset": spec.name,
        "split": split.path.name,
        "arch": str(model.arch),
        "settings": asdict(config),
        "seconds": seconds,
    }
    how = f", mean {config.tta_average} of {config.tta_crops} crops" if config.tta_crops else ""
    table = f"| {Path(config.weights).name}, {model.arch}, {split.path.name}{how} | share | 95 % interval | images |\n"
    table += "|---|---|---|---|\n"
    for name, (share, images) in shares.items():
        low, high = wilson_interval(share, images)
        table += f"| {name} | {share:.2%} | {low:.2%} to {high:.2%} | {images:,} |\n"
    rows = [("sample", "label", "predicted", "probability", "right")]
    samples = zip(found.labels, found.predicted, found.probability, strict=True)
    rows += [
        (n, classes[label], classes[said], f"{p:.4f}", int(label == said)) for n, (label, said, p) in enumerate(samples)
    ]
    print(f"{table}\nloss {found.scores.loss:.4f}; {seconds:.1f} s")  # before what a full disk could prevent
    left = save(
        out,
        {"results.json": json.dumps(results, indent=1) + "\n", "results.md": table, "predictions.csv": as_csv(rows)},
    )
    try:
        from fastmlp.plots import confusion_matrix

        left.append(confusion_matrix(found.confusion, classes, out / "confusion.png").name)
    except ModuleNotFoundError as error:
        print(f"notice: {error}", file=sys.stderr)
    print(f"{out}: {', '.join(left)}")


def on_folder(config: EvaluateConfig, model: Any, metadata: dict[str, Any], out: Path) -> None:
    import numpy as np

    from fastmlp.evaluation.classify import classify_folder, thumbnails
    from fastmlp.plots import captioned_sheet

    fit = metadata["fit"] if config.fit == "auto" else config.fit
    folder = Path(config.images).expanduser()
    found = classify_folder(model, folder, metadata["mean"], metadata["std"], fit, config.num_workers)
    classes = names_of(model, metadata["classes"])
    best = np.argsort(-found.probabilities, 1, kind="stable")[:, :5]
    columns = [f"{what}{rank}" for rank in range(1, best.shape[1] + 1) for what in ("class", "probability")]
    rows = [("file", *columns)]
    rows += [
        (path.relative_to(folder), *(text for c in row for text in (classes[c], f"{shares[c]:.4f}")))
        for path, row, shares in zip(found.paths, best, found.probabilities, strict=True)
    ]
    left = save(out, {"predictions.csv": as_csv(rows)})
    sure = found.probabilities.max(1)
    order = np.argsort(-sure, kind="stable")
    for name, places in (("surest", order[:SHOWN]), ("least sure", order[::-1][:SHOWN])):
        captions = [f"{classes[best[place, 0]]}\n{sure[place]:.0%}" for place in places]
        images = thumbnails([found.paths[place] for place in places], model.res, fit)
        path = out / f"{name.replace(' ', '_')}.png"
        left.append(captioned_sheet(images, captions, path, title=f"the {name} of {len(order):,}").name)
    for message in found.unreadable:
        print(f"notice: {message}", file=sys.stderr)
    print(f"{len(order):,} images, {len(found.unreadable)} unreadable\n{out}: {', '.join(left)}")


def names_of(model: Any, names: list[str]) -> list[str]:
    """One for each class; numbers where the model came without."""
    return names if len(names) == model.num_classes else [str(label) for label in range(model.num_classes)]


def as_csv(rows: list[tuple]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def save(out: Path, files: dict[str, str]) -> list[str]:
    from fastmlp.atomic import write_atomic

    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_atomic(out / name, text)
    return list(files)


if __name__ == "__main__":
    cli.run(main)
