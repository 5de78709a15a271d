"""Measures what pre-training on some classes gains on other classes that have few images.

    python recipes/studies/transfer.py [--few 100] [--seeds 5] [--out runs/study-transfer-100]

For each seed Fashion-MNIST's classes are split at random into two halves. A model is pre-trained on all images of the
first five classes; the other five have --few training images each, and all test images for evaluation. The study
compares a linear probe and fine-tuning of that model with the same architecture from scratch.

Each method has the learning rate that a search chose, whose list is continued until the best lies inside. The search
has three seeds of its own, halves of the classes included, and evaluates on 1,000 further training images of each
class: no test image takes part, and no seed that is reported. The claims are tested as in all studies (verdicts.py);
claims.json is for recipes/scaling.py's table. The table's last column has the command of the runs. Finished runs are
not repeated.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fastmlp import cli
from fastmlp.atomic import write_atomic

ARCH = "B_2-Wi_256-E_2"
SHIFT = ("--cfg.crop=pad_and_crop", "--cfg.crop_padding=2")
# Flags of every run on few images: 500 steps, of at most 100 images.
FEW = (
    "--cfg.epochs=500 steps",
    "--cfg.eval_every=500 steps",
    "--cfg.schedule=linear",
    "--cfg.warmup=50 steps",
    "--cfg.mixup_alpha=0",
    "--cfg.label_smoothing=0.1",
    *SHIFT,
)
ADAMW = ("--cfg.optimizer=adamw", "--cfg.weight_decay=0.05")
TUNED = ("finetune", "--cfg.weights={weights}", "--cfg.head_init=random", *FEW)
# The methods compared, each as recipe and flags, with the rates that its search begins with; {weights} is the
# pre-trained model.
METHODS = {
    "from scratch": (("pretrain", f"--cfg.arch={ARCH}", *FEW, *ADAMW), (3e-4, 1e-3)),
    "fine-tuned": ((*TUNED, *ADAMW, "--cfg.backbone_lr_scale=1"), (3e-4, 1e-3)),
    "fine-tuned by SGD": (TUNED, (0.03, 0.1)),
    "linear probe": (("linear_probe", "--cfg.weights={weights}", "--cfg.method=logistic"), ()),
}
SEARCH_SEED, SEARCH_SEEDS, HELD_OUT = 100, 3, 1000  # the first seed of a search, their number, images of each class
PRETRAIN = "pretrain", "--config-file", str(Path(__file__).resolve().parents[1] / "configs/transfer_pretraining.yaml")


def write_halves(seed: int, few: int, data: Path) -> None:
    """Write the betons first{seed} (all images of five classes) and few{few}of{seed} (`few` of each other class).

    For a seed of the search the latter has further training images for the test images.
    """
    from fastmlp.beton.writer_cli import WriteOptions, write_splits
    from fastmlp.sources.base import ArraySource
    from fastmlp.sources.fashion_mnist import CLASSES, FashionMNIST

    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(CLASSES))
    halves = (f"first{seed}", np.sort(shuffled[:5]), 6000), (f"few{few}of{seed}", np.sort(shuffled[5:]), few)
    for name, classes, most in halves:
        is_held_out = seed >= SEARCH_SEED and most == few

        def half(
            split: str, classes: np.ndarray = classes, most: int = most, is_held_out: bool = is_held_out
        ) -> ArraySource:
            whole = FashionMNIST("train" if is_held_out else split, cache=data / "downloads")
            order = np.random.default_rng(seed) if is_held_out else rng  # the same for both splits
            places = [order.permutation(np.flatnonzero(whole.labels == c)) for c in classes]
            rows = slice(most) if split == "train" else slice(most, most + HELD_OUT) if is_held_out else slice(None)
            kept = np.concatenate([some[rows] for some in places])
            labels = np.searchsorted(classes, whole.labels[kept])
            return ArraySource(whole.images[kept], labels, tuple(CLASSES[c] for c in classes))

        write_splits(name, half, ("train", "test"), WriteOptions(32, data, 1, None, seed))


@dataclass
class Transfer:
    """The runs of the study for one number of images, below the folder `out`."""

    few: int
    out: Path
    bar: tqdm

    @property
    def data(self) -> Path:
        return self.out / "data"

    def run(self, command: tuple[str, ...], dataset: str, folder: Path, seed: int, weights: Path) -> float:
        """Return the top-1 of the run in `folder`, after training it if it is not finished; 0 if it diverged."""
        from fastmlp.study.recipe_run import run_recipe

        flags = (f"--cfg.dataset={dataset}", f"--cfg.data_dir={self.data}", f"--cfg.seed={seed}")
        end = run_recipe((*(flag.replace("{weights}", str(weights)) for flag in command), *flags), folder)
        self.bar.update()
        return end["eval_top1"] if end else 0.0

    def pretrained(self, seed: int) -> Path:
        """Return the weights of the model of the first half, after training it if it is missing."""
        folder = self.out / f"seed{seed}-pretrained"
        if not (folder / "final.pt").exists():
            write_halves(seed, self.few, self.data)
            self.run(PRETRAIN, f"first{seed}", folder, seed, folder / "final.pt")
        elif not list(self.data.glob(f"few{self.few}of{seed}_test_*.beton")):
            write_halves(seed, self.few, self.data)
        return folder / "final.pt"

    def command(self, name: str, rate: float | None) -> tuple[str, ...]:
        """Return the recipe and the flags of a method."""
        if rate is None:
            return METHODS[name][0]
        return (*METHODS[name][0], f"--cfg.batch_size={min(100, 5 * self.few)}", f"--cfg.lr={rate}")

    def top1(self, name: str, rate: float | None, seed: int) -> float:
        weights = self.pretrained(seed)
        folder = self.out / f"seed{seed}-few{self.few}-{name.replace(' ', '_')}-lr{rate}"
        return self.run(self.command(name, rate), f"few{self.few}of{seed}", folder, seed, weights)

    def choose(self, name: str) -> tuple[float | None, bool]:
        """Return the rate of a method, None if it has none, and whether its search ended at its limit."""
        from fastmlp.study.recipe_run import search_rate

        if not (rates := METHODS[name][1]):
            return None, False
        rate, state = search_rate(rates, lambda lr, n: self.top1(name, lr, SEARCH_SEED + n), SEARCH_SEEDS)
        return rate, bool(state.unbracketed)


def claims_of(few: int, top1: dict[str, dict[int, float]], at_limit: dict[str, bool]) -> list:
    """Return the tests of what the paper claims: transfer is better than training from scratch."""
    from fastmlp.study.verdicts import Verdict, paired

    found = []
    for name in list(METHODS)[1:]:
        claim = f"{name} > from scratch, {few} images of a class"
        if ends := [one for one in (name, "from scratch") if at_limit[one]]:
            found.append(Verdict(claim, reason=f"the search of {ends[0]} ended at its limit"))
        else:
            first, second = ({seed: 100 * x for seed, x in top1[one].items()} for one in (name, "from scratch"))
            found.append(paired(claim, first, second))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=cli.summary(__doc__))
    parser.add_argument("--few", type=int, default=100, help="images of each class (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="at least 2 (default: %(default)s)")
    parser.add_argument("--out", type=cli.path, help="(default: runs/study-transfer-FEW)")
    options = parser.parse_args()
    if not 1 <= options.few <= 5000 or not 2 <= options.seeds <= SEARCH_SEED:
        raise ValueError(
            f"--few={options.few} --seeds={options.seeds}: expected 1 to 5000 images and 2 to {SEARCH_SEED} seeds"
        )
    from fastmlp.study.scaling_laws import mean_interval
    from fastmlp.study.verdicts import adjust, write_claims

    with tqdm(unit=" runs") as bar:
        out = options.out or Path(f"runs/study-transfer-{options.few}")
        study = Transfer(options.few, out, bar)
        rates, at_limit = {}, {}
        for name in METHODS:
            rates[name], at_limit[name] = study.choose(name)
        top1 = {name: {s: study.top1(name, rates[name], s) for s in range(options.seeds)} for name in METHODS}
    claims = claims_of(options.few, top1, at_limit)
    write_claims(out, claims)
    title = f"{options.few} images of each of 5 classes, {options.seeds} seeds"
    lines = [f"| {title} | top-1 [%] | command |", "|---|---|---|"]
    for name, by_seed in top1.items():
        mean, half = mean_interval([*by_seed.values()])
        command = " ".join(study.command(name, rates[name]))
        lines.append(f"| {name} | {100 * mean:.2f} ± {100 * half:.2f} | {command} |")
    lines += ["", *(f"- {one}" for one in adjust(claims))]
    results = {name: {"top1": by_seed, "lr": rates[name]} for name, by_seed in top1.items()}
    write_atomic(out / f"results-{options.few}.json", json.dumps(results, indent=1) + "\n")
    write_atomic(out / f"results-{options.few}.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    cli.run(main)
