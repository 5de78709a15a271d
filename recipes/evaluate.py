"""Evaluates a trained MLP, ours or a released one, on a data set or on a folder of your own images.

    python recipes/evaluate.py --cfg.weights=runs/.../final.pt
    python recipes/evaluate.py --cfg.weights=runs/.../final.pt --cfg.tta_crops=100
    python recipes/evaluate.py --cfg.weights=runs/.../final.pt --cfg.images=~/holiday
    python recipes/evaluate.py --cfg.weights=B_12-Wi_1024_in21k_cifar10

On a data set it prints top-1, top-5 and, if the beton has its labels, ReaL, with 95 % intervals, and writes
results.json (also top-1 per class), results.md, predictions.csv and confusion.png. --cfg.tta_crops=100 averages over
100 crops of each image, the same ones each time. On a folder it writes predictions.csv and sheets of the most and the
least confident predictions. Images are normalised as the model was trained. benchmarks/inference.py measures
images/sec.
"""

from pathlib import Path

from fastmlp import cli
from fastmlp.config import EvaluateConfig


def main() -> None:
    config = cli.parse(EvaluateConfig, cli.summary(__doc__))
    if not config.weights:
        raise ValueError("name the trained model: --cfg.weights=runs/.../final.pt")
    with cli.loading():  # torch takes seconds, which --help need not wait for
        from fastmlp import device as devices
        from fastmlp.evaluation.report import report_on_dataset, report_on_images
        from fastmlp.models.released_files import find_released, is_path
        from fastmlp.models.weights import complete_metadata, load_model

    model, _ = load_model(config.weights, config.arch)
    metadata = complete_metadata(model, config.weights)
    device = devices.select(config.device)
    print(devices.explain_choice(config.device, device))
    model.to(device)
    name = Path(config.images).expanduser().resolve().name if config.images else config.dataset or metadata["dataset"]
    name += f"-{config.split}" * bool(config.split) + f"-{config.tta_crops}-crops" * bool(config.tta_crops)
    if is_path(config.weights):
        beside = Path(config.weights).parent
    else:
        beside = Path("runs") / find_released(config.weights, config.arch).name
    out = Path(config.out) if config.out else beside / f"evaluation-{name}"
    report = report_on_images if config.images else report_on_dataset
    with devices.memory_errors(device, lambda: "use a smaller --cfg.batch_size"):
        report(config, model, out)


if __name__ == "__main__":
    cli.run(main)
