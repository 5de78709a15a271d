"""A trained model, and the scripts that transfer and evaluate it."""

import pytest
import torch

from fastmlp import build_model
from fastmlp.models.weights import save_model

FACTS = {"dataset": "synthetic", "mean": [127.5] * 3, "std": [64.0] * 3, "fit": "square", "classes": list("abc")}


@pytest.fixture(name="trained")
def trained_fixture(tmp_path, monkeypatch):
    """A model for 16 px and 3 classes, in the current folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    save_model(tmp_path / "body.pt", build_model("B_2-Wi_32", 16, 3), FACTS)
    return tmp_path / "body.pt"


@pytest.fixture(name="run")
def run_fixture(script, data_dir, trained):
    def call(recipe, *flags):
        more = () if recipe == "evaluate" else ("--cfg.dataset=synthetic", "--cfg.run_dir=run", "--cfg.epochs=3")
        if recipe == "finetune" or "--cfg.method=logistic" not in flags and recipe != "evaluate":
            more += ("--cfg.batch_size=100",)
        return script(
            f"recipes/{recipe}.py",
            f"--cfg.weights={trained}",
            f"--cfg.data_dir={data_dir}",
            "--cfg.res=8",
            "--cfg.num_workers=1",
            *more,
            *flags,
        )

    return call
