"""LION and Muon against their formulas and torch, groups, and learning rates at their corners."""

import io
import math
import shutil

import numpy as np
import pytest
import torch

from fastmlp.models.weights import build_model
from fastmlp.training import lion
from fastmlp.training.lion import Lion
from fastmlp.training.muon import Muon, orthogonalize
from fastmlp.training.optimizer import build_optimizer, parameter_groups, set_learning_rate
from fastmlp.training.schedule import learning_rate

COMPILED = pytest.param(True, marks=pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler"))


def tiny_model(arch="B_2-Wi_8"):
    torch.manual_seed(0)
    return build_model(arch, res=2, num_classes=5)


def random_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def trajectory(make, steps):
    """Parameters of the tiny model after steps of the optimiser that make(model) builds, on the same gradients."""
    model = tiny_model()
    optimizer = make(model)
    for step in range(steps):
        random_gradients(model, step)
        optimizer.step()
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


@pytest.mark.parametrize("compiled", [False, COMPILED])
def test_lion_equals_the_paper_s_algorithm_at_any_rate(compiled, monkeypatch):
    monkeypatch.setattr(lion, "BLOCK", 7)  # several blocks, a ragged last one
    monkeypatch.setattr(lion, "SMALL", 10)
    rng = np.random.default_rng(0)
    shapes = [(3, 4), (5, 5), (2,)]
    start = [rng.normal(size=shape) for shape in shapes]
    params = [torch.nn.Parameter(torch.from_numpy(p).float()) for p in start]
    optimizer = Lion(params, betas=(0.9, 0.99), weight_decay=0.5, compile=compiled)
    p, m = [a.copy() for a in start], [np.zeros_like(a) for a in start]
    for lr in (0.1, 0.2, 0.05, 0.0, 0.3):
        optimizer.param_groups[0]["lr"] = lr
        for i, param in enumerate(params):
            g = rng.normal(size=shapes[i])
            param.grad = torch.from_numpy(g).float()
            p[i] = p[i] - lr * (np.sign(0.9 * m[i] + 0.1 * g) + 0.5 * p[i])
            m[i] = 0.99 * m[i] + 0.01 * g
        with torch._dynamo.config.patch(error_on_recompile=True):  # one kernel for all rates and sizes
            optimizer.step()
    for param, expected, momentum in zip(params, p, m, strict=True):
        np.testing.assert_allclose(param.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(optimizer.state[param]["momentum"].numpy(), momentum, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.3, 0.5), (0.0, 1.0)])
def test_lion_in_one_pass_is_torch_s_operations_bit_for_bit(betas, monkeypatch):
    shapes = [(300, 257), (lion.TILE,), (2 * lion.TILE + 3,), (5,), (0,), (), (64, 33)]

    def updated(together):
        generator = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        params[-1] = torch.nn.Parameter(params[-1].detach().T)
        optimizer = Lion(params, betas=betas, weight_decay=0.1)
        if not together:
            optimizer._fused = lion._lion  # for no parameter: those of fewer elements go block by block
        for lr in (0.1, 0.003, 0.0):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator) * 10.0 ** torch.randint(-9, 3, p.shape)
                p.grad.view(-1)[:2] = (
                    torch.tensor([0.0, float("nan")])[: p.numel()] if p.numel() > 5 else p.grad.view(-1)[:2]
                )
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
        return [p.detach() for p in params], [optimizer.state[p]["momentum"] for p in params]

    torch.manual_seed(0)
    found = updated(True)
    monkeypatch.setattr(lion, "SMALL", 2**40)
    torch.manual_seed(0)
    for ours, theirs in zip(found, updated(False), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert np.array_equal(one.numpy(), other.numpy(), equal_nan=True)


def test_lion_refuses_the_state_of_another_model():
    one, other = (Lion([torch.nn.Parameter(torch.ones(size))]) for size in (10, 100_000))
    for optimizer in (one, other):
        (p,) = optimizer.param_groups[0]["params"]
        p.grad = torch.ones_like(p)
    one.step()
    other.load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match=r"momentum of shape \(10,\) does not fit a parameter of shape \(100000,\)"):
        other.step()


@pytest.mark.parametrize("setting", ["float64", "meta"])
def test_lion_does_not_depend_on_torch_s_defaults(setting):
    def updated():
        p = torch.nn.Parameter(torch.full((5,), 1.0, dtype=torch.float32, device="cpu"))
        p.grad = torch.ones_like(p)
        Lion([p], lr=0.1, weight_decay=0.1).step()
        return p.detach()

    expected = updated()
    try:
        if setting == "float64":
            torch.set_default_dtype(torch.float64)
        else:
            torch.set_default_device("meta")
        found = updated()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(found, expected)


def test_autograd_notices_lion_s_update():
    p = torch.nn.Parameter(torch.ones(5))
    p.grad = torch.ones(5)
    loss = (p * p).sum()
    Lion([p], lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_lion_leaves_alone_what_has_no_gradient_and_no_momentum():
    still, absent = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    still.grad = torch.tensor([0.0, -0.0, 1.0])
    Lion([still, absent], lr=0.5).step()
    assert still.tolist() == [1.0, 1.0, 0.5] and absent.tolist() == [1.0] * 3


LAYOUTS = {  # of the same elements, (6, 5)
    "contiguous": lambda matrix: matrix.clone(),
    "transposed": lambda matrix: matrix.T.contiguous().T,
    "every other column": lambda matrix: matrix.repeat_interleave(2, 1)[:, ::2],
}
OF_ONE = {
    "lion": lambda p, compiled: Lion([p], lr=0.1, weight_decay=0.1, compile=compiled),
    "muon's AdamW": lambda p, _: Muon([{"params": [p], "kind": "rest"}], lr=0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("gradient", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("name", "compiled"),
    [("lion", False), pytest.param("lion", *COMPILED.values, marks=COMPILED.marks), ("muon's AdamW", False)],
)
def test_layouts_change_no_bit(name, compiled, layout, gradient, monkeypatch):
    monkeypatch.setattr(lion, "BLOCK", 7)
    monkeypatch.setattr(lion, "SMALL", 10)
    generator = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(4, 6, 5, generator=generator)

    def train(layout, gradient):
        p = torch.nn.Parameter(LAYOUTS[layout](start))
        strides, optimizer = p.stride(), OF_ONE[name](p, compiled)
        for g in gradients:
            p.grad = LAYOUTS[gradient](g)
            optimizer.step()
        assert p.stride() == strides
        return [p.detach(), *(value for value in optimizer.state[p].values() if value.ndim)]

    moved, expected = train(layout, gradient), train("contiguous", "contiguous")
    assert all(torch.equal(*pair) for pair in zip(moved, expected, strict=True))
    assert all(state.is_contiguous() for state in moved[1:])  # a checkpoint does not depend on the layout
    assert not torch.equal(moved[0], start)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_torch_s_optimizers_read_gradients_of_any_layout_right(name, layout):
    def train(layout):
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 6)
        model.weight = torch.nn.Parameter(LAYOUTS[layout](model.weight.detach()))
        optimizer = build_optimizer(name, model, 0.1, 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 5)).square().sum().backward()
            optimizer.step()
        return model.weight

    torch.testing.assert_close(train(layout), train("contiguous"))


@pytest.mark.parametrize("make", OF_ONE.values(), ids=OF_ONE)
def test_parameters_without_dimensions_or_elements(make):
    number, nothing = (torch.nn.Parameter(torch.ones(shape)) for shape in ((), (0, 3)))
    for p in (number, nothing):
        p.grad = torch.ones_like(p)
        make(p, False).step()
    assert number.item() == pytest.approx(1 - 0.1 * 0.1 - 0.1) and nothing.shape == (0, 3)


@pytest.mark.parametrize("kind", ["hidden", "rest"])
@pytest.mark.parametrize("kind_of_optimizer", [Lion, Muon])
def test_sparse_gradients_are_refused(kind_of_optimizer, kind):
    p = torch.nn.Parameter(torch.ones(3, 4))
    p.grad = torch.ones(3, 4).to_sparse()
    with pytest.raises(ValueError, match="takes dense gradients, got a sparse one"):
        kind_of_optimizer([{"params": [p], "kind": kind}]).step()
    assert p.eq(1).all()


def lion_of_many_layouts():
    """A compiled LION of two groups, with its parameters: three layouts, vectors, one of them too small to compile."""
    torch.manual_seed(0)
    matrices = [torch.nn.Parameter(LAYOUTS[name](torch.randn(6, 5))) for name in LAYOUTS]
    params = [*matrices, torch.nn.Parameter(torch.randn(50)), torch.nn.Parameter(torch.randn(3))]
    groups = [{"params": params[:2], "weight_decay": 0.1}, {"params": params[2:], "lr": 0.2}]
    return Lion(groups, lr=0.1, compile=True), params


@COMPILED.marks[0]
def test_after_the_warm_up_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(lion, "SMALL", 10)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    optimizer, params = lion_of_many_layouts()
    before = [p.detach().clone() for p in params]
    optimizer.warm_up()
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled and not optimizer.state and all(map(torch.equal, params, before))
    for lr in (0.1, 0.05):
        optimizer.zero_grad()
        sum(p.square().sum() for p in params).backward()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
    assert not any(map(torch.equal, params, before))


def test_a_warm_up_that_fails_warns_and_the_update_goes_on(monkeypatch):
    def fail(*_):
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(lion, "SMALL", 10)
    updated = []
    for compiles in (True, False):
        optimizer, params = lion_of_many_layouts()
        optimizer._fused = fail if compiles else None
        if compiles:
            with pytest.warns(UserWarning, match=r"failed \(no compiler\): LION updates the weights block by block"):
                optimizer.warm_up()
        else:
            optimizer.warm_up()  # does nothing
        sum(p.square().sum() for p in params).backward()
        optimizer.step()
        updated.append(params)
    assert all(map(torch.equal, *updated))


def test_lion_does_not_depend_on_the_number_of_threads():
    def run(threads):
        torch.set_num_threads(threads)
        generator = torch.Generator().manual_seed(0)
        p = torch.nn.Parameter(torch.randn(lion.BLOCK + 54321, generator=generator))
        optimizer = Lion([p], lr=0.01, weight_decay=0.1)
        for _ in range(3):
            p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
        return p.detach(), optimizer.state[p]["momentum"]

    threads = torch.get_num_threads()
    try:
        one, three = run(1), run(3)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one[0], three[0]) and torch.equal(one[1], three[1])


def newton_schulz(matrix):
    """The author's iteration in float64: whole matrices, no transposition."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * (x @ x.T @ x) + 2.0315 * (x @ x.T @ x @ x.T @ x)
    return x


@pytest.mark.parametrize("shape", [(32, 32), (16, 64), (64, 16), (1, 5)])
def test_orthogonalize_keeps_the_singular_vectors_and_levels_the_singular_values(shape):
    matrix = np.random.default_rng(0).normal(size=shape)
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    s = np.linspace(1, 0.05, len(s))  # none of them tiny
    matrix = u @ np.diag(s) @ vt
    found = orthogonalize(torch.from_numpy(1000 * matrix).float(), torch.float32).numpy()
    assert found.shape == shape
    levelled = u.T @ found @ vt.T
    np.testing.assert_allclose(levelled, np.diag(np.diag(levelled)), atol=1e-4)  # nothing off the diagonal
    assert 0.65 < np.diag(levelled).min() and np.diag(levelled).max() < 1.22
    np.testing.assert_allclose(found, newton_schulz(matrix), atol=1e-4)


def test_orthogonalize_survives_zeros():
    assert torch.equal(orthogonalize(torch.zeros(3, 4), torch.float32), torch.zeros(3, 4))


def test_muon_moves_hidden_matrices_by_its_formula_and_the_rest_as_adamw_does():
    steps, lr, decay = 4, 0.02, 0.3
    ours = trajectory(lambda model: build_optimizer("muon", model, lr, decay), steps)
    adamw = trajectory(lambda model: build_optimizer("adamw", model, lr, decay), steps)
    hidden = [name for name in ours if name.startswith(("blocks.", "linear_in.")) and name.endswith(".weight")]
    assert len(hidden) == 5
    model = tiny_model()
    p = {name: q.detach().double().numpy() for name, q in model.named_parameters() if name in hidden}
    m = {name: np.zeros_like(q) for name, q in p.items()}
    for step in range(steps):
        random_gradients(model, step)
        for name in hidden:
            g = model.get_parameter(name).grad.double().numpy()
            m[name] = 0.95 * m[name] + 0.05 * g
            update = newton_schulz(0.05 * g + 0.95 * m[name])
            p[name] = p[name] - lr * (0.2 * math.sqrt(max(g.shape)) * update + decay * p[name])
    for name in ours:
        if name in hidden:
            np.testing.assert_allclose(ours[name], p[name], atol=1e-5)
        else:
            np.testing.assert_array_equal(ours[name], adamw[name])


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_agrees_with_torch_s_to_its_bfloat16():
    model, ours = (torch.nn.Parameter(torch.zeros(16, 48)) for _ in range(2))
    reference = torch.optim.Muon([model], lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    optimizer = Muon([{"params": [ours], "kind": "hidden"}], lr=0.1, weight_decay=0.2)
    for _ in range(3):
        model.grad = torch.randn(16, 48, generator=torch.Generator().manual_seed(1))
        ours.grad = model.grad.clone()
        reference.step()
        optimizer.step()
    assert ((ours - model).norm() / model.norm()).item() < 0.02


def test_muon_s_update_has_the_size_of_adamw_s():
    # Moonlight: AdamW's updates have a root mean square of 0.2 to 0.4
    for shape in ((64, 256), (256, 64), (128, 128)):
        p = torch.nn.Parameter(torch.zeros(shape))
        p.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        Muon([{"params": [p], "kind": "hidden"}], lr=1.0).step()
        assert 0.15 < p.detach().square().mean().sqrt() < 0.25


@pytest.mark.parametrize("name", ["lion", "adamw", "sgd", "muon"])
def test_a_saved_optimizer_goes_on_bit_for_bit(name):
    def start():
        model = tiny_model()
        return model, build_optimizer(name, model, 0.01, 0.1, head_lr_scale=2.0)

    def train(model, optimizer, steps):
        for step in steps:
            random_gradients(model, step)
            optimizer.step()

    model, optimizer = start()
    train(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, range(3, 6))
    other, again = start()
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    train(other, again, range(3, 6))
    for (key, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), key


@pytest.mark.parametrize("name", ["lion", "adamw", "sgd"])
def test_weight_decay_spares_biases_and_norms(name):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    build_optimizer(name, model, lr=0.1, weight_decay=0.5).step()
    for n, p in model.named_parameters():
        factor = 0.95 if n == "0.weight" else 1.0
        torch.testing.assert_close(p.detach(), factor * before[n])


@pytest.mark.parametrize("name", ["lion", "adamw", "sgd", "muon"])
def test_decay_and_rates_of_head_and_body(name):
    model = tiny_model()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    options = dict(decay_norms_and_biases=True, head_lr_scale=10.0, backbone_lr_scale=0.5)
    optimizer = build_optimizer(name, model, lr=0.3, weight_decay=0.5, **options)
    set_learning_rate(optimizer, 0.02)
    optimizer.step()
    for n, p in model.named_parameters():
        factor = 1 - 0.5 * (0.2 if n.startswith("linear_out") else 0.01)
        torch.testing.assert_close(p.detach(), factor * before[n], msg=n)


def test_the_first_rate_is_scaled_too():
    groups = build_optimizer("sgd", tiny_model(), lr=0.1, weight_decay=0.0, head_lr_scale=10.0).param_groups
    assert sorted({group["lr"] for group in groups}) == [0.1, 1.0]


def test_groups_are_few_and_hold_each_parameter_once():
    def sizes(arch="B_2-Wi_8", decay=0.1, **options):
        model = tiny_model(arch)
        groups = parameter_groups(model, decay, **options)
        held = [id(p) for group in groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in model.parameters())
        return {(g["kind"], g["weight_decay"], g["lr_scale"]): len(g["params"]) for g in groups}

    # B: 2 embedding, 2 head, in each of 2 blocks 2 matrices, 2 biases and 2 of the norm
    assert sizes() == {("hidden", 0.1, 1): 5, ("rest", 0.1, 1): 1, ("rest", 0, 1): 10}
    assert sizes("S_2-Wi_8") == {("hidden", 0.1, 1): 3, ("rest", 0.1, 1): 1, ("rest", 0, 1): 8}
    assert (
        sizes(decay=0.0) == sizes(decay=0.0, decay_norms_and_biases=True) == {("hidden", 0, 1): 5, ("rest", 0, 1): 11}
    )
    assert sizes(decay_norms_and_biases=True) == {("hidden", 0.1, 1): 5, ("rest", 0.1, 1): 11}
    assert sizes(decay=0.0, head_lr_scale=3) == {("hidden", 0, 1): 5, ("rest", 0, 1): 9, ("rest", 0, 3): 2}


def test_frozen_parameters_are_left_out():
    model = tiny_model()
    model.requires_grad_(False)
    model.linear_out.requires_grad_(True)
    (group,) = parameter_groups(model, 0.0)
    assert [id(p) for p in group["params"]] == [id(p) for p in model.linear_out.parameters()]
    with pytest.raises(ValueError, match="but BMLP has none to train"):
        build_optimizer("muon", model, 0.1, 0.0)


def test_a_wrapped_model_does_not_lose_its_head_silently():
    wrapped = torch.nn.Sequential(tiny_model())
    with pytest.raises(ValueError, match="Sequential has no linear_out"):
        build_optimizer("sgd", wrapped, 0.1, 0.0, head_lr_scale=10.0)
    with pytest.raises(ValueError, match="Sequential has none to train"):
        build_optimizer("muon", wrapped, 0.1, 0.0)


def test_muon_refuses_vectors():
    with pytest.raises(ValueError, match="must be matrices"):
        Muon([{"params": [torch.nn.Parameter(torch.zeros(3))], "kind": "hidden"}])


def test_the_paper_s_momenta():
    lion, adamw = (0.9, 0.99), (0.9, 0.999)
    for name, key, value in (("lion", "betas", lion), ("sgd", "momentum", 0.9), ("adamw", "betas", adamw)):
        assert build_optimizer(name, torch.nn.Linear(1, 1), 0.1, 0.0).param_groups[0][key] == value
    assert build_optimizer("muon", tiny_model(), 0.1, 0.0).param_groups[0]["betas"] == adamw


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown optimiser 'adam'"):
        build_optimizer("adam", torch.nn.Linear(1, 1), 0.1, 0.0)
    with pytest.raises(ValueError, match="unknown schedule"):
        learning_rate(0, 10, 1.0, "step", warmup_steps=5)


def test_schedules():
    assert [learning_rate(s, 8, 1.0, "constant", 4) for s in range(8)] == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert [learning_rate(s, 6, 2.0, "linear", 2) for s in range(7)] == [1, 2, 2, 1.5, 1, 0.5, 0]
    cosine = [learning_rate(s, 10, 3.0, "cosine") for s in range(11)]
    np.testing.assert_allclose(cosine, [1.5 * (1 + math.cos(math.pi * s / 10)) for s in range(11)])
    assert cosine[0] == 3.0 and abs(cosine[10]) < 1e-12


def test_cooldowns():
    def rates(total, cooldown, warmup=2):
        return [learning_rate(s, total, 4.0, "constant", warmup, cooldown) for s in range(total + 1)]

    assert rates(10, 4) == [2, 4, 4, 4, 4, 4, 4, 3, 2, 1, 0]
    assert rates(8, 4)[:5] == rates(10, 4)[:5] == rates(100, 4)[:5]  # they branch off one run
    np.testing.assert_allclose(rates(9, 7), [learning_rate(s, 9, 4.0, "linear", 2) for s in range(10)], rtol=1e-12)
    assert rates(5, 0, 0) == [4.0] * 6
    with pytest.raises(ValueError, match="a cool-down ends a constant schedule, but cosine"):
        learning_rate(0, 10, 1.0, "cosine", cooldown_steps=2)
    with pytest.raises(ValueError, match="a cool-down of 9 steps does not fit into 10 steps, of which 2 are warm-up"):
        rates(10, 9)
