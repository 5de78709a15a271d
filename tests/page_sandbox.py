"""A folder that looks like a clone, in which a page's commands run as a reader runs them, one block after another."""

import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
from conftest import ROOT
from documentation import Block, missing_output
from PIL import Image

FAST_S, SLOW_S = 120, 1800  # that a block may take
NOT_COPIED = (".git", "data", "runs", "site", "build", "dist", "shared")
RUNNING = "FASTMLP_PAGE"  # set where a page's commands run, which must not run the pages

# What a reader has done before anything else. It would build another environment, and install system packages as root;
# test_setup.py tests it.
SETUP = f"""#!/usr/bin/env bash
set -euo pipefail
[[ " $* " != *" --help "* ]] || exec {ROOT}/scripts/setup.sh --help
[[ " $* " != *" --check "* ]] || .venv/bin/python scripts/self_check.py --quick
echo "  The environment is ready (.venv)"
"""

# Runs blocks in one namespace. Each comes as a line of JSON; after it, a line goes to the file that argv names.
INTERPRETER = """
import json, os, sys, traceback
number = int(sys.argv.pop())
os.set_inheritable(number, False)
status, namespace = os.fdopen(number, "w"), {"__name__": "__main__"}
for line in sys.stdin:
    code, path = json.loads(line)
    try:
        exec(compile(code, path, "exec"), namespace)
        ended = "done"
    except BaseException:
        traceback.print_exc()
        ended = "failed"
    sys.stdout.flush()
    print(ended, file=status, flush=True)
"""


class Sandbox:
    """Runs blocks; files and Python's names stay from one to the next. Ends its processes when the `with` ends."""

    def __init__(self, folder: Path):
        self.folder, self.home = folder / "fastmlp", folder / "home"
        self._log = folder / "printed"
        self._python: subprocess.Popen | None = None
        self.home.mkdir(parents=True)
        _copy_clone(self.folder)
        _draw_images(self.home / "pets", self.folder / "holiday")

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        if self._python:
            _end(self._python)
            self._status.close()

    def run(self, block: Block, timeout_s: float = 0) -> None:
        """Run a block. Raises AssertionError if it fails, takes too long, or does not print what the page says."""
        timeout_s = timeout_s or (SLOW_S if block.comment == "slow" else FAST_S)
        with self._log.open("w") as log:
            if block.language == "bash":
                problem = self._run_bash(block.code, log, timeout_s)
            else:
                problem = self._run_python(block, timeout_s)
        printed = self._log.read_text(errors="backslashreplace")
        assert not problem, f"{block.place} {problem}:\n{block.code}\nprinted\n{printed}"
        for said in block.outputs:
            missing = missing_output(said, printed)
            assert not missing, f"{block.place} does not print\n{missing}\nbut\n{printed}"

    @property
    def environment(self) -> dict[str, str]:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # matplotlib's fonts
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("FASTMLP_", "PYTEST_"))}
        return {
            **kept,
            "FASTMLP_DEVICE": "cpu",
            RUNNING: "1",
            "HOME": str(self.home),
            "XDG_CACHE_HOME": cache,
            "PATH": os.pathsep.join([f"{self.folder}/.venv/bin", *_other_paths()]),
            "PYTHONPATH": str(self.folder),
            "PYTHONUNBUFFERED": "1",
            "TQDM_DISABLE": "1",
            "PIP_DRY_RUN": "1",
            "PIP_REQUIRE_VIRTUALENV": "1",
        }

    def _start(self, command: list[str], log: int, **options: object) -> subprocess.Popen:
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True, **options
        )

    def _run_bash(self, code: str, log, timeout_s: float) -> str:
        process = self._start(["bash", "-euo", "pipefail", "-c", code], log.fileno(), stdin=subprocess.DEVNULL)
        try:
            status = process.wait(timeout_s)
            return f"ends with exit code {status}" if status else ""
        except subprocess.TimeoutExpired:
            return f"takes longer than {timeout_s} s"
        finally:
            _end(process)

    def _run_python(self, block: Block, timeout_s: float) -> str:
        if not self._python:
            reading, writing = os.pipe()
            command = [f"{self.folder}/.venv/bin/python", "-c", INTERPRETER, str(writing)]
            with self._log.open("a") as log:  # which stays its output: later blocks empty this file
                self._python = self._start(command, log.fileno(), stdin=subprocess.PIPE, pass_fds=(writing,), text=True)
            os.close(writing)
            self._status = os.fdopen(reading)
        code = "\n" * block.line + block.code  # so that errors name the page's lines
        try:
            self._python.stdin.write(json.dumps([code, str(block.page)]) + "\n")
            self._python.stdin.flush()
        except BrokenPipeError:
            return "has no interpreter: an earlier block ended it"
        if not select.select([self._status], [], [], timeout_s)[0]:
            return f"takes longer than {timeout_s} s"
        return "" if self._status.readline() == "done\n" else "fails"


def _other_paths() -> list[str]:
    """Return the folders of PATH without those of the environment that runs the tests: its pip would change it."""
    paths = os.environ["PATH"].split(os.pathsep)
    return [path for path in paths if not os.path.realpath(path).startswith(os.path.realpath(sys.prefix) + os.sep)]


def _copy_clone(folder: Path) -> None:
    """Make the folder, all of it copies: a command that clears .venv, or writes to a page, must reach nothing else.

    fastmlp's compiled code comes with it, and stays valid, since times are kept. data/ and runs/ are not there.
    """
    folder.mkdir()
    for entry in ROOT.iterdir():
        if entry.name in NOT_COPIED or (entry.is_dir() and entry.name.startswith(".")):
            continue
        if entry.is_dir():
            shutil.copytree(entry, folder / entry.name)
        elif entry.is_file() and entry.suffix != ".beton":
            shutil.copy2(entry, folder / entry.name)
    _make_environment(folder / ".venv")
    (folder / "scripts" / "setup.sh").write_text(SETUP)
    subprocess.run(["git", "init", "-q", str(folder)], check=False, capture_output=True)


def _draw_images(pets: Path, holiday: Path) -> None:
    """Write what the pages take for a reader's own images: 320 in a folder for each of two classes, and three more."""
    png = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(png, "PNG")
    names = [pets / kind / f"{n}.png" for kind in ("cat", "dog") for n in range(160)]
    for path in [*names, *(holiday / f"{n}.png" for n in range(3))]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png.getvalue())


def _make_environment(folder: Path) -> None:
    """Make an environment of its own that imports what the one that runs the tests does, and cannot change it.

    No link: scripts/setup.sh clears an environment that was made for another folder, through a link, too.
    """
    venv.EnvBuilder(symlinks=True).create(folder)
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (packages / "of_the_tests.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    torchrun = folder / "bin" / "torchrun"
    torchrun.write_text('#!/usr/bin/env bash\nexec python -m torch.distributed.run "$@"\n')
    torchrun.chmod(0o755)


def _end(process: subprocess.Popen) -> None:
    """Kill the process and all that it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    if process.stdin:
        process.stdin.close()
    process.wait()
