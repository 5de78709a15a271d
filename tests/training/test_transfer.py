"""Fine-tuning and probes through their scripts."""

import csv
import dataclasses
import inspect
import json
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from transferred import FACTS, run_fixture, trained_fixture  # noqa: F401

from fastmlp import build_model, cli, load_model
from fastmlp.beton.writer import write_beton
from fastmlp.config import EvaluateConfig, FinetuneConfig, ProbeConfig, crop_ratios
from fastmlp.data.beton_metadata import metadata_of
from fastmlp.data.split import Split
from fastmlp.datasets import SPECS, beton_path, get_dataset
from fastmlp.evaluation.features import CachedFeatures
from fastmlp.models.weights import save_model
from fastmlp.sources.synthetic import Synthetic
from fastmlp.training import transfer
from fastmlp.training.checkpoints import Checkpoints
from fastmlp.training.optimizer import build_optimizer
from fastmlp.training.run import augment_of
from fastmlp.training.run_log import read_log
from fastmlp.training.run_record import LOGISTIC, read_run
from fastmlp.training.trainer import Trainer
from fastmlp.transforms.augment_params import Augment


def state(path):
    return load_model(path)[0].state_dict()


def same(mine, theirs, prefixes):
    return all(torch.equal(mine[name], theirs[name]) for name in mine if name.startswith(prefixes))


BODY = ("linear_in", "blocks", "layernorms")


def test_finetuning_moves_all_and_leaves_what_a_user_needs(run, trained):
    ended = run("finetune")
    assert ended.code == 0 and "test top-1" in ended.out, ended.err
    model, metadata = load_model(trained.with_name("run") / "final.pt")
    assert (model.res, model.num_classes) == (16, 5) and metadata["classes"] and metadata["fit"] == "square"
    before, after = state(trained), model.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before if "linear_out" not in name)
    assert metadata["mean"] == [127.5] * 3 and metadata["test_top1"] > 0.3


@pytest.mark.parametrize(
    ("flags", "mean", "std"),
    [
        ((), 100.0, 50.0),
        (("--cfg.normalization=dataset",), 127.5, 64.0),
        (("--cfg.normalization=authors",), 0.485 * 255, 0.229 * 255),  # 5 classes
    ],
)
@pytest.mark.parametrize("recipe", ["finetune", "linear_probe", "logistic"])
def test_images_are_normalised_as_the_model_was_trained_unless_told_otherwise(run, trained, recipe, flags, mean, std):
    """What the split gives is what the run stores with the weights."""
    save_model(trained, build_model("B_2-Wi_32", 16, 3), {**FACTS, "mean": [100.0] * 3, "std": [50.0] * 3})
    seen = []

    def spied(spec, *given, **named):
        seen.append((spec.mean[0], spec.std[0]))
        return Split(spec, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        for module in ("run", "transfer"):
            patch.setattr(f"fastmlp.training.{module}.Split", spied)
        flags = (*flags, "--cfg.method=logistic") if recipe == "logistic" else flags
        assert run("linear_probe" if recipe == "logistic" else recipe, "--cfg.epochs=1", *flags).code == 0
    _, metadata = load_model(trained.with_name("run") / "final.pt")
    assert {*seen} == {(mean, std)} and (metadata["mean"][0], metadata["std"][0]) == (mean, std)


def test_what_was_loaded_is_told_by_one_process(run, trained, monkeypatch):
    said = (
        "body.pt: B_2-Wi_32 of 16 px. Data set synthetic: bilinear resizing, mean 127.5, 127.5, 127.5, std 64, 64, 64"
    )
    assert run("finetune", "--cfg.budget=1").out.count(said) == 1
    monkeypatch.setattr(transfer.logger, "info", lambda text: pytest.fail(f"another process of torchrun says {text}"))
    monkeypatch.setenv("RANK", "1")
    transfer.prepare(FinetuneConfig(weights=str(trained), dataset="synthetic"), "finetune")


def test_a_model_that_records_no_normalisation_is_told(run, trained):
    save_model(trained, build_model("B_2-Wi_32", 16, 3))
    ended = run("finetune")
    assert ended.code == 2 and "body.pt does not record the mean and std" in ended.err and ended.err.count("\n") == 1
    assert run("finetune", "--cfg.normalization=dataset", "--cfg.epochs=1").code == 0


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        ((), True),
        (("--cfg.crop=random_resized", "--cfg.flip=1"), False),
        (("--cfg.mixup_alpha=0.8",), False),
        (("--cfg.optimizer=lion",), True),
        (("--cfg.method=logistic",), True),
    ],
)
def test_frozen_means_frozen(run, trained, flags, kept):
    """Byte for byte; features are kept in memory if nothing about the images is random."""
    ended = run("linear_probe", *flags)
    assert ended.code == 0, ended.err
    assert ("features kept in memory" in ended.out) == (kept and "--cfg.method=logistic" not in flags)
    after = state(trained.with_name("run") / "final.pt")
    assert same(state(trained), after, BODY) and len(after["linear_out.weight"]) == 5


def test_no_gradient_and_no_state_of_a_frozen_body():
    config = FinetuneConfig(batch_size=100, optimizer="adamw", ema_decay=0.9, epochs="1", compile="off")
    model = build_model("B_2-Wi_32", 8, 5)
    trainer = Trainer(model, config, 6, backbone="frozen")
    trainer.step(torch.randn(100, 192), torch.randint(0, 5, (100,)))
    assert [name for name, p in model.named_parameters() if p.grad is not None] == [
        "linear_out.weight",
        "linear_out.bias",
    ]
    assert len(trainer.optimizer.state) == len(trainer.ema) == len(trainer.trained) == 2


def test_cached_features_train_the_same_head(data_dir, trained):
    """The same order of the same samples: losses of streaming and of cached features agree."""
    spec, shared = (
        get_dataset("synthetic", data_dir),
        {"data_dir": data_dir, "res": 8, "image_res": 16, "num_workers": 1},
    )
    config = FinetuneConfig(batch_size=100, optimizer="adamw", lr=1e-2, epochs="3", compile="off")
    losses = {}
    for backbone in ("frozen", "cached"):
        torch.manual_seed(0)
        model = load_model(trained)[0].replace_head(5)
        train = Split(spec, "train", "train", batch_size=100, seed=2, augment=Augment(), **shared)
        if backbone == "cached":
            train = CachedFeatures(model, Split(spec, "train", "evaluate", batch_size=64, **shared), 100, seed=2)
        trainer = Trainer(model, config, train.batches_per_epoch, backbone=backbone)
        losses[backbone] = [float(trainer.step(*batch)) for epoch in range(3) for batch in train.batches(epoch)]
    assert len(losses["cached"]) == 18 and losses["cached"][-1] < losses["cached"][0]
    np.testing.assert_allclose(losses["cached"], losses["frozen"], rtol=1e-4)


def test_cached_features_go_on_in_mid_epoch(data_dir, trained):
    spec = get_dataset("synthetic", data_dir)
    whole = Split(spec, "train", "evaluate", data_dir=data_dir, res=8, image_res=16, batch_size=64, num_workers=1)
    features = CachedFeatures(load_model(trained)[0], whole, 100, seed=2)
    batches = [(x.clone(), y) for x, y in features.batches(1)]
    for (x, y), (again, labels) in zip(batches[4:], features.batches(1, first=4), strict=True):
        assert torch.equal(x, again) and torch.equal(y, labels)
    assert len({tuple(x[0].tolist()) for x, _ in batches}) == 6


def test_rates_of_head_and_body_reach_the_right_parameters():
    """SGD's first step moves each parameter by its rate times its gradient."""
    config = FinetuneConfig(batch_size=100, lr=0.5, backbone_lr_scale=0.2, weight_decay=0.0, epochs="1", compile="off")
    model = build_model("B_2-Wi_32", 8, 5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    Trainer(model, config, 6).step(torch.randn(100, 192), torch.randint(0, 5, (100,)))
    for name, p in model.named_parameters():
        rate = 0.5 if name.startswith("linear_out") else 0.1
        torch.testing.assert_close(before[name] - p, rate * p.grad, rtol=1e-3, atol=1e-6)


def test_weight_decay_of_fine_tuning_is_applied():
    """The released code drops it."""
    moved = []
    for decay in (0.0, 0.1):
        torch.manual_seed(0)
        model, config = (
            build_model("B_1-Wi_8", 8, 5),
            FinetuneConfig(batch_size=100, weight_decay=decay, epochs="1", compile="off"),
        )
        start = model.linear_in.weight.detach().clone()
        Trainer(model, config, 6).step(torch.zeros(100, 192), torch.zeros(100, dtype=torch.int64))
        moved.append(model.linear_in.weight.detach() - start)
    torch.testing.assert_close(moved[1] - moved[0], -0.01 * 0.1 * 0.1 * start, rtol=1e-3, atol=1e-9)


def test_cached_features_refuse_mixup():
    with pytest.raises(ValueError, match="--cfg.mixup_alpha=0"):
        Trainer(build_model("B_1-Wi_8", 8, 5), FinetuneConfig(mixup_alpha=0.8), 6, backbone="cached")


@pytest.fixture
def stopped_probe(run):
    """A probe that was interrupted after its checkpoint of step 8 of 18; the call resumes it."""
    steps, step = [], Trainer.step

    def stopping(self, *batch):
        steps.append(1)
        if len(steps) == 11:
            raise KeyboardInterrupt
        return step(self, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", stopping)
        assert run("linear_probe", "--cfg.checkpoint_every=4 steps").code == 130
    return lambda: run("linear_probe", "--cfg.checkpoint_every=4 steps")


def test_a_probe_goes_on_where_it_was_stopped(run, trained, stopped_probe):
    """The same bytes."""
    whole = trained.with_name("whole")
    assert run("linear_probe", f"--cfg.run_dir={whole}").code == 0
    assert stopped_probe().out.count("resuming after step 8 of 18") == 1
    assert same(state(whole / "final.pt"), state(trained.with_name("run") / "final.pt"), ("",))


def test_a_probe_goes_on_with_its_own_body(run, trained, stopped_probe):
    """Even if the file that it began from has been replaced in the meantime."""
    kept = state(trained)
    save_model(trained, build_model("B_2-Wi_32", 16, 3), FACTS)
    assert stopped_probe().code == 0
    final = trained.with_name("run") / "final.pt"
    assert same(kept, state(final), BODY)
    assert run("evaluate", f"--cfg.weights={final}").code == 0
    results = json.loads((final.parent / "evaluation-synthetic" / "results.json").read_text())
    (end,) = read_log(final.parent, "end")
    assert results["top-1"]["share"] == pytest.approx(end["eval_top1"], abs=0.01)


def test_a_run_is_not_resumed_with_another_normalisation(trained, stopped_probe):
    save_model(trained, build_model("B_2-Wi_32", 16, 3), {**FACTS, "mean": [100.0] * 3})
    ended = stopped_probe()
    assert ended.code == 2 and "normalises images with {'mean': [127.5, 127.5, 127.5]" in ended.err
    assert ended.err.count("\n") == 1 and not (trained.with_name("run") / "final.pt").exists()


def test_a_probe_goes_on_with_its_own_resampling(run, trained, request):
    """That of its checkpoint, like the body."""
    model = load_model(trained)[0]
    model.resampling = "area"
    save_model(trained, model, FACTS)
    whole = trained.with_name("whole")
    assert run("linear_probe", f"--cfg.run_dir={whole}").code == 0
    resume = request.getfixturevalue("stopped_probe")
    model.resampling = "bilinear"
    save_model(trained, model, FACTS)
    assert resume().code == 0
    final = trained.with_name("run") / "final.pt"
    assert load_model(final)[0].resampling == "area" and same(state(whole / "final.pt"), state(final), ("",))
    other = trained.with_name("other")
    assert run("linear_probe", f"--cfg.run_dir={other}").code == 0
    assert not same(state(other / "final.pt"), state(final), ("linear_out",))


def test_a_probe_of_0_1_goes_on_with_bilinear_pixels(run, trained, stopped_probe):
    """Its checkpoint names no resampling, though the weights are released ones by now."""
    whole = trained.with_name("whole")
    assert run("linear_probe", f"--cfg.run_dir={whole}").code == 0
    assert "resampling" not in Checkpoints(trained.with_name("run")).newest()["trainer"]
    model = load_model(trained)[0]
    model.resampling = "area"
    save_model(trained, model, FACTS)
    assert stopped_probe().code == 0
    final = trained.with_name("run") / "final.pt"
    assert load_model(final)[0].resampling == "bilinear" and same(state(whole / "final.pt"), state(final), ("",))


def test_a_model_of_other_classes_is_never_judged(run, trained):
    save_model(trained, build_model("B_2-Wi_32", 16, 5), {**FACTS, "classes": list("abcde")})
    ended = run("evaluate")
    assert ended.code == 2 and "name the data set of the same classes" in ended.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cfg.weights=none.pt",), "none.pt is missing"),
        (("--cfg.weights=",), "name the trained model"),
        (("--cfg.arch=B_3-Wi_32",), "holds B_2-Wi_32, not B_3-Wi_32"),
        (("--cfg.dataset=auto",), "name the trained model and the data set"),
    ],
)
def test_what_cannot_be_finetuned_is_told(run, flags, message):
    ended = run("finetune", *flags)
    assert ended.code == 2 and message in ended.err and ended.err.count("\n") == 1


def test_evaluation_of_a_finetuned_model(run, trained, data_dir):
    assert run("finetune").code == 0
    final = trained.with_name("run") / "final.pt"
    ended = run("evaluate", f"--cfg.weights={final}")
    assert ended.code == 0, ended.err
    out = final.parent / "evaluation-synthetic"
    results, (end,) = json.loads((out / "results.json").read_text()), read_log(final.parent, "end")
    assert results["top-1"]["share"] == end["eval_top1"] and results["top-1"]["images"] == 200
    low, high = results["top-1"]["interval_95"]
    assert low < end["eval_top1"] < high and len(results["per_class_top1"]) == 5
    rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
    assert sum(int(row["right"]) for row in rows) == round(200 * end["eval_top1"]) and (out / "confusion.png").exists()
    assert f"| top-1 | {end['eval_top1']:.2%} |" in (out / "results.md").read_text()
    views = run("evaluate", f"--cfg.weights={final}", "--cfg.tta_crops=5")
    assert "mean logits of 5 crops" in views.out
    assert (
        views.out.split("loss")[0]
        == run("evaluate", f"--cfg.weights={final}", "--cfg.tta_crops=5").out.split("loss")[0]
    )


def test_a_kept_probe_trains_in_the_order_of_its_seed(run, monkeypatch):
    made = []

    def spied(*given, **named):
        made.append(given[2:])
        return CachedFeatures(*given, **named)

    monkeypatch.setattr("fastmlp.training.run.CachedFeatures", spied)
    assert run("linear_probe", "--cfg.seed=7").code == 0
    assert made[0][:2] == (100, 7)


def test_features_that_do_not_fit_are_computed_anew(run, trained, monkeypatch):
    assert run("linear_probe", "--cfg.run_dir=kept").code == 0
    monkeypatch.setattr("fastmlp.evaluation.features.free_bytes", lambda device: 1000)
    ended = run("linear_probe", "--cfg.run_dir=anew")
    assert ended.code == 0 and "features of 600 images do not fit into memory" in ended.out
    kept, anew = (state(trained.with_name(name) / "final.pt") for name in ("kept", "anew"))
    torch.testing.assert_close(kept["linear_out.weight"], anew["linear_out.weight"], rtol=1e-3, atol=1e-5)
    assert "use --cfg.method=gradient" in run("linear_probe", "--cfg.run_dir=x", "--cfg.method=logistic").err


@pytest.mark.parametrize("recipe", ["finetune", "linear_probe"])
def test_a_batch_that_is_too_large_leaves_no_folder(run, trained, recipe):
    ended = run(recipe, "--cfg.batch_size=5000")
    assert ended.code == 2 and "larger than the data set" in ended.err and not trained.with_name("run").exists()
    fewer, steps = re.search(r"--cfg.batch_size=(\d+) makes (\d+) steps of an epoch$", ended.err).groups()
    ended = run(recipe, f"--cfg.batch_size={fewer}", "--cfg.epochs=1")
    assert ended.code == 0 and int(steps) >= 10
    assert read_log(trained.with_name("run"), "epoch")[-1]["step"] == int(steps)


def test_logistic_regression_refuses_random_images(run):
    ended = run("linear_probe", "--cfg.method=logistic", "--cfg.flip=1")
    assert ended.code == 2 and "use no --cfg.crop, --cfg.flip and --cfg.mixup_alpha" in ended.err


def test_a_logistic_probe_tells_the_settings_that_it_uses(run, trained):
    assert run("linear_probe", "--cfg.method=logistic", "--cfg.l2=1").code == 0
    told = read_run(trained.with_name("run")).settings
    assert told["l2"] == 1 and not {"lr", "optimizer", "batch_size", "epochs"} & set(told)
    assert set(told) == LOGISTIC <= {field.name for field in dataclasses.fields(ProbeConfig)}
    code = "".join(
        inspect.getsource(function) for function in (transfer.fit_head, transfer.prepare, transfer._normalized)
    )
    refused = {"crop", "flip", "mixup_alpha", "budget", "validation"}
    assert set(re.findall(r"(?:config|asked)\.(\w+)", code)) - refused <= LOGISTIC


def test_a_model_knows_how_its_images_were_scaled(tmp_path):
    path = beton_path(tmp_path, "synthetic", "train", 8)
    write_beton(path, Synthetic(50, 5, 8), 8, fit="longest")
    metadata = metadata_of(SPECS["synthetic"], path)
    assert (
        metadata["beton_res"] == 8
        and metadata["fit"] == "longest"
        and len(metadata["classes"]) == 5
        and metadata["std"] == [64.0] * 3
    )


# What the authors' code does, typed from its defaults and its README's commands: SGD with momentum 0.9 at a constant
# rate; the weight decay of their command line reaches no optimiser; crops of (min, max) area and ratio.
SHARED = {"optimizer": "sgd", "lr": 0.01, "schedule": "constant", "weight_decay": 0.0, "clip_norm": 1.0}
SHARED |= {"label_smoothing": 0.3, "mixup_alpha": 0.0, "warmup": "0 epochs", "cooldown": "0 epochs", "ema_decay": 0.0}
SETTINGS = {
    "finetune_released": (
        FinetuneConfig,
        {**SHARED, "backbone_lr_scale": 0.1, "batch_size": 2048, "epochs": "100 epochs"},
        Augment("random_resized", (0.4, 1.0), (1.0, 1.0), flip=True),
    ),
    "probe_released": (
        ProbeConfig,
        {**SHARED, "method": "gradient", "batch_size": 4096, "epochs": "500 epochs"},
        Augment("random_resized", (0.08, 1.0), (0.08, 1.0), flip=True),
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_published_settings_are_those_of_the_authors_code(name):
    kind, expected, augment = SETTINGS[name]
    path = ROOT / "recipes" / "configs" / f"{name}.yaml"
    config = cli.parse(kind, "", argv=["--config-file", str(path)])
    assert {field: getattr(config, field) for field in expected} == expected
    assert augment_of(config) == augment
    optimizer = build_optimizer(config.optimizer, build_model("B_1-Wi_8", 4, 3), config.lr, config.weight_decay)
    assert {(group["momentum"], group["nesterov"]) for group in optimizer.param_groups} == {(0.9, False)}


def test_evaluation_of_the_authors_is_in_the_head_of_their_fine_tuning():
    head = (ROOT / "recipes" / "configs" / "finetune_released.yaml").read_text()
    (command,) = [line for line in head.splitlines() if "recipes/evaluate.py" in line]
    flags = [word for word in command.split() if word.startswith("--")][1:]
    config = cli.parse(EvaluateConfig, "", argv=flags)
    assert (config.tta_crops, config.tta_average) == (100, "softmax")
    assert (config.min_crop_scale, crop_ratios(config), config.flip) == (0.4, (1.0, 1.0), True)


def test_the_largest_ratio_of_crops():
    assert augment_of(FinetuneConfig(min_crop_ratio=0.5)).ratio == (0.5, 2.0)
    assert augment_of(FinetuneConfig(min_crop_ratio=0.5, max_crop_ratio=0.8)).ratio == (0.5, 0.8)
    for kind in (FinetuneConfig, EvaluateConfig):
        with pytest.raises(ValueError, match=r"--cfg\.max_crop_ratio=0\.5: expected at least .*min_crop_ratio=1, or 0"):
            kind(max_crop_ratio=0.5)
