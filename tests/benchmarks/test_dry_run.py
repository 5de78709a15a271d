"""The dry run: one case from end to end, its counting on examples counted by hand, and where it cannot run."""

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib import metadata

import dry_run
import psutil
import pytest
import torch
from conftest import ROOT
from dry import environment
from dry.environment import CannotRun, Environment
from dry.expectations import failures
from dry.kernel_source import Argument, kernel_accesses
from dry.live_memory import LiveMemory
from dry.operations import operation_accesses, product_flop
from dry.resources import Resources, worst

ARCH, RES, CLASSES, BATCH = "B_2-Wi_256", 32, 100, 2048
WIDTH, HIDDEN = 256, 1024
COMMAND = [sys.executable, str(ROOT / "benchmarks" / "dry_run.py"), "--card", "A5000"]
COMMAND += ["--case", f"{ARCH},{RES},{CLASSES},{BATCH}"]


@pytest.fixture(scope="module")
def ended():
    try:
        environment.check_platform()
    except CannotRun as reason:
        pytest.skip(str(reason))
    return subprocess.run([*COMMAND, "--interpret"], capture_output=True, text=True)


@pytest.fixture(scope="module")
def results(ended):
    assert ended.returncode == 0, ended.stderr
    (line,) = ended.stdout.splitlines()
    return json.loads(line)["results"]


def kernels(results, part, phase):
    return [row for row in results["kernels"] if (row["part"], row["phase"]) == (part, phase)]


# --- the case from end to end


def test_the_augmentation_is_one_kernel_without_spills_in_few_registers(results):
    (kernel,) = kernels(results, "augmentation", "forward")
    assert kernel["launches"] == 1 and kernel["spill_bytes"] == 0 and 20 <= kernel["registers"] <= 48
    pixels = BATCH * 3 * RES**2
    sent = BATCH * 17 + 2 * 3 * 4  # boxes and flips, mean and std
    assert kernel["bytes"] == pixels * (1 + 2) + sent  # uint8 read, bfloat16 written


def test_the_interpreted_kernel_is_the_eager_expression(results):
    assert set(results["interpreter"]) == {"float32", "bfloat16"}
    for crop in ("random_resized", "pad_and_crop"):
        exact, rounded = (results["interpreter"][dtype][crop] for dtype in ("float32", "bfloat16"))
        assert exact["values"] == 8 * 3 * RES**2 and exact["max_difference"] == 0
        assert 0 < rounded["max_difference"] <= rounded["largest_value"] / 128


def test_only_the_first_step_compiles(results):
    assert results["graphs_before_the_steps"] >= 3  # the block forward and backward, LION
    assert len(results["graphs_by_step"]) == 4 and results["graphs_by_step"][1:] == [0, 0, 0]


def test_every_kernel_is_compiled_and_belongs_to_a_part(results):
    graphs = {(row["part"], row["phase"]): row["kernels"] for row in results["graphs"]}
    assert graphs["augmentation", "forward"] == graphs["optimiser", "update"] == 1
    assert {("blocks", "forward"), ("blocks", "backward")} < set(graphs)
    for row in results["kernels"]:
        assert 8 <= row["registers"] <= 255 and row["spill_bytes"] == 0 and row["shared_bytes"] <= 101_376, row
    assert len(kernels(results, "blocks", "forward")) == graphs["blocks", "forward"]


def test_the_bytes_of_the_blocks_are_those_counted_by_hand(results):
    z, hidden, matrix = 2 * BATCH * WIDTH, 2 * BATCH * HIDDEN, WIDTH * HIDDEN
    forward = sum(row["bytes"] for row in kernels(results, "blocks", "forward"))
    passes = 2 * z + 2 * hidden + 3 * z + 2 * matrix * (4 + 2)  # LayerNorm, GELU, skip, the casts of two matrices
    assert forward == pytest.approx(2 * passes, rel=0.01)  # two blocks; biases and statistics are the rest
    (gelu,) = [row for row in kernels(results, "blocks", "forward") if "gelu" in row["kernel"]]
    assert gelu["bytes"] == 2 * 2 * hidden
    assert {(a["kind"], a["bytes"]) for a in gelu["of_one_launch"]} == {("read", hidden), ("written", hidden)}


def test_lion_is_one_pass(results):
    (lion,) = kernels(results, "optimiser", "update")
    matrices = 3 * RES**2 * WIDTH + 4 * WIDTH * HIDDEN  # the head is smaller than lion.SMALL
    assert lion["bytes"] == 5 * 4 * matrices + lion["launches"] * 2 * 4  # p and m both ways, g; step and keep


def test_the_products_are_those_of_the_formula(results):
    products = results["products"]
    assert products["flop"] == products["formula_flop"] > 0
    assert products["count"] == 3 * 6 - 1  # six layers; no gradient with respect to the images
    assert products["ms"] == pytest.approx(1e3 * products["flop"] / (0.37 * 111.1e12))


def test_parts_are_the_sum_of_their_kernels_and_operations(results):
    parts = results["parts"]
    assert list(parts) == ["augmentation", "embedding and MixUp", "blocks", "loss", "optimiser"]
    for name, part in parts.items():
        rows = [*results["kernels"], *results["eager"]]
        assert part["bytes"] == sum(row["bytes"] for row in rows if row["part"] == name) > 0
        assert part["bytes_per_image"] == part["bytes"] / BATCH
        assert part["ms"] == pytest.approx(1e3 * part["bytes"] / (0.8 * 768e9))
    assert parts["loss"]["bytes"] > 2 * BATCH * CLASSES * 2  # at least the logits read, and their gradient written
    assert results["total"]["bytes"] == sum(part["bytes"] for part in parts.values())


def test_large_tensors_are_listed_by_part(results):
    (images,) = [row for row in results["tensors"] if row["part"] == "augmentation" and row["dtype"] == "uint8"]
    assert (images["shape"], images["read"], images["written"]) == ([BATCH, RES, RES, 3], 1, 0)
    assert all(row["bytes"] >= 2**20 for row in results["tensors"])
    stored = {tuple(row["shape"]): row["count"] for row in results["stored_for_backward"] if row["part"] == "blocks"}
    assert stored[BATCH, HIDDEN] == 4  # two blocks: GELU's input and its result


def test_the_peak_is_the_sum_of_its_parts_and_within_the_budget(results):
    memory = results["memory"]
    assert memory["peak_bytes"] == sum(memory["parts"].values())
    assert memory["peak_bytes"] == pytest.approx(memory["budget_bytes"], rel=0.05)
    weights = 4 * (3 * RES**2 * WIDTH + 4 * WIDTH * HIDDEN + WIDTH * CLASSES)
    for part in ("weights", "optimiser"):
        assert memory["parts"][part] == pytest.approx(weights, rel=0.01)
    assert memory["parts"]["activations"] > 4 * 2 * BATCH * (HIDDEN + WIDTH)
    assert results["micro_batch_size"] == memory["budget_micro_batch_size"] == BATCH


def test_nothing_is_called_measured(ended, results):
    assert json.loads(ended.stdout)["kind"] == "compiled, counted or computed; not measured"
    assert "measured" not in ended.stderr and not results["failures"]
    for word in ("compiled", "counted", "computed", "equal bit for bit", "stored for the backward pass"):
        assert word in ended.stderr


def test_ctrl_c_leaves_no_child(ended):
    assert ended.returncode != 3
    running = subprocess.Popen(COMMAND, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children = []
    until = time.monotonic() + 60
    while not children and time.monotonic() < until:
        time.sleep(0.05)
        with suppress(psutil.Error):
            children = [p for p in psutil.Process(running.pid).children() if "dry.worker" in p.cmdline()]
    assert children
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=30) == 130
    assert psutil.wait_procs(children, timeout=10)[1] == []


# --- counting, by hand

HEAD = "@triton.jit\ndef k(in_ptr0, in_ptr1, out_ptr0, xnumel, r0_numel, XBLOCK : tl.constexpr):\n"
ROWS = "    xnumel = 6\n    r0_numel = 100\n    x0 = xindex\n"
LOOP = "    for r0_offset in tl.range(0, r0_numel, R0_BLOCK):\n        r0_1 = r0_index\n"
LOAD = "tmp0 = tl.load(in_ptr0 + (r0_1 + 100*x0), xmask)\n"
STORE = "tl.store(out_ptr0 + (r0_1 + 100*x0), tmp0, xmask)\n"
MATRIX = Argument((6, 100), "bfloat16", 600, 2)


def counted(body, **arguments):
    """{argument's dtype and kind: bytes, of them reread}; types tell the arguments apart."""
    found = kernel_accesses(HEAD + body, {**arguments, "xnumel": 6, "r0_numel": 100})
    return {(one.dtype, one.kind): (one.bytes, one.reread_bytes) for one in found}


def test_a_persistent_reduction_reads_once():
    body = f"{ROWS}    r0_1 = r0_index\n    {LOAD}    {STORE}"
    out = Argument((6, 100), "float32", 600, 4)
    assert counted(body, in_ptr0=MATRIX, out_ptr0=out) == {
        ("bfloat16", "read"): (1200, 0),
        ("float32", "written"): (2400, 0),
    }


def test_a_looped_reduction_reads_in_each_of_its_loops():
    body = f"{ROWS}{LOOP}        {LOAD}    tmp9 = tl.sum(tmp0, 1)\n{LOOP}        {LOAD}        {STORE}"
    out = Argument((6, 100), "float32", 600, 4)
    assert counted(body, in_ptr0=MATRIX, out_ptr0=out) == {
        ("bfloat16", "read"): (2400, 1200),
        ("float32", "written"): (2400, 0),
    }


def test_one_value_for_each_row_and_one_for_all():
    load = "    tmp0 = tl.load(in_ptr0 + (x0), xmask)\n    tmp1 = tl.load(in_ptr1 + (0))\n"
    body = f"{ROWS}{load}{LOOP}        tl.store(out_ptr0 + (x0), tmp0, xmask)\n"
    column, one = Argument((6, 1), "float32", 6, 4), Argument((), "int64", 1, 8)
    out = Argument((6,), "bfloat16", 6, 2)
    assert counted(body, in_ptr0=column, in_ptr1=one, out_ptr0=out) == {
        ("float32", "read"): (24, 0),
        ("int64", "read"): (8, 0),
        ("bfloat16", "written"): (12, 0),
    }


def test_a_gather_reads_what_its_indices_reach():
    load = "    tmp0 = tl.load(in_ptr1 + (x0), xmask)\n    tmp1 = tmp0 + tmp0\n"
    load += "    tmp2 = tl.load(in_ptr0 + (tmp1 + 100*x0))\n"
    labels = Argument((6,), "int64", 6, 8)
    assert counted(ROWS + load, in_ptr0=MATRIX, in_ptr1=labels) == {
        ("bfloat16", "read"): (12, 0),
        ("int64", "read"): (48, 0),
    }


def test_taps_of_one_pass_count_up_to_the_whole_tensor_once():
    taps = "".join(f"    tmp{n} = tl.load(in_ptr0 + ({n} + 10*x0))\n" for n in range(3))
    small, large = Argument((10,), "uint8", 10, 1), Argument((60,), "uint8", 60, 1)
    assert counted(ROWS + taps, in_ptr0=small) == {("uint8", "read"): (10, 0)}
    assert counted(ROWS + taps, in_ptr0=large) == {("uint8", "read"): (18, 0)}


def test_index_variables_of_divisions_and_remainders():
    body = "    xnumel = 600\n    x0 = (xindex % 10)\n    x1 = xindex // 100\n    x2 = ((xindex // 10) % 4)\n"
    sizes = {"x0": 10, "x1": 6, "x2": 4, "x1 + x2": 24, "x0 + x1 + x2": 240}
    for index, size in sizes.items():
        load = f"    tmp0 = tl.load(in_ptr0 + ({index}))\n"
        assert counted(body + load, in_ptr0=Argument((999,), "uint8", 999, 1)) == {("uint8", "read"): (size, 0)}


def test_atomics_read_and_write_and_unknown_accesses_count_once():
    assert counted(f"{ROWS}    tl.atomic_add(out_ptr0 + (x0), tmp0)\n", out_ptr0=Argument((6,), "float32", 6, 4)) == {
        ("float32", "read"): (24, 0),
        ("float32", "written"): (24, 0),
    }
    assert counted(ROWS, in_ptr0=MATRIX) == {("bfloat16", "read"): (1200, 0)}


def test_configurations_that_spill_are_not_those_told():
    assert worst([(30, 0, 64), (42, 0, 16), (255, 700, 0)]) == Resources(3, 1, 42, 0, 64)
    assert worst([(255, 8, 1), (200, 700, 2)]) == Resources(2, 2, 255, 700, 2)


def eager_bytes(operation, *args, **kwargs):
    """The bytes that an operation of torch.ops.aten reads and writes, on the CPU."""
    found = operation_accesses(operation, args, kwargs, operation(*args, **kwargs), "cpu")
    return tuple(sum(one.bytes for one in found if one.kind == kind) for kind in ("read", "written"))


def test_eager_operations():
    aten, a, b, row = torch.ops.aten, torch.rand(8, 10), torch.rand(8, 10), torch.rand(10)
    index, values = torch.zeros(8, 1, dtype=torch.int64), torch.rand(8, 1)
    assert eager_bytes(aten.add.Tensor, a, b) == (640, 320)
    assert eager_bytes(aten.add.Tensor, a, a) == (320, 320)
    assert eager_bytes(aten.add_.Tensor, a, row.expand(8, 10)) == (320 + 40, 320)
    assert eager_bytes(aten.t.default, a) == eager_bytes(aten.empty_like.default, a) == (0, 0)
    assert eager_bytes(aten.copy_.default, a, b) == (320, 320)
    assert eager_bytes(aten.zero_.default, a) == (0, 320)
    assert eager_bytes(aten.mm.out, a.t(), b, out=torch.empty(10, 10)) == (640, 400)
    assert eager_bytes(aten._foreach_lerp_.Scalar, [a, row], [b, row], 0.5) == (640 + 40, 320 + 40)
    assert eager_bytes(aten.gather.default, a, 1, index) == (64 + 32, 32)
    assert eager_bytes(aten.scatter_add_.default, a, 1, index, values) == (64 + 32 + 32, 32)
    assert eager_bytes(aten.scatter_add.default, a, 1, index, values) == (64 + 32 + 320 + 32, 320 + 32)


def test_flop_of_products():
    a, b, bias = torch.empty(3, 4), torch.empty(4, 5), torch.empty(5)
    assert product_flop("mm", (a, b)) == product_flop("addmm", (bias, a, b)) == 2 * 3 * 4 * 5
    assert product_flop("bmm", (torch.empty(2, 3, 4), torch.empty(2, 4, 5))) == 2 * 2 * 3 * 4 * 5


def test_peak_of_live_storages():
    memory = LiveMemory()
    first, second = torch.empty(100, dtype=torch.uint8), torch.empty(513, dtype=torch.uint8)
    memory.note(first, "weights")
    memory.note(first[3:], "nothing new")
    memory.note(second, "activations", ("blocks", "forward"))
    assert memory.peak_by_role() == {"activations": 1024, "weights": 512} and memory.peak_bytes == 1536
    del second
    assert memory.bytes == 512 and [one.role for one in memory.live()] == ["weights"]
    third = torch.empty(600, dtype=torch.uint8)
    memory.note(third, "gradients")
    assert memory.peak_bytes == 1536 and memory.bytes == 1536


# --- expectations, and where it cannot run


def test_each_expectation_that_fails_is_named():
    kernel = {"kernel": "k", "part": "augmentation", "launches": 1, "spill_bytes": 0}
    crops = {"random_resized": {"max_difference": 0.0, "largest_value": 2.0}}
    good = {
        "notices": [],
        "kernels": [kernel],
        "eager": [{"operation": "_to_copy", "part": "augmentation", "calls": 1}],
        "graphs_by_step": [3, 0, 0, 0],
        "memory": {"peak_bytes": 2**30, "budget_bytes": 2**30},
        "precision": "bfloat16",
        "interpreter": {"float32": crops, "bfloat16": crops},
    }
    assert failures(good) == []
    different = {"random_resized": {"max_difference": 1e-6, "largest_value": 2.0}}
    for change, sentence in (
        ({"kernels": [kernel, kernel]}, "the augmentation is 2 kernels instead of one"),
        ({"kernels": []}, "the augmentation is 0 kernels instead of one"),
        ({"kernels": [{**kernel, "spill_bytes": 8}]}, "k (augmentation) spills 8 bytes"),
        ({"graphs_by_step": [0, 0, 2, 0]}, "step 2 compiles 2 graphs anew"),
        (
            {"memory": {"peak_bytes": 2**31, "budget_bytes": 2**30}},
            "the peak is 2.00 of the budget's, 2.000 and 1.0",
        ),
        (
            {"interpreter": {"float32": different, "bfloat16": crops}},
            "float32 random_resized differs from eager by 1e-06",
        ),
        ({"interpreter": {"bfloat16": crops}}, "the augmentation in float32 is not one kernel"),
        ({"memory": {"peak_bytes": 2**29, "budget_bytes": 2**30}}, "the peak is 0.50 of the budget's"),
        ({"notices": ["torch.compile failed (no reason)"]}, "torch.compile failed"),
    ):
        (found,) = failures({**good, **change})
        assert sentence in found
    nan = {"random_resized": {"max_difference": float("nan"), "largest_value": 2.0}}
    assert len(failures({**good, "interpreter": {"float32": crops, "bfloat16": nan}})) == 1
    assert failures({**good, "interpreter": {"float32": crops, "bfloat16": different}}) == []


@pytest.fixture
def why_not(capsys, monkeypatch, tmp_path):
    """Runs the command where it cannot run, in an empty folder; returns its line on stderr."""
    monkeypatch.setattr(sys, "argv", ["dry_run.py"])
    monkeypatch.setattr(dry_run, "Environment", lambda: Environment(tmp_path / ".venv-dry"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")

    def run():
        with pytest.raises(SystemExit) as ending:
            dry_run.main()
        assert ending.value.code == 3
        printed = capsys.readouterr()
        assert printed.out == ""
        return printed.err.splitlines()[-1]

    return run


def test_it_knows_the_torch_that_setup_installs():
    constraints = (ROOT / "scripts" / "constraints.txt").read_text().splitlines()
    assert f"torch=={environment.TORCH}" in constraints


def test_it_cannot_run_on_another_machine(why_not, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert why_not().endswith("built for x86-64 Linux: this is aarch64 Linux")


def test_it_cannot_run_with_another_torch(why_not, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "2.12.1+cpu")
    assert why_not().endswith("it replaces internals of torch 2.13.0, and this is torch 2.12.1+cpu")


def test_it_cannot_run_with_a_torch_that_has_cuda(why_not, monkeypatch, tmp_path):
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    (tmp_path / "torch" / "lib" / "libtorch_cuda.so").touch()
    monkeypatch.setattr(metadata.PathDistribution, "locate_file", lambda self, path: tmp_path / path)
    assert "needs a CPU build of torch" in why_not()


def test_it_cannot_run_without_a_compiler(why_not, monkeypatch):
    monkeypatch.setattr(environment, "check_platform", lambda: ROOT)
    monkeypatch.setattr(Environment, "_install", lambda self, lock: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert why_not().endswith("there is no C++ compiler: install g++, or name one in CXX")


def test_it_cannot_run_without_a_package_index(why_not, monkeypatch):
    monkeypatch.setattr(environment, "check_platform", lambda: ROOT)
    monkeypatch.setattr(Environment, "_compile_stub", lambda self, folder: folder)
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}.items():
        monkeypatch.setenv(name, value)
    assert "triton 3.7.1 could not be installed: ERROR: " in why_not()


def test_a_compiler_that_fails_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "STUB", tmp_path / "stub.cpp")
    (tmp_path / "stub.cpp").write_text("this is not C++\n")
    (tmp_path / "build").mkdir()
    with pytest.raises(CannotRun, match="stub of a CUDA device could not be compiled: .*error"):
        Environment(tmp_path)._compile_stub(ROOT)
    assert list((tmp_path / "build").iterdir()) == []


@pytest.mark.parametrize("case", ["B_2-Wi_64", "B_2-Wi_64,8,10,x", "B_2-Wi_64-N_batch,8,10,16", "X,8,10,16"])
def test_an_impossible_case_ends_in_one_line(case, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dry_run.py", "--case", case])
    with pytest.raises(SystemExit) as ending:
        dry_run.main()
    assert ending.value.code == 2 and "expected ARCH,RES,CLASSES,BATCH" in capsys.readouterr().err


def test_help_explains(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dry_run.py", "--help"])
    with pytest.raises(SystemExit) as ending:
        dry_run.main()
    printed = capsys.readouterr().out
    assert ending.value.code == 0
    for word in ("--card", "--case", "--interpret", ".venv-dry", "Exit codes", "nothing is measured"):
        assert word in printed
