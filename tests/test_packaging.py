"""What a project needs that others install, cite and join: packages, citation, GitHub's files."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import fastmlp
from fastmlp.training import run_log

MADE_BY_SETUPTOOLS = ("PKG-INFO", "setup.cfg", "fastmlp.egg-info/")
BUILD = "import sys; from setuptools import build_meta as b; to = sys.argv[1]; b.build_wheel(to); b.build_sdist(to)"


def git(*arguments: str, folder: Path) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def tracked() -> set[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    return {name for name in git("ls-files", folder=ROOT).splitlines() if (ROOT / name).is_file()}


def test_packages_hold_what_they_should_and_no_more(tracked, tmp_path):
    """The wheel: the library with the settings of data sets, and its types. The source archive: the repository."""
    for name in [*tracked, "fastmlp/__pycache__/left.pyc", "tests/data/left.beton"]:
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / (name if name in tracked else "LICENSE"), tmp_path / "copy" / name)
    out = tmp_path / "dist"
    command = [sys.executable, "-W", "ignore", "-c", BUILD, out]
    subprocess.run(command, cwd=tmp_path / "copy", check=True, capture_output=True)

    version = f"fastmlp-{fastmlp.__version__}"
    with zipfile.ZipFile(out / f"{version}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(f"{version}.dist-info/METADATA").decode()
    installed = {name for name in names if not name.startswith(f"{version}.dist-info/")}
    assert installed == {name for name in tracked if name.startswith("fastmlp/")}
    assert {"fastmlp/py.typed", "fastmlp/training/dataset_settings/fashion_mnist.yaml"} <= installed
    assert f"{version}.dist-info/licenses/LICENSE" in names
    assert f"\nVersion: {fastmlp.__version__}\n" in metadata and "\nLicense" in metadata

    with tarfile.open(out / f"{version}.tar.gz") as archive:
        files = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert {name for name in files if not name.startswith(MADE_BY_SETUPTOOLS)} == tracked, "see MANIFEST.in"


def test_only_a_clone_has_a_commit(tmp_path, monkeypatch):
    """An installed library may lie in an environment within another repository."""
    git("init", "-q", folder=tmp_path)
    git("-c", "user.name=x", "-c", "user.email=x", "commit", "-q", "--allow-empty", "-m", "x", folder=tmp_path)
    for folder, known in ((tmp_path / ".venv/lib", False), (tmp_path, True)):
        module = folder / "fastmlp/training/run_log.py"
        module.parent.mkdir(parents=True)
        monkeypatch.setattr(run_log, "__file__", str(module))
        assert (run_log._commit() != "unknown") is known


def test_the_citation_and_the_changelog_are_of_this_version():
    """Required keys: https://github.com/citation-file-format/citation-file-format/blob/1.2.0/schema-guide.md."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"authors", "cff-version", "message", "title"} <= set(citation) and citation["cff-version"] == "1.2.0"
    assert citation["version"] == fastmlp.__version__ and citation["license"] == "Apache-2.0"
    (paper,) = citation["references"]
    assert paper["type"] == "conference-paper" and paper["title"] == "Scaling MLPs: A Tale of Inductive Bias"
    assert [author["family-names"] for author in paper["authors"]] == ["Bachmann", "Anagnostidis", "Hofmann"]
    newest = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[1]
    assert newest == f"{fastmlp.__version__} ({citation['date-released']})"


def test_github_runs_the_tests_on_each_python():
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    (job,) = workflow["jobs"].values()
    pythons = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.py").read_text())
    assert job["strategy"]["matrix"]["python"] == pythons and job["runs-on"] == "ubuntu-latest"
    (run,) = [step for step in job["steps"] if "run" in step]
    assert run["run"] == "scripts/test.sh" and run["env"]["PYTHON"] == "python${{ matrix.python }}"
    actions = [step["uses"] for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", action) for action in actions), actions
    assert workflow[True].keys() == {"push", "pull_request"}  # YAML 1.1 reads `on` so


def test_forms_for_issues_ask_what_is_needed():
    forms = {path.stem: path.read_text() for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")}
    for name, text in forms.items():
        form = yaml.safe_load(text)
        if name == "config":
            continue
        assert form["name"] and form["description"]
        ids = [field["id"] for field in form["body"]]
        assert len(set(ids)) == len(ids) and all(field["attributes"]["label"] for field in form["body"])
        assert all(field["type"] in ("input", "textarea", "dropdown", "checkboxes") for field in form["body"])
        for script in re.findall(r"(?:scripts|benchmarks|recipes)/\w+\.py", text):
            assert (ROOT / script).is_file(), script
    assert "FASTMLP_TRACEBACK=1" in forms["bug_report"] and "scripts/self_check.py" in forms["bug_report"]
    assert "benchmarks/loader.py" in forms["slow_loader"] and "feature_request" in forms
