"""Trained models on disk: ours, safetensors, the released format; each damaged variant with a message of its own."""

import json
import os
import zipfile

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.special import erf

from fastmlp import build_model, load_model
from fastmlp.arch import parse_arch
from fastmlp.evaluation.evaluate import select_forward
from fastmlp.models.state_dict import state_shapes
from fastmlp.models.weights import export_safetensors, save_model

NAME = "B-2_Wi-16_res_8_cifar100_epochs_20_weights"  # as the authors name their files


def numpy_forward(state, images):
    """The paper's formula, in float64 and with exact erf."""
    w = {name: tensor.numpy().astype(np.float64) for name, tensor in state.items()}
    z = images @ w["linear_in.weight"].T + w["linear_in.bias"]
    for b in range(sum(name.endswith("block.0.bias") for name in w)):
        mean, var = z.mean(1, keepdims=True), z.var(1, keepdims=True)
        normed = (z - mean) / np.sqrt(var + 1e-5) * w[f"layernorms.{b}.weight"] + w[f"layernorms.{b}.bias"]
        hidden = normed @ w[f"blocks.{b}.block.0.weight"].T + w[f"blocks.{b}.block.0.bias"]
        act = 0.5 * hidden * (1 + erf(hidden / np.sqrt(2)))
        z = z + act @ w[f"blocks.{b}.block.2.weight"].T + w[f"blocks.{b}.block.2.bias"]
    return z @ w["linear_out.weight"].T + w["linear_out.bias"]


@pytest.fixture
def released(tmp_path):
    """A state dict as the authors save it, weights moved away from their initial values, and its path."""
    torch.manual_seed(0)
    state = {
        name: tensor + 0.1 * torch.randn_like(tensor)
        for name, tensor in build_model("B_2-Wi_16", 8, 100).state_dict().items()
    }
    torch.save(state, tmp_path / NAME)
    return state, tmp_path / NAME


def config(path, **changes):
    metadata = {
        "architecture": "B_2-Wi_16",
        "model": "BottleneckMLP",
        "normalization": "layer",
        "crop_resolution": 8,
        "dataset": "imagenet21",
        "num_classes": 11230,
        **changes,
    }
    path.write_text(json.dumps(metadata))


@pytest.mark.parametrize("beside", ["config.txt", "B-2_Wi-16_res_8_cifar100_epochs_20_config", None])
def test_released_weights_give_the_logits_of_the_formula(released, beside):
    state, path = released
    if beside:
        config(path.with_name(beside))
    model, metadata = load_model(path)
    images = torch.randn(40, 192)
    expected = numpy_forward(state, images.numpy().astype(np.float64))
    with torch.no_grad():
        np.testing.assert_allclose(model(images).numpy(), expected, rtol=1e-4, atol=1e-5)
    assert (str(model.arch), model.res, model.num_classes) == ("B_2-Wi_16", 8, 100)
    assert metadata["dataset"] == "cifar100" and metadata["fit"] == "square"
    assert metadata["mean"][0] == 0.4914 * 255  # CIFAR-10's, as the released fine-tunes of CIFAR-100 were normalised


@pytest.mark.skipif("FASTMLP_KILLS" not in os.environ, reason="a minute: scripts/torture.sh")
def test_the_largest_released_model_on_10000_inputs(tmp_path):
    torch.manual_seed(0)
    state = {
        name: tensor + 0.02 * torch.randn_like(tensor) * (tensor.ndim == 2)
        for name, tensor in build_model("B_12-Wi_1024").state_dict().items()
    }
    torch.save(state, tmp_path / "B-12_Wi-1024_res_64_imagenet21_epochs_800_weights")
    model, _ = load_model(tmp_path / "B-12_Wi-1024_res_64_imagenet21_epochs_800_weights")
    worst = 0.0
    for _ in range(10):
        images = torch.randn(1000, 3 * 64 * 64)
        expected = numpy_forward(state, images.numpy().astype(np.float64))
        with torch.inference_mode():
            got = select_forward(model)(images).numpy()
        worst = max(worst, float((np.abs(got - expected).max(1) / np.abs(expected).max(1)).max()))
        np.testing.assert_array_equal(got.argmax(1), expected.argmax(1))
    print(f"greatest error of a logit, relative to its image's greatest logit: {worst:.2g}")
    assert worst < 1e-4


@pytest.mark.parametrize(
    ("classes", "dataset", "mean", "fit"),
    [
        (11230, "imagenet21k", 0.485, "longest"),
        (1000, "imagenet", 0.485, "longest"),
        (200, "tiny_imagenet", 0.485, "square"),
        (10, "cifar10", 0.4914, "square"),
        (37, "unknown", 0.485, "square"),
    ],
)
def test_normalisation_and_fit_of_released_weights(tmp_path, classes, dataset, mean, fit):
    torch.save(build_model("B_1-Wi_8", 4, classes).state_dict(), tmp_path / "weights")
    _, metadata = load_model(tmp_path / "weights")
    assert (metadata["dataset"], metadata["mean"][0], metadata["fit"]) == (dataset, mean * 255, fit)
    assert metadata["std"][0] == {0.485: 0.229, 0.4914: 0.2470}[mean] * 255


def damaged(state, change):
    if change == "missing":
        return {name: tensor for name, tensor in state.items() if name != "blocks.1.block.2.bias"}
    if change == "extra":
        return {**state, "blocks.1.block.4.bias": torch.zeros(3)}
    if change == "shape":
        return {**state, "layernorms.0.bias": torch.zeros(17)}
    if change == "nan":
        return {**state, "linear_in.bias": state["linear_in.bias"] * float("nan")}
    if change == "integers":
        return {name: tensor.int() for name, tensor in state.items()}
    if change == "batchnorm":
        return {**state, "layernorms.0.running_mean": torch.zeros(16)}
    if change == "standard":
        return {"layers.0.weight": torch.zeros(2, 2), **state}
    if change == "no image":
        return {**state, "linear_in.weight": torch.zeros(16, 191)}
    if change == "no mlp":
        return {"conv1.weight": torch.zeros(3, 3)}
    raise AssertionError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"does not fit B_2-Wi_16: missing: blocks\.1\.block\.2\.bias"),
        ("extra", r"not of this architecture: blocks\.1\.block\.4\.bias"),
        ("shape", r"layernorms\.0\.bias is \(17,\), expected \(16,\)"),
        ("nan", r"linear_in\.bias holds numbers that are not finite"),
        ("integers", "expected floating-point numbers"),
        (
            "batchnorm",
            r"does not fit B_2-Wi_16-N_batch: missing: layernorms\.0\.num_batches_tracked, layernorms\.0\.run",
        ),
        ("standard", "authors' own S-MLP"),
        ("no image", "its 191 inputs are not a square RGB image"),
        ("no mlp", "does not hold the weights of an MLP"),
    ],
)
def test_each_damaged_variant_is_refused(released, change, message):
    state, path = released
    torch.save(damaged(state, change), path)
    with pytest.raises(ValueError, match=message):
        load_model(path)


LARGE = 10**9


def forged(kind):
    """A small file that asks for much, or holds what no model has."""
    base = build_model("B_2-Wi_16", 8, 10).state_dict()
    ours = {"arch": "B_2-Wi_16", "res": 8, "num_classes": 10, "state_dict": base, "facts": {}}
    weight, bias, numbers = base["linear_in.weight"], base["linear_in.bias"], torch.zeros(3072)
    repeated = {"linear_out.weight": torch.zeros(1).expand(LARGE, 16), "linear_out.bias": torch.zeros(1).expand(LARGE)}
    return {
        "blocks": {**ours, "arch": "B_999-Wi_16"},
        "million blocks": {**ours, "arch": "B_999999-Wi_16"},
        "classes": {**ours, "num_classes": LARGE},
        "googol": {**ours, "num_classes": 10**100},
        "res": {**ours, "res": 10**6},
        "fraction": {**ours, "res": 8.0},
        "width": {**ours, "arch": "B_2-Wi_999999999"},
        "digits": {**ours, "arch": "B_2-Wi_" + "9" * 5000},
        "long": {**ours, "arch": "B" * 10**6},
        "list": {**ours, "arch": ["B_2-Wi_16"]},
        "mean": {**ours, "facts": {"mean": [1, float("nan"), 3], "std": [1, 0, 1]}},
        "text": {**ours, "state_dict": {"linear_in.weight": "x"}},
        "sparse": {**base, "linear_in.weight": weight.to_sparse()},
        "csr": {**base, "linear_in.weight": weight.to_sparse_csr()},
        "float8": {**base, "linear_in.bias": bias.to(torch.float8_e5m2)},
        "float64": {**base, "linear_in.bias": torch.full((16,), 1e300, dtype=torch.float64)},
        "stride 0": {**ours, "num_classes": LARGE, "state_dict": {**base, **repeated}},
        "stride 0, bare": {**base, **repeated},
        "meta": {**base, "linear_in.weight": torch.zeros(16, 192, device="meta")},
        "shared": {name: numbers.as_strided(tensor.shape, tensor.stride()) for name, tensor in base.items()},
        "no width": {**base, "linear_in.weight": torch.zeros(0, 192)},
        "keys": {**base, **{f"blocks.{n}.x": bias for n in range(100_000)}},
        "number": {**base, "blocks.99999999999.x": bias},
    }[kind]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("blocks", "999 blocks do not have only 16 tensors"),
        ("million blocks", "at most 1,000 blocks"),
        ("classes", r"linear_out\.bias is \(10,\), expected \(1000000000,\)"),
        ("googol", "num_classes is not from 1 to"),
        ("res", r"linear_in\.weight is \(16, 192\), expected \(16, 3000000000000\)"),
        ("fraction", "res is float, expected int"),
        ("width", "so are 10 more"),
        ("digits", "unknown architecture"),
        ("long", "unknown architecture"),
        ("list", "arch is list, expected str"),
        ("mean", "damaged: mean; std"),
        ("text", "does not map names to tensors"),
        ("sparse", "torch.sparse_coo, expected a dense tensor"),
        ("csr", "torch.sparse_csr, expected a dense tensor"),
        ("float8", "is torch.float8_e5m2, expected floating-point numbers"),
        ("float64", "not finite"),
        ("stride 0", "not a number for each of its elements"),
        ("stride 0, bare", "not a number for each of its elements"),
        ("meta", "not a number for each of its elements"),
        ("shared", "they share their numbers"),
        ("no width", "does not hold the weights of an MLP"),
        ("keys", "at most 1,000 blocks"),
        ("number", "not of this architecture"),
    ],
)
def test_small_files_that_ask_for_much_are_refused_in_words(tmp_path, kind, message):
    path, content = tmp_path / "weights.pt", forged(kind)
    torch.save(content, path)
    with pytest.raises(ValueError, match=message) as error:
        load_model(path)
    assert str(path) in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize("arch", ["B_2-Wi_4", "B_1-Wi_4-E_3", "S_2-Wi_4", "B_2-Wi_4-N_batch", "S_1-Wi_4-N_none"])
def test_shapes_are_known_without_building_a_model(arch):
    built = build_model(arch, 5, 7).state_dict()
    assert state_shapes(parse_arch(arch), 5, 7) == {name: tuple(tensor.shape) for name, tensor in built.items()}


def test_archives_that_unpack_to_more_than_they_are(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(build_model("S_1-Wi_8", 4, 3).state_dict(), path)
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
        archive.writestr("archive/data/9", bytes(10**7))
    with pytest.raises(ValueError, match="it is compressed"):
        load_model(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries:
            archive.writestr(name, content)
    whole = path.read_bytes()
    at = whole.index(b"PK\x01\x02") + 20  # sizes of the first entry in the directory
    path.write_bytes(whole[:at] + (2**31).to_bytes(4, "little") * 2 + whole[at + 8 :])
    with pytest.raises(ValueError, match="its parts are larger than the file"):
        load_model(path)
    path.write_bytes(whole[: len(whole) // 3] + whole[len(whole) // 2 :])  # zipfile raises OSError 22
    with pytest.raises(ValueError, match="weights.pt is damaged"):
        load_model(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "B_3-Wi_16"}, r"architecture 'B_3-Wi_16' \(weights: 'B_2-Wi_16'\)"),
        ({"crop_resolution": 64}, r"crop_resolution 64 \(weights: 8\)"),
        ({"normalization": "batch"}, "normalization 'batch'"),
        ({"model": "MLP"}, "model 'MLP'"),
    ],
)
def test_a_config_of_other_weights_is_refused(released, changes, message):
    config(released[1].with_name("config.txt"), **changes)
    with pytest.raises(ValueError, match=message):
        load_model(released[1])
    released[1].with_name("config.txt").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_model(released[1])


def test_odd_files_are_told(released):
    state, path = released
    torch.save({0: torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="is not a model of fastmlp: it has no arch"):
        load_model(path)
    torch.save(state, path)
    config(path.with_name("config.txt"), architecture=5)
    with pytest.raises(ValueError, match="unknown architecture '5'"):
        load_model(path)


def test_a_file_named_after_another_data_set_is_refused(released):
    """One address in the authors' list leads to CIFAR-100's weights under ImageNet's name."""
    path = released[1].with_name("B-2_Wi-16_res_8_imagenet_epochs_20_weights")
    path.write_bytes(released[1].read_bytes())
    with pytest.raises(ValueError, match="named after imagenet, which has 1000 classes, but its head has 100"):
        load_model(path)


@pytest.mark.parametrize(
    ("told", "classes", "dataset"),
    [
        ("stl10", 10, "stl10"),
        ("cifar10", 10, "cifar10"),
        ("imagenet21", 10, "cifar10"),  # that of pre-training, with as many classes as the head has not
        ("imagenet21", 11_230, "imagenet21k"),
        ("imagenet_real", 1000, "imagenet"),
        ("tinyimagenet", 200, "tiny_imagenet"),
        ("mine", 10, "cifar10"),
        (["stl10"], 10, "cifar10"),
    ],
)
def test_a_configuration_is_taken_at_its_word_on_the_data_set(tmp_path, told, classes, dataset):
    torch.save(build_model("B_2-Wi_16", 8, classes).state_dict(), tmp_path / "weights")
    config(tmp_path / "config.txt", dataset=told)
    metadata = load_model(tmp_path / "weights")[1]
    assert metadata["dataset"] == dataset and metadata["resampling"] == "area"
    assert metadata["mean"][0] == (0.4914 if classes == 10 else 0.485) * 255  # STL-10, too, had CIFAR-10's numbers


def test_files_of_torch_before_1_6_load_as_others_do(released):
    """A pickle, of which only tensors and containers are read; no zip archive."""
    state, path = released
    torch.save(state, path, _use_new_zipfile_serialization=False)
    model, _ = load_model(path)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:40], whole[:20] + b"x" * 30):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged or not a file of weights"):
            load_model(path)
    torch.save({**state, "linear_in.bias": print}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="is damaged or not a file of weights"):
        load_model(path)


def test_an_s_mlp_of_the_authors_with_one_width_is_named(tmp_path):
    """It has neither layers nor norms: linear_in, GELU, linear_out are no blocks of ours."""
    state = {name: torch.zeros(2, 192) for name in ("linear_in.weight",)} | {"linear_in.bias": torch.zeros(2)}
    state |= {"linear_out.weight": torch.zeros(10, 2), "linear_out.bias": torch.zeros(10)}
    torch.save(state, tmp_path / "weights")
    with pytest.raises(ValueError, match="holds the authors' own S-MLP .*: it cannot be loaded"):
        load_model(tmp_path / "weights")


def test_wrapped_and_half_precision_weights(released):
    state, path = released
    torch.save({f"module.{name}": tensor.half() for name, tensor in state.items()}, path)
    model, _ = load_model(path)
    assert model.linear_in.weight.dtype == torch.float32
    assert torch.equal(model.linear_in.weight, state["linear_in.weight"].half().float())


def test_build_model_takes_weights_and_a_new_head_only_if_asked(released):
    state, path = released
    model = build_model("B-2/Wi-16", weights=path)
    assert torch.equal(model.linear_out.weight, state["linear_out.weight"])
    with pytest.raises(ValueError, match="has a head for 100 classes, not 10: new_head=True"):
        build_model("B_2-Wi_16", num_classes=10, weights=path)
    other = build_model("B_2-Wi_16", num_classes=10, weights=path, new_head=True)
    assert other.linear_out.weight.shape == (10, 16) and other.num_classes == 10
    assert torch.equal(other.linear_in.weight, state["linear_in.weight"])
    with pytest.raises(ValueError, match="holds B_2-Wi_16, not B_6-Wi_16"):
        build_model("B_6-Wi_16", weights=path)
    with pytest.raises(ValueError, match="for images of 8 px, not 32"):
        build_model("B_2-Wi_16", 32, weights=path)


def test_safetensors_there_and_back(tmp_path):
    model = build_model("S_2-Wi_16", 8, 5)
    save_model(tmp_path / "m.pt", model, {"dataset": "synthetic", "classes": list("abcde"), "mean": [1.0, 2.0, 3.0]})
    exported = export_safetensors(tmp_path / "m.pt")
    assert load_file(exported).keys() == model.state_dict().keys()
    again, metadata = load_model(exported)
    assert metadata == {"dataset": "synthetic", "classes": list("abcde"), "mean": [1.0, 2.0, 3.0]}
    x = torch.randn(3, 192)
    assert torch.equal(model(x), again(x))
    exported.write_bytes(exported.read_bytes()[:-7])
    with pytest.raises(ValueError, match="damaged"):
        load_model(exported)


def test_released_weights_exported(released):
    exported = export_safetensors(released[1])
    model, metadata = load_model(exported)
    assert metadata["dataset"] == "cifar100" and torch.equal(model.linear_in.bias, released[0]["linear_in.bias"])


def exported(folder):
    """A model as .pt, and exported."""
    torch.manual_seed(0)
    metadata = {"dataset": "x", "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "classes": ["a", "b", "c"]}
    save_model(folder / "m.pt", build_model("B_2-Wi_8", 4, 3), metadata)
    return export_safetensors(folder / "m.pt")


def test_exported_weights_are_checked_by_their_digest(tmp_path, capsys):
    path = exported(tmp_path)
    beside, whole = path.with_suffix(".json"), path.read_bytes()
    description = beside.read_text()
    swapped = whole.replace(b"blocks.0.block.0.bias", b"blocks.9.block.0.bias")
    swapped = swapped.replace(b"blocks.1.block.0.bias", b"blocks.0.block.0.bias")
    swapped = swapped.replace(b"blocks.9.block.0.bias", b"blocks.1.block.0.bias")
    flipped = whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:]
    for changed in (swapped, flipped):
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"m\.safetensors is damaged: its weights or their description"):
            load_model(path)
    path.write_bytes(whole)
    for changed in (description.replace("4.0", "4.5"), description.replace('"sha256": "', '"sha256": "0')):
        beside.write_text(changed)
        with pytest.raises(ValueError, match=r"m\.json does not belong to"):
            load_model(path)
    beside.unlink()  # the file is enough
    assert load_model(path)[1]["classes"] == ["a", "b", "c"]
    content = load_file(path)
    for digest, message in (("", "differ from the digest"), ("0" * 64, "differ from the digest")):
        with safe_open(path, "pt") as opened:
            stored = opened.metadata()
        save_file(content, path, {**stored, "sha256": digest})
        with pytest.raises(ValueError, match=message):
            load_model(path)
    # A file of another program, which keeps no metadata, is checked by the JSON file alone.
    save_file(load_file(path), path)
    beside.write_text(description)
    assert load_model(path)[1]["std"] == [4.0, 5.0, 6.0]
    beside.write_text(description.replace("4.0", "4.5"))
    with pytest.raises(ValueError, match="differ from the digest"):
        load_model(path)
    assert capsys.readouterr().err == ""
    beside.write_text(json.dumps({name: value for name, value in json.loads(description).items() if name != "sha256"}))
    assert load_model(path)[1]["std"] == [4.0, 5.0, 6.0]  # as 0.1 wrote them
    assert "m.safetensors is unverified" in capsys.readouterr().err


def test_what_a_library_says_stays_in_one_line(tmp_path):
    torch.save({"x": np.int64(3)}, tmp_path / "x.pt")  # torch explains in paragraphs why it does not unpickle this
    with pytest.raises(ValueError, match=r"x\.pt is damaged or not a file of weights \(Weights only load") as error:
        load_model(tmp_path / "x.pt")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def mutated(content, rng):
    """A file with a bit, a byte, a length, a stretch changed, or bytes missing or too many."""
    changed, at = bytearray(content), int(rng.integers(len(content)))
    if rng.random() < 0.5:  # where the structure is: safetensors' beginning, a zip's end
        at = int(rng.integers(min(len(content), 1500)))
        at = at if content[:2] != b"PK" else len(content) - 1 - at
    other, size = int(rng.integers(len(content))), int(rng.integers(1, 64))
    changes = (
        (1, bytes([content[at] ^ (1 << int(rng.integers(8)))])),
        (1, rng.bytes(1)),
        (4, b"\xff\xff\xff\x7f"),
        (size, content[other : other + size]),
        (size, b""),
        (0, rng.bytes(size)),
        (len(content), b""),
    )
    removed, put = changes[int(rng.integers(len(changes)))]
    changed[at : at + removed] = put
    return bytes(changed)


def test_mutated_files_are_refused_or_load_as_they_were(tmp_path):
    """FASTMLP_MUTATIONS says how many (scripts/torture.sh: 1,000)."""
    path = exported(tmp_path)
    files = {name: path.with_suffix(name).read_bytes() for name in (".pt", ".safetensors", ".json")}
    expected, metadata = load_model(path)
    for number in range(int(os.environ.get("FASTMLP_MUTATIONS", 100))):
        rng = np.random.default_rng(number)
        name = list(files)[number % 3]
        path.with_suffix(name).write_bytes(mutated(files[name], rng))
        try:
            model, found = load_model(path.with_suffix(".pt" if name == ".pt" else ".safetensors"))
        except ValueError as error:
            assert str(path.with_suffix("")) in str(error) and "\n" not in str(error), number
        else:
            assert found == metadata, number
            for tensor, right in zip(model.state_dict().values(), expected.state_dict().values(), strict=True):
                assert torch.equal(tensor, right), number
        path.with_suffix(name).write_bytes(files[name])


def test_a_zip_entry_marked_as_a_folder_is_refused(tmp_path):
    """torch.load gives such an entry whatever was in memory, though its checksum is right."""
    path = tmp_path / "m.pt"
    exported(tmp_path)
    whole = bytearray(path.read_bytes())
    whole[whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"PK\x01\x02")) + 38] |= 0x10
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="is marked as a folder"):
        load_model(path)
