"""Imports point one way along the data: the tree's order, read from the files themselves."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGES = (
    "sources",
    "beton",
    "transforms",
    "loader",
    "data",
    "models",
    "cost",
    "evaluation",
    "training",
    "study",
    "planner",
)  # each may import those before it, and the root modules, which stand on each other only
MAX_ROOT_MODULES = 12


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for path in sorted((ROOT / "fastmlp").rglob("*.py"))}


def imported(name: str, text: str) -> Iterator[str]:
    """Every module of the project that a file imports, inside of functions too."""
    package = name.split(".") if name == "fastmlp" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "fastmlp")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            if start.split(".")[0] == "fastmlp":
                for alias in node.names:
                    yield f"{start}.{alias.name}" if f"{start}.{alias.name}" in FILES else start


def rank(name: str) -> int:
    """-1 for a root module, else the place of its package in the order."""
    parts = name.split(".")
    if len(parts) < 2 or parts[1] not in PACKAGES:
        return -1
    return PACKAGES.index(parts[1])


def wrong_directions(edges: dict[str, set[str]]) -> list[str]:
    return [
        f"{name} imports {other}: that package comes after its own ({' < '.join(('root modules', *PACKAGES))})"
        for name, others in edges.items()
        for other in sorted(others)
        if rank(other) > rank(name)
    ]


def edges() -> dict[str, set[str]]:
    return {
        name: set(imported(name, path.read_text(encoding="utf-8"))) - {name}
        for name, path in FILES.items()
        if name != "fastmlp"  # its lazy names reach everywhere
    }


def test_imports_point_one_way():
    assert wrong_directions(edges()) == []


def test_no_cycle():
    try:
        TopologicalSorter(edges()).prepare()
    except CycleError as error:
        pytest.fail("these import each other: " + " -> ".join(error.args[1]))


def test_the_check_sees_what_it_should():
    text = "def f():\n    from ..training.trainer import Trainer\n    from .. import device\n    from . import order\n"
    found = set(imported("fastmlp.loader.gather", text))
    assert found == {"fastmlp.training.trainer", "fastmlp.device", "fastmlp.loader.order"}
    (message,) = wrong_directions({"fastmlp.loader.gather": found})
    assert message.startswith("fastmlp.loader.gather imports fastmlp.training.trainer: ")
    assert wrong_directions({"fastmlp.device": {"fastmlp.cost.flops"}})


def test_the_tree():
    assert {path.name for path in (ROOT / "fastmlp").iterdir() if (path / "__init__.py").exists()} == {*PACKAGES}
    assert len(list((ROOT / "fastmlp").glob("*.py"))) - 1 <= MAX_ROOT_MODULES
    assert all((ROOT / "fastmlp" / name / "__init__.py").read_bytes() == b"" for name in PACKAGES)


def test_scripts_are_imported_by_nothing():
    for folder in ("writers", "recipes"):
        names = {path.stem for path in (ROOT / folder).glob("*.py")}
        for path in (ROOT / "fastmlp").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    assert not {alias.name.split(".")[0] for alias in node.names} & {folder, *names}, path


def test_lazy_names_are_listed_and_typed(tmp_path):
    code = "import fastmlp; names = dir(fastmlp); assert {'Loader', 'build_model', '__version__'} <= set(names), names"
    subprocess.run([sys.executable, "-c", code], check=True)
    use = tmp_path / "use.py"
    use.write_text("import fastmlp\nreveal_type(fastmlp.Loader)\nreveal_type(fastmlp.build_model)\nfastmlp.Lodaer\n")
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", use]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert "fastmlp.loader.loader.Loader" in told and "fastmlp.models.mlp.MLP" in told
    assert 'Revealed type is "Any"' not in told and 'has no attribute "Lodaer"' in told


def test_git_blame_leaves_out_the_formatting_alone():
    revisions = [
        line for line in (ROOT / ".git-blame-ignore-revs").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert revisions
    for revision in revisions:
        found = subprocess.run(["git", "merge-base", "--is-ancestor", revision, "HEAD"], cwd=ROOT, capture_output=True)
        if found.returncode == 128 and b"not a git repository" in found.stderr:
            pytest.skip("not a clone")
        assert found.returncode == 0, found.stderr
