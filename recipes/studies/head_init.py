"""Measures what fine-tuning gains by the head of a logistic probe to begin with, against a random one.

    python recipes/studies/head_init.py [--seeds 5] [--out runs/study-head-init]

Two cases. "half": a model pre-trained on five random classes of Fashion-MNIST is fine-tuned on 100 images of each of
the other five. "own folder": one pre-trained on all its training images is fine-tuned on 2,000 of its test images and
evaluated on 4,000 others, as if they were somebody's own. recipes/finetune.py's settings. Each cell of the table has
the learning rate that a search chose for it, whose list is continued until the best lies inside, with three seeds of
its own: on 1,000 further training images of each class (half), on images that no reported run sees (own folder). The
last column is the mean of the differences by seed with its 95 % interval. Finished runs are not repeated.

Measured before the rates had seeds of their own, each the best of four on the test images (5 seeds, 2 cores of an AMD
EPYC, 2026-11-29): the probe's head is ahead after 1 and 3 epochs, by 14.6 ± 7.1 and 7.6 ± 6.6 points (half), 4.1 ± 1.5
and 1.3 ± 0.9 (own folder); after 20 both reach the same, +0.2 ± 2.5 and +0.4 ± 0.8. Tuned for longer, the model loses
what the probe had before it (90.3 ± 5.0 and 87.2 ± 0.4 %): 86.8 and 86.3 % at the lowest rate. The crops, flips and
smoothing of the defaults suit photographs better than clothing of 28 px.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fastmlp import cli
from fastmlp.atomic import write_atomic

RATES = (0.003, 0.01)
EPOCHS = (0, 1, 3, 20)
HEADS = ("probe", "random")
SEARCH_SEED, SEARCH_SEEDS, HELD_OUT = 100, 3, 1000  # the first seed of a search, their number, images of each class
CASES = {"half": ("first{seed}", "rest{seed}", 50), "own folder": ("fashion_mnist", "own{seed}", 100)}
PRETRAIN = "pretrain", "--config-file", str(Path(__file__).resolve().parents[1] / "configs/transfer_pretraining.yaml")


def write_data(seed: int, data: Path) -> None:
    """Write Fashion-MNIST and the betons first{seed}, rest{seed} and own{seed}.

    For a seed of the search the images to evaluate on are others than those of the seeds that are reported.
    """
    from fastmlp.beton.writer_cli import WriteOptions, write_splits
    from fastmlp.sources.base import ArraySource
    from fastmlp.sources.fashion_mnist import CLASSES, FashionMNIST

    whole = {split: FashionMNIST(split, cache=data / "downloads") for split in ("train", "test")}
    rng, is_search = np.random.default_rng(seed), seed >= SEARCH_SEED
    classes = rng.permutation(len(CLASSES))

    def some(split: str, chosen: np.ndarray, rows: slice) -> ArraySource:
        source, order = whole[split], np.random.default_rng([seed, split == "train"])
        places = [order.permutation(np.flatnonzero(source.labels == c))[rows] for c in chosen]
        kept = np.concatenate(places)
        return ArraySource(
            source.images[kept], np.searchsorted(chosen, source.labels[kept]), tuple(CLASSES[c] for c in chosen)
        )

    def rest(split: str) -> ArraySource:
        if split == "train":
            return some("train", chosen_rest, slice(100))
        if is_search:
            return some("train", chosen_rest, slice(100, 100 + HELD_OUT))
        return some("test", chosen_rest, slice(1000))

    shuffled = np.random.default_rng(0).permutation(len(whole["test"]))  # the same parts for all seeds
    mine = rng.permutation(shuffled[:4000] if is_search else shuffled[4000:])
    own = {
        split: ArraySource(whole["test"].images[kept], whole["test"].labels[kept], CLASSES)
        for split, kept in {"train": mine[:2000], "test": mine[2000:]}.items()
    }
    to, both = WriteOptions(32, data, 1, None, seed), ("train", "test")
    chosen_first, chosen_rest = np.sort(classes[:5]), np.sort(classes[5:])
    write_splits("fashion_mnist", whole.__getitem__, both, replace(to, seed=0))  # once for all seeds
    write_splits(f"first{seed}", lambda split: some(split, chosen_first, slice(6000)), both, to)
    write_splits(f"rest{seed}", rest, both, to)
    write_splits(f"own{seed}", own.__getitem__, both, to)


def scores(folder: Path) -> dict[int, float]:
    """Return the test top-1 of a finished run after each number of EPOCHS that it has; 0 is before training."""
    from fastmlp.training.run_log import read_log

    found = {round(line["epoch"]): line["eval_top1"] for line in read_log(folder, "epoch")}
    if heads := read_log(folder, "head"):
        found[0] = heads[-1]["eval_top1"]
    return {epochs: found[epochs] for epochs in EPOCHS if epochs in found}


@dataclass
class HeadInit:
    """The runs of the study, below the folder `out`."""

    out: Path
    bar: tqdm

    def run(self, command: tuple[str, ...], folder: Path, seed: int) -> bool:
        """Return whether the run, which is trained if it is not finished, did not diverge."""
        from fastmlp.study.recipe_run import run_recipe

        end = run_recipe((*command, f"--cfg.data_dir={self.out / 'data'}", f"--cfg.seed={seed}"), folder)
        self.bar.update()
        return end is not None

    def top1(self, case: str, head: str, rate: float, seed: int, epochs: int) -> float:
        """Return the top-1 after so many epochs of the run, which is trained if it is missing; 0 if it diverged."""
        first, then, batch_size = CASES[case]
        pretrained = self.out / f"{case.split()[0]}-pretrained{seed}"
        if not (self.out / "data" / f"own{seed}_test_32.beton").exists():
            write_data(seed, self.out / "data")
        if not (pretrained / "final.pt").exists():
            self.run((*PRETRAIN, f"--cfg.dataset={first.format(seed=seed)}"), pretrained, seed)
        command = ("finetune", f"--cfg.weights={pretrained / 'final.pt'}", "--cfg.epochs=20", f"--cfg.lr={rate}")
        command += (f"--cfg.dataset={then.format(seed=seed)}", f"--cfg.batch_size={batch_size}")
        folder = self.out / f"{case.split()[0]}-{head}-{rate}-seed{seed}"
        return scores(folder).get(epochs, 0.0) if self.run((*command, f"--cfg.head_init={head}"), folder, seed) else 0.0

    def cell(self, case: str, head: str, epochs: int, seeds: int) -> tuple[np.ndarray, str]:
        """Return the top-1 of each seed at the rate that the search chose, and that rate in words."""
        from fastmlp.study.recipe_run import search_rate

        def held_out(rate: float, number: int) -> float:
            return self.top1(case, head, rate, SEARCH_SEED + number, epochs)

        if not epochs:  # before the first step a rate does nothing
            rate, words = RATES[0], ""
        else:
            rate, state = search_rate(RATES, held_out, SEARCH_SEEDS)
            words = f" (lr {rate:g}{', the limit of the search' if state.unbracketed else ''})"
        return np.array([self.top1(case, head, rate, seed, epochs) for seed in range(seeds)]), words


def main() -> None:
    parser = argparse.ArgumentParser(description=cli.summary(__doc__))
    parser.add_argument("--seeds", type=int, default=5, help="at least 2 (default: %(default)s)")
    parser.add_argument("--out", type=cli.path, default=Path("runs/study-head-init"), help="(default: %(default)s)")
    options = parser.parse_args()
    if not 2 <= options.seeds <= SEARCH_SEED:
        raise ValueError(f"--seeds={options.seeds}: expected 2 to {SEARCH_SEED}, of which intervals are computed")
    with tqdm(unit=" runs") as bar:
        study = HeadInit(options.out, bar)
        lines = [
            f"| {options.seeds} seeds | epochs | probe [%] | random [%] | probe - random |",
            "|---|---|---|---|---|",
        ]
        for case in CASES:
            for epochs in EPOCHS:
                cells = {head: study.cell(case, head, epochs, options.seeds) for head in HEADS}
                lines.append(f"| {case} | {epochs} |{render(cells, epochs)}")
    table = "\n".join(lines) + "\n"
    write_atomic(options.out / "results.md", table)
    print(table, end="")


def render(cells: dict[str, tuple[np.ndarray, str]], epochs: int) -> str:
    """Return a row's last three columns; a random head has nothing to say before the first step."""
    from fastmlp.study.scaling_laws import mean_interval

    row = ""
    for values, words in cells.values():
        mean, half = mean_interval(values)
        row += f" {100 * mean:.2f} ± {100 * half:.2f}{words} |" if mean else " chance |"
    mean, half = mean_interval(cells["probe"][0] - cells["random"][0])
    return f"{row} {100 * mean:+.2f} ± {100 * half:.2f} |" if epochs else f"{row} |"


if __name__ == "__main__":
    cli.run(main)
