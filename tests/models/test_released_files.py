"""Released weights by name, from a host on this machine: each name, and each way in which a download goes wrong."""

import hashlib
import json
import re
import threading

import pytest
import torch
from PIL import Image
from released_host import ReleasedHost

from fastmlp import build_model, load_model
from fastmlp.models import released_files
from fastmlp.models.released_files import CLASSES, FILES, ReleasedFile, cached_weights, find_released, is_path
from fastmlp.sources import download

# The authors' table: name, the file's name on their host, ids of the weights and of the configuration.
# fmt: off
TABLE = [
    ("B_12-Wi_1024_in21k", "B-12_Wi-1024_res_64_imagenet21_epochs_800",
     "1rcV8RXij_kW9X2zSLNyNOTO_bKUjE0cJ", "1envpLKUa9LhUlp2dLIL8Jb8447wwpXF0"),
    ("B_12-Wi_512_in21k", "B-12_Wi-512_res_64_imagenet21_epochs_600",
     "1sL9j_4FFeBTWTzuRFbHLfwrmPVLXhUtW", "14GKtQ1iYwOqYpy4RcrWz2Ue3AGG7eGLz"),
    ("B_6-Wi_1024_in21k", "B-6_Wi-1024_res_64_imagenet21_epochs_800",
     "1cmO3QSz_hfHtyzkUOZnPmXPxIE2YzEbf", "11zFGFiKKxxrZOGk5oyk3AzBDnIY7KN3s"),
    ("B_6-Wi_512_in21k", "B-6_Wi-512_res_64_imagenet21_epochs_800",
     "1QV3a99UT8llfh9zDDuNKWDH_5c6S_YT5", "1Fjf4RA_yUXHgHncb9GIlf9zBNAJ-8giv"),
    ("B_12-Wi_1024_in21k_cifar10", "B-12_Wi-1024_res_64_cifar10_epochs_20",
     "1GyxuewoOzMRhzEOyUrIBLQzquc-QEYNV", "1envpLKUa9LhUlp2dLIL8Jb8447wwpXF0"),
    ("B_12-Wi_1024_in21k_cifar100", "B-12_Wi-1024_res_64_cifar100_epochs_40",
     "1LNqC58cSwtuDr-C4bk1O3GA_vAWls-UH", "1envpLKUa9LhUlp2dLIL8Jb8447wwpXF0"),
    ("B_12-Wi_1024_in21k_imagenet", "B-12_Wi-1024_res_64_imagenet_epochs_50",
     "1MVebvnSGL02k_ql1gUCjh4quGqM9RM4F", "1envpLKUa9LhUlp2dLIL8Jb8447wwpXF0"),
    ("B_12-Wi_512_in21k_cifar10", "B-12_Wi-512_res_64_cifar10_epochs_20",
     "1F1NvoOsYCgsn1GOZcwsoToOtsw-9Aw1v", "14GKtQ1iYwOqYpy4RcrWz2Ue3AGG7eGLz"),
    ("B_12-Wi_512_in21k_cifar100", "B-12_Wi-512_res_64_cifar100_epochs_20",
     "1KIULehrqOyxIkZj0HiqowNmBy4Ye1EQ2", "14GKtQ1iYwOqYpy4RcrWz2Ue3AGG7eGLz"),
    ("B_12-Wi_512_in21k_imagenet", "B-12_Wi-512_res_64_imagenet_epochs_20",
     "1f0ZYzB_XujX8hDcEn_J6iWvw1meJ4Cbg", ""),
    ("B_6-Wi_512_in21k_cifar10", "B-6_Wi-512_res_64_cifar10_epochs_20",
     "1VjHgjheSm_w7xPtheEmY5kV_KE4-38zQ", "1Fjf4RA_yUXHgHncb9GIlf9zBNAJ-8giv"),
    ("B_6-Wi_512_in21k_cifar100", "B-6_Wi-512_res_64_cifar100_epochs_20",
     "1iK3t20-GS_Vs-_Q3ZexSiCfjGJ3IaPC2", "1Fjf4RA_yUXHgHncb9GIlf9zBNAJ-8giv"),
    ("B_6-Wi_1024_in21k_cifar10", "B-6_Wi-1024_res_64_cifar10_epochs_20",
     "1Tyd5CkROPCMQybnrZ_o1wiAW7VoK6AfJ", "11zFGFiKKxxrZOGk5oyk3AzBDnIY7KN3s"),
    ("B_6-Wi_1024_in21k_cifar100", "B-6_Wi-1024_res_64_cifar100_epochs_20",
     "1FrRb78bjun6QGbbH-pCWDaaE_8LWW785", "11zFGFiKKxxrZOGk5oyk3AzBDnIY7KN3s"),
    ("B_6-Wi_1024_in21k_imagenet", "B-6_Wi-1024_res_64_imagenet_epochs_20",
     "115Lks211vx1at2dWn3JtQ57EZ7eNAVP4E", ""),
]
# fmt: on
SMALL = "B_1-Wi_8_in21k_cifar10"  # of the same kind as the table's, but quick to make
FILE = "B-1_Wi-8_res_64_cifar10_epochs_20"


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTMLP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "TIMEOUT_S", 0.3)
    with ReleasedHost() as host:
        monkeypatch.setenv("FASTMLP_RELEASED_URL", host.url)
        yield host
        host.shutdown()


@pytest.fixture
def small(host, tmp_path, monkeypatch):
    """A small model as if it were in the authors' table, on the host; its state dict."""
    monkeypatch.setitem(released_files.FILES, SMALL, (FILE, "small"))
    monkeypatch.setitem(released_files.CONFIGS, "B_1-Wi_8", "config")
    torch.manual_seed(0)
    state = build_model("B_1-Wi_8", 64, 10).state_dict()
    torch.save(state, tmp_path / "served")
    host.files["small"] = (tmp_path / "served").read_bytes()
    host.files["config"] = json.dumps({"architecture": "B_1-Wi_8", "dataset": "imagenet21"}).encode()
    return state


def cached(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").glob("[!.]*"))


@pytest.mark.parametrize(("name", "file", "weights_id", "config_id"), TABLE)
def test_each_name_leads_to_its_file(host, tmp_path, name, file, weights_id, config_id):
    arch, checkpoint = name.split("_in21k")
    found = find_released(name)
    assert found == ReleasedFile(name, arch, CLASSES[f"in21k{checkpoint}"], file, weights_id, config_id)
    assert find_released(f"in21k{checkpoint}", arch.replace("_", "-").replace("-Wi", "/Wi")) == found
    assert find_released(f"{arch}_res_64_in21k{checkpoint}", arch) == found
    assert not is_path(name) and not is_path(f"in21k{checkpoint}")
    host.files = {weights_id: b"the weights", config_id: b"{}"}
    checked = []
    path = cached_weights(found, lambda path: checked.append(path.read_bytes()))
    assert path == tmp_path / "cache" / f"{file}_weights" and checked == [b"the weights"]
    assert host.asked == [weights_id, *([config_id] if config_id else [])]
    assert path.with_name(f"{file}_config").is_file() == bool(config_id)


def test_the_table_is_whole():
    assert [name for name, *_ in TABLE] == sorted(FILES, key=list(FILES).index) and len(TABLE) == 15
    assert released_files.URL.format(id="X") == (
        "https://drive.usercontent.google.com/download?id=X&export=download&confirm=t"
    )


def test_weights_by_name_are_downloaded_once_and_checked_ever_after(small, host, tmp_path):
    model = build_model("B_1-Wi_8", weights="in21k_cifar10")
    assert all(torch.equal(small[name], tensor) for name, tensor in model.state_dict().items())
    assert model.resampling == "area" and host.asked == ["small", "config"]
    again, metadata = load_model(SMALL)
    assert host.asked == ["small", "config"] and metadata["dataset"] == "cifar10" and again.num_classes == 10
    assert cached(tmp_path) == [f"{FILE}_config", f"{FILE}_weights", f"{FILE}_weights.sha256"]
    path = tmp_path / "cache" / f"{FILE}_weights"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.with_name(f"{path.name}.sha256").read_text() == f"{digest}  {path.name}\n"
    other = {name: tensor + 1 for name, tensor in small.items()}
    torch.save(other, path)
    with pytest.raises(ValueError, match=f"has changed: its SHA-256 is .* of the first one {digest}.*Delete the file"):
        load_model(SMALL)
    host.files["small"] = path.read_bytes()
    path.unlink()
    with pytest.raises(ValueError, match=r"a file that differs came: its SHA-256"):
        load_model(SMALL)
    assert not path.exists()


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("html", r"an HTML page \('Google Drive - Quota exceeded'\) came instead of the file"),
        ("login", r"an HTML page \('Google Drive - Quota exceeded'\) came instead of the file"),
        ("404", "the server answered 404 Not Found"),
        ("loop", "leads from one address to the next without an end"),
        ("truncated", r"it broke off after about [\d,]+ bytes"),
        ("unannounced", "is damaged or not a file of weights"),
        ("empty", "is damaged or not a file of weights"),
        ("hang", r"nothing came for 0\.3 s after [\d,]+ bytes"),
        ("mute", r"nothing came for 0\.3 s after 0 bytes"),
    ],
)
def test_what_came_instead_is_told_in_one_line(small, host, script, tmp_path, monkeypatch, way, message):
    monkeypatch.chdir(tmp_path)
    host.ways["small"], host.hang_s = way, 1.0
    ended = script("recipes/evaluate.py", f"--cfg.weights={SMALL}")
    assert ended.code == 2 and ended.err.count("\n") == 1 and re.search(message, ended.err), ended.err
    assert f"Open {host.url.format(id='small')} in a browser, save the file as {tmp_path}/cache/{FILE}_w" in ended.err
    assert cached(tmp_path) == []
    host.ways.clear()
    assert load_model(SMALL)[0].num_classes == 10


def test_no_host_is_told(small, host, monkeypatch):
    monkeypatch.setenv("FASTMLP_RELEASED_URL", "http://127.0.0.1:9/{id}")
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:9/small: no connection \(ConnectionError\)\. Open "):
        load_model(SMALL)
    monkeypatch.setenv("FASTMLP_RELEASED_URL", "http://127.0.0.1:9/id")
    with pytest.raises(ValueError, match=r"has no \{id\}"):
        load_model(SMALL)


def test_a_moved_file_is_followed(small, host):
    host.ways["small"] = "moved"
    assert load_model(SMALL)[0].num_classes == 10 and host.asked[:2] == ["small", "small"]


@pytest.mark.parametrize(
    ("arch", "classes", "message"),
    [
        ("B_1-Wi_8", 100, "named after cifar10, which has 10 classes, but its head has 100"),
        ("B_2-Wi_8", 10, "it holds B_2-Wi_8 for 64 px and 10 classes, not B_1-Wi_8_in21k_cifar10"),
    ],
)
def test_another_model_s_file_gets_no_name(small, host, tmp_path, arch, classes, message):
    torch.save(build_model(arch, 64, classes).state_dict(), tmp_path / "served")
    host.files["small"] = (tmp_path / "served").read_bytes()
    with pytest.raises(ValueError, match=message):
        load_model(SMALL)
    assert cached(tmp_path) == []


def test_files_that_were_put_there_by_hand(small, host, tmp_path):
    """Checked, and their SHA-256 recorded, too; without a configuration."""
    path = tmp_path / "cache" / f"{FILE}_weights"
    path.parent.mkdir()
    path.write_bytes(b"<html>")
    with pytest.raises(ValueError, match="is damaged or not a file of weights"):
        load_model(SMALL)
    path.write_bytes(host.files["small"])
    assert load_model(SMALL)[0].num_classes == 10 and not host.asked
    assert cached(tmp_path) == [f"{FILE}_weights", f"{FILE}_weights.sha256"]


def test_a_missing_configuration_is_a_notice(small, host, capsys):
    host.ways["config"] = "404"
    assert load_model(SMALL)[0].num_classes == 10
    assert "the server answered 404 Not Found. The weights were checked without their config" in capsys.readouterr().err


def test_two_processes_download_once(small, host, tmp_path):
    found = find_released(SMALL)
    threads = [threading.Thread(target=cached_weights, args=(found, lambda path: path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert host.asked.count("small") == 1 and f"{FILE}_weights.sha256" in cached(tmp_path)


@pytest.mark.parametrize(
    ("weights", "flags", "message"),
    [
        ("in21k", (), r"add --cfg\.arch=B_12-Wi_1024, or write B_12-Wi_1024_in21k"),
        ("in22k", ("--cfg.arch=B_12-Wi_1024",), r"did you mean in21k\? Known names: B_12-Wi_1024_in21k, "),
        ("B_12-Wi_1024_in21k_cifar", (), r"did you mean B_12-Wi_1024_in21k_cifar10+\?"),
        ("in21k", ("--cfg.arch=B_6-Wi_256",), r"'in21k' is neither a file nor .* of B_6-Wi_256; did you mean B_6-Wi_"),
        ("B_12-Wi_512_in21k", ("--cfg.arch=B_6-Wi_512",), "the weights B_12-Wi_512_in21k are of B_12-Wi_512, not B_6-"),
        ("B_6-Wi_512_in21k_imagenet", (), "link in the authors' table is that of B_6-Wi_512_in21k_cifar100"),
        ("in21k_imagenet", ("--cfg.arch=B_6-Wi_512",), "link in the authors' table is that of B_6-Wi_512_in21k_cifar"),
        ("in21k", ("--cfg.arch=huge",), "unknown architecture 'huge'"),
        ("folder/in21k", (), "folder/in21k is missing: expected a file of weights"),
        (FILE + "_weights", (), "is missing: expected a file of weights"),
    ],
)
@pytest.mark.parametrize("recipe", ["finetune", "evaluate"])
def test_names_that_cannot_be_are_told_in_one_line(host, script, recipe, weights, flags, message):
    ended = script(f"recipes/{recipe}.py", f"--cfg.weights={weights}", "--cfg.dataset=synthetic", *flags)
    assert ended.code == 2 and ended.err.count("\n") == 1 and re.search(message, ended.err), ended.err
    assert not host.asked


def test_recipes_take_names(small, host, script, data_dir, tmp_path, monkeypatch):
    """Fine-tuning with a short one, evaluation with a whole one; neither writes into the cache."""
    monkeypatch.chdir(tmp_path)
    flags = (f"--cfg.data_dir={data_dir}", "--cfg.dataset=synthetic", "--cfg.res=8", "--cfg.num_workers=1")
    more = ("--cfg.batch_size=100", "--cfg.epochs=1", "--cfg.run_dir=run")
    ended = script(
        "recipes/finetune.py", "--cfg.weights=in21k_cifar10", "--cfg.arch=B_1-Wi_8", *flags, *more, "--cfg.lr=1e-9"
    )
    assert ended.code == 0, ended.err
    tuned = load_model(tmp_path / "run" / "final.pt")[0]
    torch.testing.assert_close(tuned.linear_in.weight, small["linear_in.weight"], atol=1e-6, rtol=0)
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (70, 70), (200, 100, 0)).save(tmp_path / "pictures" / "a.png")
    ended = script("recipes/evaluate.py", f"--cfg.weights={SMALL}", "--cfg.images=pictures")
    assert ended.code == 0, ended.err
    assert (tmp_path / "runs" / SMALL / "evaluation-pictures" / "predictions.csv").is_file()
    assert len(cached(tmp_path)) == 3 and host.asked == ["small", "config"]


def test_a_file_goes_before_a_name(small, host, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(small, tmp_path / SMALL)
    assert load_model(SMALL)[0].num_classes == 10 and not host.asked
