"""The environment of the dry run: .venv-dry with Triton beside the project's own packages, and the compiled stub."""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STUB = Path(__file__).with_name("stub.cpp")
TORCH, TRITON = "2.13.0", "3.7.1"  # whose internals the dry run replaces


class CannotRun(Exception):
    """Why the dry run cannot run here; the command ends in exit code 3."""


def site_packages() -> Path:
    """Return the project's packages; links followed, so that checkouts that share an environment agree."""
    return Path(sysconfig.get_path("purelib")).resolve()


def check_platform() -> Path:
    """Return torch's folder. Raises CannotRun where Triton's or torch's build is another than the one expected."""
    system = f"{platform.machine()} {platform.system()}"
    if system != "x86_64 Linux":
        raise CannotRun(f"Triton's compiler is needed, which is built for x86-64 Linux: this is {system}")
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        raise CannotRun("torch is not installed: scripts/setup.sh") from None
    if version.split("+")[0] != TORCH:
        raise CannotRun(f"it replaces internals of torch {TORCH}, and this is torch {version}")
    folder = Path(metadata.distribution("torch").locate_file("torch")).resolve()  # type: ignore[arg-type]
    if (folder / "lib" / "libtorch_cuda.so").exists():
        raise CannotRun(f"it needs a CPU build of torch, and torch {version} has CUDA: take benchmarks/train_step.py")
    return folder


class Environment:
    """.venv-dry: an interpreter that finds Triton there, and everything else in the project's environment."""

    def __init__(self, folder: Path = ROOT / ".venv-dry"):
        self.folder = folder.resolve()
        self.build, self.python = self.folder / "build", self.folder / "bin" / "python"
        self.made: dict[str, float] = {}  # bytes and seconds, if it was made now

    def prepare(self) -> Path:
        """Make what is missing; return the compiled stub. Raises CannotRun."""
        torch_folder = check_platform()
        try:
            self.build.mkdir(parents=True, exist_ok=True)
            with self._locked() as lock, ThreadPoolExecutor() as pool:
                stub = pool.submit(self._compile_stub, torch_folder)
                self._install(lock)
                return stub.result()
        except OSError as error:
            raise CannotRun(f"{error.filename or self.folder}: {error.strerror or error}") from None

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Yield the lock's file descriptor; it is free when all processes that have it are gone."""
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock.fileno()

    def _install(self, lock: int) -> None:
        stamp, wanted = self.folder / "stamp", f"{sys.version}\n{site_packages()}\n{self.folder}\ntriton=={TRITON}\n"
        if stamp.exists() and stamp.read_text() == wanted:
            return
        stamp.unlink(missing_ok=True)
        started = time.monotonic()
        print(f"installing triton {TRITON} into {self.folder}", file=sys.stderr)
        _run([sys.executable, "-m", "venv", "--clear", "--without-pip", self.folder / "new"], "python -m venv failed")
        pip: list[str | Path] = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            self.folder / "new/bin/python",
            "install",
            "--no-compile",
        ]
        # With the lock: pip goes on for a while if this process is killed.
        _run([*pip, "--no-deps", "-q", f"triton=={TRITON}"], f"triton {TRITON} could not be installed", lock)
        for part in ("bin", "lib", "pyvenv.cfg"):
            old = self.folder / part
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
            (self.folder / "new" / part).rename(old)
        shutil.rmtree(self.folder / "new")
        (packages,) = self.folder.glob("lib/python*/site-packages")
        (packages / "project.pth").write_text(f"import site; site.addsitedir({str(site_packages())!r})\n")
        stamp.write_text(wanted)
        size = sum(path.lstat().st_size for path in self.folder.rglob("*"))
        self.made = {"bytes": size, "seconds": time.monotonic() - started}
        print(f"{size / 2**20:,.0f} MiB in {self.made['seconds']:.0f} s", file=sys.stderr)

    def _compile_stub(self, torch_folder: Path) -> Path:
        compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
        key = hashlib.sha256(STUB.read_bytes() + str(torch_folder).encode()).hexdigest()[:12]
        library = self.build / f"stub-{key}.so"
        if library.exists():
            return library
        if not compiler:
            raise CannotRun("there is no C++ compiler: install g++, or name one in CXX")
        include = torch_folder / "include"
        options = ["-O0", "-std=c++20", "-shared", "-fPIC", "-w", f"-I{include}"]
        unfinished = library.with_suffix(f".{os.getpid()}")
        _run([compiler, *options, STUB, "-o", unfinished], "the stub of a CUDA device could not be compiled")
        unfinished.rename(library)
        return library

    def run(self, module: str, *arguments: str, scratch: str, interpret: bool = False) -> dict[str, Any]:
        """Run one of our modules in the environment; return the JSON object that it prints as its last line.

        scratch: a folder for what Inductor writes.
        It and what it starts are gone when this returns, or raises for Ctrl-C. Raises CannotRun if it fails.
        """
        variables = {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}",
            "TRITON_CACHE_DIR": str(self.build / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": scratch,
            "PYTHONPYCACHEPREFIX": str(self.build / "pycache"),  # 15 s of imports take 3 s with it
            "PYTHONDONTWRITEBYTECODE": "",
            "FASTMLP_DEVICE": "",
        }
        if interpret:
            variables["TRITON_INTERPRET"] = "1"
        child = subprocess.Popen(
            [self.python, "-W", "ignore", "-m", module, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
            start_new_session=True,
        )
        try:
            printed, _ = child.communicate()
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)  # its compilers, too
            child.wait()
            raise
        if child.returncode:
            raise CannotRun(f"{module} ended with exit code {child.returncode}; its error is above")
        return json.loads(printed.splitlines()[-1])


def _run(command: Sequence[str | Path], failure: str, *inherited: int) -> None:
    """Run a command, which inherits these files; raise CannotRun with the failure and the error's line if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, pass_fds=inherited)
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if "error" in line.lower()]
        lines = lines or (done.stderr + done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise CannotRun(f"{failure}: {lines[0].strip()}")
