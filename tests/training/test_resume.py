"""Runs that are killed, interrupted, damaged or refused, and runs on several processes."""

import dataclasses
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT

from fastmlp.atomic import load_torch, save_torch
from fastmlp.config import PretrainConfig
from fastmlp.models.weights import load_model
from fastmlp.plots import contact_sheet
from fastmlp.training import loop
from fastmlp.training.checkpoints import Checkpoints
from fastmlp.training.run_folder import TRAINER_TYPES, differences, open_run
from fastmlp.training.run_log import RunLog, read_log

SMALL = (
    "--cfg.dataset=synthetic",
    "--cfg.res=8",
    "--cfg.arch=B_2-Wi_32",
    "--cfg.batch_size=100",
    "--cfg.epochs=5",
    "--cfg.optimizer=lion",
    "--cfg.lr=1e-3",
    "--cfg.ema_decay=0.9",
    "--cfg.compile=off",
    "--cfg.log_every=1",
    "--cfg.eval_every=4 steps",
    "--cfg.checkpoint_every=3 steps",
    "--cfg.schedule=cosine",
)


@pytest.fixture
def pretrain(script, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *flags: script("recipes/pretrain.py", *SMALL, f"--cfg.data_dir={data_dir}", *flags)


def start(data_dir, folder, *flags, launcher=(), **keywords):
    command = [
        sys.executable,
        *launcher,
        "recipes/pretrain.py",
        *SMALL,
        f"--cfg.data_dir={data_dir}",
        f"--cfg.run_dir={folder}",
        *flags,
    ]
    return subprocess.Popen(command, cwd=ROOT, text=True, **keywords)


def steps_done(folder):
    log = folder / "log.jsonl"
    return max((line["step"] for line in read_log(folder, "step")), default=0) if log.exists() else 0


def weights(folder, name="final"):
    return b"".join(p.detach().numpy().tobytes() for p in load_model(folder / f"{name}.pt")[0].parameters())


def without_times(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    timed = ("elapsed_s", "images_per_s", "mfu", "train_s", "data_wait_share", "peak_memory_bytes")
    return [{k: v for k, v in line.items() if k not in timed and not k.endswith("_per_step")} for line in lines]


@pytest.mark.serial
@pytest.mark.parametrize("compile", ["off", "on"] if "FASTMLP_KILLS" in os.environ else ["off"])
def test_killed_anywhere_it_ends_with_the_same_bytes(data_dir, tmp_path, compile):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    whole, folder, flags = tmp_path / "whole", tmp_path / "killed", (f"--cfg.compile={compile}", "--cfg.epochs=20")
    assert start(data_dir, whole, *flags, **quiet).wait(100) == 0
    rng, kills = np.random.default_rng(0), int(os.environ.get("FASTMLP_KILLS", 2))
    survived = 0
    for number in range(kills):
        enough = (number + 1) * 115 // (kills + 1)
        child = start(data_dir, folder, *flags, **quiet)
        while steps_done(folder) < enough and child.poll() is None:
            time.sleep(0.002)
        time.sleep(float(rng.uniform(0, 0.03)))
        survived += child.poll() is None
        child.kill()
        child.wait()
    child = start(data_dir, folder, *flags, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    out, _ = child.communicate(timeout=300)
    assert child.returncode == 0 and "resuming after step" in out and survived >= kills - 1
    for name in ("final", "best"):
        assert weights(folder, name) == weights(whole, name)
    assert without_times(folder) == without_times(whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_after_a_checkpoint(data_dir, tmp_path, number):
    folder = tmp_path / "run"
    flags = ("--cfg.epochs=100000", "--cfg.checkpoint_every=0")
    child = start(data_dir, folder, *flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while steps_done(folder) < 2:
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(number)
    out, err = child.communicate(timeout=100)
    assert child.returncode == 128 + number and "Traceback" not in err, err
    assert "run the same command to resume from" in out and len(Checkpoints(folder).paths()) == 1


def test_a_closed_output_ends_it_after_a_checkpoint(data_dir, tmp_path):
    """As with `| head -1`. Without bars, stderr stays empty."""
    folder = tmp_path / "run"
    flags = ("--cfg.epochs=100000", "--cfg.checkpoint_every=0")
    child = start(
        data_dir,
        folder,
        *flags,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TQDM_DISABLE": "1"},
    )
    while steps_done(folder) < 2:
        assert child.poll() is None
        time.sleep(0.05)
    child.stdout.close()
    assert child.wait(60) == 128 + signal.SIGPIPE and len(Checkpoints(folder).paths()) == 1
    with child.stderr:
        assert child.stderr.read() == ""


def test_a_closed_terminal_asks_for_a_stop():
    with loop._stop_signals() as stop:
        with loop._output(stop):
            raise OSError(errno.EIO, "terminal")
        with loop._output(stop):
            raise BrokenPipeError(errno.EPIPE, "pipe")
        with pytest.raises(OSError, match="disk"), loop._output(stop):
            raise OSError(errno.ENOSPC, "disk")
        signal.raise_signal(signal.SIGHUP)
        assert stop == [signal.SIGPIPE, signal.SIGPIPE, signal.SIGHUP]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with loop._stop_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_without_a_folder_named_it_finds_its_unfinished_run(pretrain, tmp_path, monkeypatch):
    real, calls = loop._Run._log_step, []

    def ends_at_step_20(self, loss):
        real(self, loss)
        calls.append(self.trainer.steps_done)
        if self.trainer.steps_done == 20 and len(calls) == 20:
            raise OSError("pulled the plug")

    monkeypatch.setattr(loop._Run, "_log_step", ends_at_step_20)
    assert pretrain().code == 2
    other = pretrain("--cfg.seed=1")  # not the same run
    assert other.code == 0 and "resuming" not in other.out
    again = pretrain("--cfg.num_workers=1")  # weights do not depend on it
    assert again.code == 0 and "resuming after step 18 of 30" in again.out
    assert len(list((tmp_path / "runs").iterdir())) == 2
    fresh = pretrain("--cfg.run_dir=fresh")
    assert fresh.code == 0
    first = min((tmp_path / "runs").iterdir(), key=lambda path: path.name.replace("seed1", "z"))
    assert weights(first) == weights(tmp_path / "fresh")
    third = pretrain()  # finished runs stay
    assert third.code == 0 and "resuming" not in third.out and len(list((tmp_path / "runs").iterdir())) == 3


def test_what_is_refused(pretrain, data_dir, tmp_path, monkeypatch):
    assert pretrain("--cfg.run_dir=run", "--cfg.epochs=2").code == 0
    ended = pretrain("--cfg.run_dir=run", "--cfg.epochs=2")
    assert ended.code == 2 and "run already has a finished run" in ended.err
    log = tmp_path / "run" / "log.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(True) if '"end"' not in line))
    ended = pretrain("--cfg.run_dir=run", "--cfg.epochs=3", "--cfg.lr=0.5")
    assert ended.code == 2 and "epochs '2 epochs' (now '3 epochs'), lr 0.001 (now 0.5)" in ended.err
    ended = pretrain("--cfg.run_dir=run", "--cfg.epochs=2", "--cfg.resume=never")
    assert ended.code == 2 and "--cfg.resume=never" in ended.err
    with open_run(PretrainConfig(run_dir=str(tmp_path / "busy")), "x"):
        ended = pretrain("--cfg.run_dir=busy")
    assert ended.code == 2 and "another process is using busy" in ended.err
    ended = pretrain("--cfg.run_dir=run", "--cfg.epochs=2")
    assert ended.code == 0 and "resuming after step 12" in ended.out
    moved = tmp_path / "data"
    moved.mkdir()
    for path in data_dir.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    train = moved / "synthetic_train_8.beton"
    whole = bytearray(train.read_bytes())
    whole[5000] ^= 1  # a label or an address: other records
    train.write_bytes(whole)
    log.write_text("".join(line for line in log.read_text().splitlines(True) if '"end"' not in line))
    ended = pretrain("--cfg.run_dir=run", "--cfg.epochs=2", f"--cfg.data_dir={moved}")
    assert ended.code == 2 and ("is not the file" in ended.err or "labels" in ended.err or "outside" in ended.err)


def test_every_field_but_the_free_ones_tells_runs_apart(tmp_path):
    config = PretrainConfig()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"cfg": dataclasses.asdict(config)}))
    assert differences(tmp_path, config) == {}
    assert differences(tmp_path, dataclasses.replace(config, run_dir="x", num_workers=3, resume="never")) == {}
    assert differences(tmp_path, dataclasses.replace(config, seed=3)) == {"seed": (0, 3)}
    (tmp_path / "config.yaml").write_text("[")
    assert differences(tmp_path, config)


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, data_dir, pretrain):
    assert pretrain("--cfg.run_dir=whole").code == 0
    assert pretrain("--cfg.run_dir=run").code == 0
    log = tmp_path / "run" / "log.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(True) if '"end"' not in line))
    older, newest = Checkpoints(tmp_path / "run").paths()
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match="step_000000030.pt is damaged"):
        ended = pretrain("--cfg.run_dir=run")
    assert ended.code == 0 and "resuming after step 27" in ended.out
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_checkpoints_keep_the_newest_and_survive_a_full_disk(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 20, 300):
        checkpoints.save(step, {"step": step})
    assert [path.name for path in checkpoints.paths()] == ["step_000000020.pt", "step_000000300.pt"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="step_000004000.pt"):
            checkpoints.save(4000, {"a": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.newest() == {"step": 300} and len(list(checkpoints.folder.iterdir())) == 2
    one = Checkpoints(tmp_path / "one", keep=1)
    one.folder.parent.mkdir()
    for step in (1, 2):
        one.save(step, {"step": step})
    assert one.newest() == {"step": 2} and len(one.paths()) == 1


def test_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / "x.pt"
    save_torch(path, {"a": torch.arange(500), "b": [1, 2]})
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    expected = load_torch(path)
    for at in rng.integers(0, len(whole), 200).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << int(rng.integers(8)))]) + whole[at + 1 :])
        try:
            got = load_torch(path)
        except ValueError:
            continue
        assert torch.equal(got["a"], expected["a"]) and got["b"] == [1, 2]  # bits that hold no data: padding, dates
    with pytest.raises(ValueError, match="damaged"):
        path.write_bytes(whole[: len(whole) // 2])
        load_torch(path)


@pytest.mark.serial
def test_two_processes_train_as_one_does_and_take_turns(data_dir, tmp_path):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    pair = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    flags = ("--cfg.epochs=4", "--cfg.micro_batch_size=20")
    one, two, turns = (tmp_path / name for name in ("one", "two", "turns"))
    for folder, launcher in ((one, ()), (two, pair)):
        child = start(data_dir, folder, *flags, launcher=launcher, **quiet)
        assert child.wait(100) == 0, child.communicate()[1]
        child.stderr.close()
    losses = [[line["loss"] for line in read_log(folder, "step")] for folder in (one, two)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert len(losses[1]) == 24 and len(list(two.glob("*.pt"))) == 2
    for number, launcher in enumerate((pair, (), pair)):  # the run resumes on one process, then on two again
        child = start(data_dir, turns, *flags, launcher=launcher, **quiet)
        while number < 2 and steps_done(turns) < 7 * (number + 1):
            assert child.poll() is None, child.communicate()[1]
            time.sleep(0.01)
        if number < 2:
            child.send_signal(signal.SIGTERM)
        child.wait(100)
        error = child.communicate()[1]
    assert child.returncode == 0, error
    np.testing.assert_allclose([line["loss"] for line in read_log(turns, "step")], losses[0], rtol=1e-4)
    assert [line["step"] for line in read_log(turns, "step")] == list(range(1, 25))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.filterwarnings("default")
def test_on_cuda_it_trains_and_goes_on(pretrain, tmp_path):
    flags = ("--cfg.device=cuda", "--cfg.epochs=10", "--cfg.compile=on")
    assert pretrain("--cfg.run_dir=run", *flags).code == 0
    losses = [line["loss"] for line in read_log(tmp_path / "run", "step")]
    assert losses[-1] < losses[0] and read_log(tmp_path / "run", "epoch")[-1]["eval_top1"] > 0.5
    log = tmp_path / "run" / "log.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(True) if '"end"' not in line))
    Checkpoints(tmp_path / "run").paths()[-1].unlink()
    ended = pretrain("--cfg.run_dir=run", *flags)
    assert ended.code == 0 and "resuming after step 57" in ended.out
    again = [line["loss"] for line in read_log(tmp_path / "run", "step")]
    np.testing.assert_allclose(again, losses, rtol=1e-2)


def test_a_log_taken_up_again_knows_where_it_stands(tmp_path):
    config = PretrainConfig()
    with RunLog(tmp_path, config, "CPU") as log:
        log.write("x", value=1)
        position = log.position()
        log.write("x", value=2)
    for _ in range(2):  # interrupted before it wrote a line
        with RunLog(tmp_path, config, "CPU", position) as log:
            assert log.position() == position
    with RunLog(tmp_path, config, "CPU", position + 10**6) as log:
        log.write("x", value=3)
    assert [line["value"] for line in read_log(tmp_path, "x")] == [1, 3]
    assert b"\0" not in (tmp_path / "log.jsonl").read_bytes()


def test_checkpoints_of_other_settings_or_none_that_reads(pretrain, tmp_path):
    assert pretrain("--cfg.run_dir=run").code == 0
    log, settings = tmp_path / "run" / "log.jsonl", tmp_path / "run" / "config.yaml"
    log.write_text("".join(line for line in log.read_text().splitlines(True) if '"end"' not in line))
    settings.write_text(settings.read_text().replace("lr: 0.001", "lr: 0.5"))
    with pytest.warns(UserWarning, match=r"has other settings \(lr\) than the run's config.yaml: trying"):
        ended = pretrain("--cfg.run_dir=run", "--cfg.lr=0.5")
    assert ended.code == 2 and "none of the checkpoints" in ended.err
    settings.rename(tmp_path / "kept.yaml")
    ended = pretrain("--cfg.run_dir=run")
    assert ended.code == 2 and "but no config.yaml" in ended.err
    (tmp_path / "kept.yaml").rename(settings)
    settings.write_text(settings.read_text().replace("lr: 0.5", "lr: 0.001"))
    for path in Checkpoints(tmp_path / "run").paths():
        path.write_bytes(b"rubbish")
    with pytest.warns(UserWarning, match="is damaged"):
        ended = pretrain("--cfg.run_dir=run")
    assert ended.code == 2 and "delete them to start again" in ended.err


def test_whatever_the_newest_checkpoint_is_it_is_passed_over(tmp_path):
    """A disk, a sync program or a hand may leave anything under this name."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, {"step": 1})
    whole, newest = checkpoints.path(1).read_bytes(), checkpoints.path(2)

    def check(step, content):
        if content.get("step") != step:
            raise ValueError("is damaged or not a checkpoint")

    def expect_the_older(message):
        with pytest.warns(UserWarning, match=message):
            assert checkpoints.newest(check) == {"step": 1}

    for content in (b"", b"PK", whole[:300] + whole[-300:], whole[: len(whole) // 3] + whole[len(whole) // 2 :]):
        newest.write_bytes(content)
        expect_the_older("step_000000002.pt is damaged")
    for other in ([1], {"steps": 1}):
        save_torch(newest, other)
        expect_the_older("is damaged or not a checkpoint")
    newest.unlink()
    newest.symlink_to("nowhere")
    expect_the_older("is not a file")
    newest.unlink()
    os.mkfifo(newest)
    expect_the_older("is not a file")
    newest.unlink()
    newest.mkdir()
    (newest / "mine").touch()
    expect_the_older("is not a file")
    (checkpoints.folder / "step_x.pt").touch()
    (checkpoints.folder / "step_000000001 (copy).pt").touch()
    (checkpoints.folder / "x.partial").mkdir()
    checkpoints.save(2, {"step": 2})  # the run gets there again
    assert checkpoints.newest() == {"step": 2}
    checkpoints.save(3, {"step": 3})
    assert len(list(checkpoints.folder.glob("step_000000002.pt.folder-*/mine"))) == 1
    assert [path.name for path in checkpoints.paths()] == ["step_000000002.pt", "step_000000003.pt"]


BAD_SETTINGS = {
    "bytes": b"\xff\xfe\x00",
    "list": b"- 1",
    "no mapping": b"cfg: [1]",
    "mixed keys": b"cfg: {1: 2, a: 3}",
    "twice": b"cfg: {lr: 1, lr: 2}",
    "deep": b"[" * 500,
    "number": b"cfg: {seed: " + b"9" * 5000 + b"}",
    "alias": b"cfg: &a {a: *a}",
    "empty": b"",
}


def state(config, step):
    """What a checkpoint has, as far as it is looked at before the model is built."""
    trainer = {name: kind() for name, kind in TRAINER_TYPES.items()} | {"steps_done": step, "loss_sum": 0.0}
    numbers = {"train_s": 0.0, "best_top1": 0.0, "loss_steps": 0, "log_bytes": 0}
    return {"config": dataclasses.asdict(config), "train_beton": "", "trainer": trainer, **numbers}


def test_wrong_contents_of_the_newest_checkpoint_are_passed_over(tmp_path):
    config, checkpoints = PretrainConfig(run_dir=str(tmp_path)), Checkpoints(tmp_path, keep=3)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"cfg": dataclasses.asdict(config)}))
    checkpoints.save(3, state(config, 3))
    whole = state(config, 9)
    wrong = [{**whole, name: [1]} for name in ("config", "trainer", "train_s", "best_top1", "loss_steps", "log_bytes")]
    wrong += [{name: value for name, value in whole.items() if name != left_out} for left_out in whole]
    wrong += [{**whole, "trainer": {**whole["trainer"], name: (1,)}} for name in TRAINER_TYPES if name != "loss_sum"]
    wrong += [state(config, 3), state(PretrainConfig(lr=0.5), 9)]
    for content in wrong:
        save_torch(checkpoints.path(9), content)
        with pytest.warns(UserWarning, match="step_000000009.pt .*: trying the checkpoint before it"):
            with open_run(config, "x") as run:
                assert run.checkpoint["trainer"]["steps_done"] == 3
    save_torch(checkpoints.path(9), whole)
    with open_run(config, "x") as run:
        assert run.checkpoint["trainer"]["steps_done"] == 9


def test_a_checkpoint_of_another_model_is_named(pretrain, tmp_path):
    assert pretrain("--cfg.run_dir=run").code == 0
    log, path = tmp_path / "run" / "log.jsonl", Checkpoints(tmp_path / "run").paths()[-1]
    log.write_text("".join(line for line in log.read_text().splitlines(True) if '"end"' not in line))
    whole = load_torch(path)
    some = next(iter(whole["trainer"]["model"]))
    for changes in ({"model": {some: torch.zeros(3)}}, {"optimizer": {}}, {"ema": [1]}, {"loss_sum": "x"}):
        save_torch(path, {**whole, "trainer": {**whole["trainer"], **changes}})
        ended = pretrain("--cfg.run_dir=run")
        assert ended.code == 2 and f"{path.name} does not fit" in ended.err, ended.err


def test_a_run_writes_through_no_symbolic_link(tmp_path):
    config, victim = PretrainConfig(), tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "run").mkdir()
    for name in ("environment.json", "config.yaml", "curve.png"):
        (tmp_path / "run" / name).symlink_to(victim)
    with RunLog(tmp_path / "run", config, "CPU"):
        pass
    contact_sheet(np.zeros((1, 1, 4, 4, 3), np.uint8), tmp_path / "run" / "curve.png")
    (tmp_path / "run" / "log.jsonl").unlink()
    (tmp_path / "run" / "log.jsonl").symlink_to(victim)
    with pytest.raises(OSError, match=r"log\.jsonl is a symbolic link"):
        RunLog(tmp_path / "run", config, "CPU")
    assert victim.read_text() == "mine" and not (tmp_path / "run" / "curve.png").is_symlink()


def test_bad_folders_do_not_keep_others_from_running(tmp_path):
    config = PretrainConfig()
    root = tmp_path / "runs"
    for name, content in BAD_SETTINGS.items():
        (root / name).mkdir(parents=True)
        (root / name / "config.yaml").write_bytes(content)
    (root / "folder" / "config.yaml").mkdir(parents=True)
    (root / "pipe").mkdir()
    os.mkfifo(root / "pipe" / "config.yaml")
    (root / "link").mkdir()
    (root / "link" / "config.yaml").symlink_to("nowhere")
    good = {"cfg": dataclasses.asdict(config)}
    for name in ("log", "unreadable", "good"):
        (root / name).mkdir()
        (root / name / "config.yaml").write_text(yaml.safe_dump(good))
    (root / "log" / "log.jsonl").mkdir()
    Checkpoints(root / "unreadable").save(7, {"x": 1})  # of something else
    (root / "log of a pipe").mkdir()
    (root / "log of a pipe" / "config.yaml").write_text(yaml.safe_dump(good))
    Checkpoints(root / "log of a pipe").save(9, state(config, 9))
    os.mkfifo(root / "log of a pipe" / "log.jsonl")
    Checkpoints(root / "good").save(9, state(config, 9))
    os.utime(root / "good" / "config.yaml", (1, 1))  # the last that is looked at
    with pytest.warns(UserWarning) as notices, open_run(config, "x", root) as run:
        assert run.folder == root / "good" and run.checkpoint["train_s"] == 0
    told = "\n".join(str(notice.message) for notice in notices)
    for name in (*BAD_SETTINGS, "folder", "pipe", "log", "unreadable", "log of a pipe"):
        assert f"The run in {root / name} is not resumed" in told, name
    (root / "good" / "log.jsonl").write_text('{"event": "end"}\n')
    with pytest.warns(UserWarning), open_run(config, "x", root) as run:
        assert run.checkpoint is None and run.folder.name.startswith("x-")


def test_the_log_says_that_lines_were_lost(tmp_path, capsys):
    config, log_file = PretrainConfig(), tmp_path / "log.jsonl"
    with RunLog(tmp_path, config, "CPU") as log:
        for value in range(4):
            log.write("x", value=value)
        position = log.position()
    whole = log_file.read_bytes()
    lines = whole.splitlines(True)
    log_file.write_bytes(lines[0] + bytes(len(lines[1])) + b"\n" + lines[2] + lines[3])  # zeros, as after a power cut
    with RunLog(tmp_path, config, "CPU", len(log_file.read_bytes())) as log:
        log.write("x", value=4)
    assert "1 lines unreadable" in capsys.readouterr().err
    assert [line["unreadable_lines"] for line in read_log(tmp_path, "lost")] == [1]
    with RunLog(tmp_path, config, "CPU", len(log_file.read_bytes())):
        pass  # told once
    assert len(read_log(tmp_path, "lost")) == 1 and capsys.readouterr().err == ""
    log_file.write_bytes(whole[:-5])
    with RunLog(tmp_path, config, "CPU", position) as log:
        log.write("x", value=5)
    assert "has lost lines: 5 bytes, 1 lines unreadable" in capsys.readouterr().err
    assert [line["value"] for line in read_log(tmp_path, "x")] == [0, 1, 2, 5]
    assert read_log(tmp_path, "lost")[0]["missing_bytes"] == 5
