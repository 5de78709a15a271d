"""Fine-tuning that begins with a probe's head: the same head, a choice that stays, and no held-out image seen."""

import pytest
import torch
import yaml

from fastmlp import build_model, load_model
from fastmlp.atomic import load_torch, save_torch
from fastmlp.config import FinetuneConfig
from fastmlp.data.split import SINGLE_PROCESS, Split
from fastmlp.data.subset import hold_out
from fastmlp.evaluation import logistic
from fastmlp.models.weights import save_model
from fastmlp.training import head_init
from fastmlp.training.checkpoints import Checkpoints
from fastmlp.training.run_log import read_log
from fastmlp.training.trainer import Trainer

METADATA = {"dataset": "synthetic", "mean": [127.5] * 3, "std": [64.0] * 3, "fit": "square", "classes": list("abc")}
NO_MEMORY = "fastmlp.evaluation.features.free_bytes"


@pytest.fixture
def run(script, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    save_model(tmp_path / "body.pt", build_model("B_2-Wi_32", 16, 3), METADATA)

    def call(recipe, name, *flags):
        return script(
            f"recipes/{recipe}.py",
            "--cfg.weights=body.pt",
            "--cfg.dataset=synthetic",
            f"--cfg.data_dir={data_dir}",
            "--cfg.res=8",
            "--cfg.num_workers=1",
            "--cfg.batch_size=100",
            "--cfg.epochs=2",
            f"--cfg.run_dir={name}",
            *flags,
        )

    return call


def state(path):
    return load_model(path)[0].state_dict()


def are_same(one, other):
    one, other = state(one), state(other)
    return all(torch.equal(one[name], other[name]) for name in one)


def test_it_begins_with_the_head_of_the_logistic_probe(run, tmp_path, monkeypatch):
    """Byte for byte, and the score before training is the probe's."""
    heads, make = [], Trainer.__init__

    def noted(self, model, *given, **named):
        heads.append([p.detach().clone() for p in model.linear_out.parameters()])
        make(self, model, *given, **named)

    monkeypatch.setattr(Trainer, "__init__", noted)
    assert run("linear_probe", "probe", "--cfg.method=logistic").code == 0
    ended = run("finetune", "tuned")
    assert ended.code == 0 and "the head begins as a logistic probe's: l2 " in ended.out, ended.err
    (end,), (head,) = read_log(tmp_path / "probe", "end"), read_log(tmp_path / "tuned", "head")
    assert head["eval_top1"] == end["eval_top1"] and head["eval_loss"] == pytest.approx(end["eval_loss"])
    probe = state("probe/final.pt")
    assert torch.equal(heads[0][0], probe["linear_out.weight"]) and torch.equal(heads[0][1], probe["linear_out.bias"])
    best = max(head["eval_top1"], *(line["eval_top1"] for line in read_log(tmp_path / "tuned", "epoch")))
    assert load_model("tuned/best.pt")[1]["test_top1"] == best
    assert run("finetune", "random", "--cfg.head_init=random").code == 0
    assert not read_log(tmp_path / "random", "head") and heads[1][0].std() < heads[0][0].std()


def test_memory_decides_once(run, tmp_path, monkeypatch):
    """Without it the head is random, and stays so when the run begins again with more; a probe is refused."""
    assert run("finetune", "whole", "--cfg.head_init=random").code == 0
    step = Trainer.step

    def stop(self, *batch):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NO_MEMORY, lambda device: 1000)
        ended = run("finetune", "x", "--cfg.head_init=probe")
        assert ended.code == 2 and "do not fit into memory: use --cfg.head_init=random" in ended.err
        patch.setattr(Trainer, "step", stop)
        assert run("finetune", "begun").code == 130
    assert read_log(tmp_path / "begun", "start")[0]["head_init"] == "random" and Trainer.step is step
    assert run("finetune", "begun").code == 0
    assert are_same("begun/final.pt", "whole/final.pt") and not read_log(tmp_path / "begun", "head")


@pytest.mark.parametrize("where", ["probe", "training"])
def test_interrupted_it_ends_with_the_same_bytes(run, tmp_path, monkeypatch, where):
    """In the probe; or after a checkpoint, with which no probe is fitted again, whatever the memory."""
    assert run("finetune", "whole").code == 0
    flags = ("--cfg.checkpoint_every=4 steps",)
    steps, step, fit = [], Trainer.step, logistic.fit_logistic

    def stopping(self, *batch):
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return step(self, *batch)

    def stopping_probe(*given, **named):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        if where == "probe":
            patch.setattr(head_init, "fit_logistic", stopping_probe)
        else:
            patch.setattr(Trainer, "step", stopping)
        assert run("finetune", "begun", *flags).code == 130
    assert head_init.fit_logistic is fit
    if where == "training":
        monkeypatch.setattr(NO_MEMORY, lambda device: 1000)
    ended = run("finetune", "begun", *flags)
    assert ended.code == 0 and ("resuming after step 4" in ended.out) == (where == "training")
    assert are_same("begun/final.pt", "whole/final.pt") and are_same("begun/best.pt", "whole/best.pt")


def test_the_probe_and_the_training_see_no_held_out_image(run, monkeypatch):
    """By the samples that each split reads, with another seed than the default."""
    opened, make = {}, Split.__init__

    def noted(self, spec, split, mode, **given):
        make(self, spec, split, mode, **given)
        opened[mode, split] = self.loader.indices.tolist(), self.loader.reader.metadata["f1"]

    monkeypatch.setattr(Split, "__init__", noted)
    assert run("finetune", "run", "--cfg.validation=0.2", "--cfg.batch_size=60", "--cfg.seed=3").code == 0
    rest, held_out = hold_out(opened["train", "train"][1], 0.2, 3)
    assert opened["train", "train"][0] == opened["evaluate", "train"][0] == rest.tolist()  # training, and the probe
    assert opened["validate", "train"][0] == held_out.tolist() and len(held_out) == 120
    assert len(opened["evaluate", "test"][0]) == 200


@pytest.mark.parametrize(
    ("images", "steps", "free", "chosen"),
    [
        (600, 1000, 10**9, "probe"),
        (600, 1, 10**9, "random"),  # the probe would take longer than the training
        (600, 1000, 10**3, "random"),
        (19, 1000, 10**9, "random"),
    ],
)
def test_a_probe_is_chosen_where_it_is_cheap(tmp_path, monkeypatch, images, steps, free, chosen):
    asked = []
    monkeypatch.setattr(NO_MEMORY, lambda device: asked.append(1) or free)
    config, model = FinetuneConfig(batch_size=10), build_model("B_2-Wi_32", 16, 5)
    found = head_init.choose_head_init(config, model, images, steps, tmp_path, SINGLE_PROCESS)
    assert found == chosen and len(asked) <= 1  # what is free may change in between


def test_features_that_no_probe_can_be_fitted_to_leave_the_head_random(run, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("features: column 0 (at least) is not finite")

    monkeypatch.setattr(head_init, "probe_head", fail)
    ended = run("finetune", "run")
    assert ended.code == 0 and "the head begins at random, since no probe can be fitted: features" in ended.err
    assert run("finetune", "whole", "--cfg.head_init=random").code == 0
    assert are_same("run/final.pt", "whole/final.pt")
    assert run("finetune", "asked", "--cfg.head_init=probe").code == 2


def test_a_run_of_before_is_told_and_resumed_as_it_was_begun(run, tmp_path, monkeypatch):
    """Its head was random, its images normalised as the data set's, its gradients not clipped."""
    as_before = ("--cfg.head_init=random", "--cfg.normalization=dataset", "--cfg.clip_norm=0.0")
    assert run("finetune", "whole", *as_before).code == 0
    steps, step = [], Trainer.step

    def stopping(self, *batch):
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return step(self, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", stopping)
        assert run("finetune", "runs/begun", *as_before, "--cfg.checkpoint_every=4 steps").code == 130
    config_file = tmp_path / "runs/begun/config.yaml"
    config = yaml.safe_load(config_file.read_text())
    checkpoint = Checkpoints(tmp_path / "runs/begun").paths()[-1]
    content = load_torch(checkpoint)
    for settings in (config["cfg"], content["config"]):
        for name in ("head_init", "normalization"):
            del settings[name]
    del content["normalization"]
    config_file.write_text(yaml.safe_dump(config))
    save_torch(checkpoint, content)
    ended = run("finetune", "")
    told = "notice: to resume runs/begun, which has the defaults of an earlier version, add --cfg."
    assert ended.code == 0 and told in ended.err and "resuming" not in ended.out
    assert {flag for flag in ended.err.split() if flag.startswith("--cfg.")} == {*as_before}
    ended = run("finetune", "", *as_before)
    assert ended.code == 0 and "resuming after step 4" in ended.out, ended.err
    assert are_same("runs/begun/final.pt", "whole/final.pt")
