"""scripts/setup.sh and self_check.py on machines with and without a GPU, or without root.

nvidia-smi, pip, torch, apt and its packages are stand-ins.
"""

import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

A100 = "535.104.05, NVIDIA A100-SXM4-40GB"
TOOLS = (
    "bash cat cksum dirname env flock grep mkdir mktemp paste readlink rm sed sleep sort tail timeout tr uname".split()
)

# Runs what setup.sh asks of Python for real, but for what takes long or needs a network.
PYTHON = """#!/bin/bash
case "$*" in
  *"-m pip install"*" torch=="*)
    printf '%s\\n' "$*" >>pip.log
    for word; do [[ $word != torch==* ]] || echo "${word#*==}" >torch-version; done ;;
  *"-m pip"*) printf '%s\\n' "$*" >>pip.log ;;
  *"self_check.py --gpu") shift; PYTHONPATH=stubs exec REAL "$@" ;;
  *"self_check.py --"*) ;;
  *self_check.py*) echo "all is well" ;;
  *importlib.metadata*) cat torch-version ;;
  *urlopen*) exit 1 ;;
  "-I - "*) cat >/dev/null ;;
  *"print(sys.executable)") echo "$0" ;;
  *"-m venv "*) mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  *ensurepip* | *Python.h*) ;;
  *) exec REAL "$@" ;;
esac
"""

# A torch that finds a CUDA device if the file cuda-runs holds its CUDA version.
TORCH = """
import pathlib, types, warnings
__version__ = pathlib.Path("torch-version").read_text().strip()
build = __version__.partition("+")[2] or "cu130"
version = types.SimpleNamespace(cuda=None if build == "cpu" else f"{build[2:4]}.{build[4]}")

class cuda:
    def is_available():
        if version.cuda in pathlib.Path("cuda-runs").read_text().split():
            return True
        if version.cuda:
            warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old (found version 12020).")
        return False
    get_device_capability = lambda device: (8, 0)
    get_arch_list = lambda: ["sm_50", "sm_80", "sm_90"]
"""


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


class Machine:
    """A copy of the project in a folder, with a finished .venv that has torch's CPU build, and a PATH without more."""

    def __init__(self, folder: Path):
        self.folder, self.bin = folder, folder / "bin"
        for name in ("scripts", "bin", ".venv/bin", "stubs/torch"):
            (folder / name).mkdir(parents=True)
        for name in (
            "setup.py",
            "scripts/setup.sh",
            "scripts/system_packages.sh",
            "scripts/self_check.py",
            "scripts/constraints.txt",
        ):
            shutil.copy(ROOT / name, folder / name)
        for name in TOOLS:
            (self.bin / name).symlink_to(shutil.which(name))
        for name in ("g++", "pkg-config"):
            executable(self.bin / name, "#!/bin/bash\n")
        executable(folder / ".venv/bin/python", PYTHON.replace("REAL", sys.executable))
        (folder / ".venv/made-for").write_text(f"{sys.version_info[0]}.{sys.version_info[1]} {folder}")
        (folder / "stubs/torch/__init__.py").write_text(TORCH)
        self.write("torch-version", "2.13.0+cpu")
        self.write("cuda-runs", "")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def nvidia_smi(self, text: str, code: int = 0) -> None:
        executable(self.bin / "nvidia-smi", f"#!/bin/bash\ncat <<'END'\n{text}\nEND\nexit {code}\n")

    def run(self, command: str = "scripts/setup.sh", code: int = 0) -> tuple[str, list[str]]:
        """Return what a command printed, and the pip calls that it made. It must end with that exit code."""
        self.write("pip.log", "")
        environment = {"PATH": str(self.bin), "HOME": str(self.folder)}
        ended = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert ended.returncode == code, ended.stdout
        return ended.stdout, (self.folder / "pip.log").read_text().splitlines()


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_a_bare_machine_hears_nothing_of_gpus(machine):
    out, pip = machine.run()
    assert "torch (2.13.0, CPU build)" in out and out.splitlines()[-1].startswith("Ready after") and pip
    assert "GPU" not in out and "nvidia-smi" not in out
    assert machine.run() == ("  The environment is ready (.venv with export,plots)\n", [])


def test_a_driver_too_old_for_torch_ends_in_the_command_that_helps(machine):
    machine.nvidia_smi(f"{A100}\n{A100}")
    machine.write("torch-version", "2.13.0")
    machine.write("cuda-runs", "12.6")
    warning = [
        "WARNING: torch cannot use the GPU (NVIDIA A100-SXM4-40GB, driver 535.104.05), "
        "so models would train on the CPU.",
        "  torch 2.13.0 says: CUDA initialization: The NVIDIA driver on your system is too old (found version 12020).",
        '  This installs one that can: FASTMLP_TORCH="torch==2.13.0+cu126 --extra-index-url '
        'https://download.pytorch.org/whl/cu126" scripts/setup.sh',
    ]
    for command in ("scripts/setup.sh", "scripts/setup.sh", "scripts/setup.sh --check"):
        out, _ = machine.run(command)
        assert out.splitlines()[-3:] == warning
    out, pip = machine.run(warning[-1].partition(": ")[2])
    assert any("torch==2.13.0+cu126 --extra-index-url https://download.pytorch.org/whl/cu126" in call for call in pip)
    assert "WARNING" not in out
    assert machine.run() == ("  The environment is ready (.venv with export,plots)\n", [])


def test_a_cpu_build_on_a_machine_with_a_gpu(machine):
    machine.nvidia_smi(A100)
    (machine.folder / ".venv/bin/python").write_text(
        PYTHON.replace("REAL", sys.executable).replace('echo "${word#*==}"', 'echo "2.13.0+cpu"')
    )  # an index that has only the CPU build
    out, pip = machine.run()
    assert any("uninstall -y torch" in call for call in pip)  # it tried
    assert "torch 2.13.0+cpu is built without CUDA\n" in out and "torch==2.13.0+cu126 --extra" in out.splitlines()[-1]
    out, _ = machine.run(
        'FASTMLP_TORCH="torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu" scripts/setup.sh'
    )
    assert "WARNING" not in out  # it was asked for


def test_a_gpu_that_comes_or_goes_is_noticed(machine):
    machine.write("cuda-runs", "13.0")
    assert "CPU build" in machine.run()[0]
    machine.nvidia_smi(A100.replace("535", "580"))
    out, pip = machine.run()
    assert "CUDA build" in out and any("install" in call and "torch==2.13.0" in call for call in pip)
    assert "WARNING" not in out and not machine.run()[1]
    machine.nvidia_smi(A100)  # another driver may not run this torch
    assert machine.run()[1]
    (machine.bin / "nvidia-smi").unlink()
    assert machine.run()[1] and not machine.run()[1]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("No devices were found", 0),
        (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\nMake sure ...",
            9,
        ),
        ("Failed to initialize NVML: Driver/library version mismatch", 18),
        ("", 1),
    ],
)
def test_an_nvidia_smi_without_a_gpu_is_a_machine_without_one(machine, said, code):
    machine.nvidia_smi(said, code)
    out, _ = machine.run()
    assert "torch (2.13.0, CPU build)" in out and "WARNING" not in out
    assert (f"(nvidia-smi lists no GPU: {said.splitlines()[0]})" in out) if said else ("nvidia-smi" not in out)
    assert not machine.run()[1]


def test_an_nvidia_smi_that_hangs_does_not_hang_the_set_up(machine):
    executable(machine.bin / "nvidia-smi", "#!/bin/bash\nsleep 30\n")
    setup = machine.folder / "scripts/setup.sh"
    setup.write_text(setup.read_text().replace("timeout -k 1 20 ", "timeout -k 1 0.3 "))
    out, _ = machine.run()
    assert "(nvidia-smi lists no GPU: no answer in 20 s)" in out and "CPU build" in out


def test_a_lost_gpu_beside_others_does_not_hide_them(machine):
    machine.nvidia_smi(f"Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost.\n{A100}", 15)
    machine.write("cuda-runs", "13.0")
    out, _ = machine.run()
    assert "CUDA build" in out and "WARNING" not in out


# An apt whose one package holds all that setup.sh needs. It fails while there is a file named broken.
APT_GET = """#!/bin/bash
printf '%s\\n' "$*" >>apt.log
while (($#)) && [[ $1 != -c ]]; do shift; done
[[ ! -e broken || $* != *update* ]] || cat broken
[[ ! -e broken || $* != *install* ]] || { echo "E: Unable to locate package g+"; exit 100; }
while read -r key value; do [[ $key != Dir::Cache ]] || eval "cache=${value%;}"; done <"$2"
[[ $* != *--download-only* ]] || echo all >"$cache/archives/all_1_amd64.deb"
"""


def package() -> bytes:
    """Return the files of that package as a tar."""
    tool = '#!/bin/bash\necho "$0 $CPATH $*"\n'
    files = {"bin/g++": tool, "bin/gcc": tool, "bin/pkg-config": "#!/bin/bash\n", "share/doc/all/readme": "x"}
    files |= dict.fromkeys(("lib/x86_64-linux-gnu/libopencv_core.so", "lib/x86_64-linux-gnu/libopencv_imgproc.so"), "x")
    files |= dict.fromkeys(("lib/x86_64-linux-gnu/libturbojpeg.so", "include/opencv4/opencv2/imgproc.hpp"), "x")
    files |= {
        "include/turbojpeg.h": "x",
        "include/python3.11/Python.h": "x",
        "lib/x86_64-linux-gnu/blas/libblas.so.3": "x",
    }
    with io.BytesIO() as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"./usr/{name}")
            entry.size, entry.mode = len(text), 0o755
            tar.addfile(entry, io.BytesIO(text.encode()))
        tar.close()
        return stream.getvalue()


@pytest.fixture
def no_root(machine):
    """A Debian without compiler and pkg-config, and with a user who is not root."""
    for name in ("g++", "pkg-config"):
        (machine.bin / name).unlink()
    for name in ("basename", "chmod", "cp", "find", "head", "ln", "mv", "tar"):
        (machine.bin / name).symlink_to(shutil.which(name))
    executable(machine.bin / "apt-get", APT_GET)
    executable(machine.bin / "apt-cache", "#!/bin/bash\nexit 1\n")
    executable(machine.bin / "dpkg", "#!/bin/bash\necho amd64\n")
    executable(machine.bin / "dpkg-deb", f"#!/bin/bash\n[[ -s $2 ]] && cat {machine.folder}/all.tar\n")
    (machine.folder / "all.tar").write_bytes(package())
    packages = machine.folder / "scripts/system_packages.sh"
    packages.write_text(packages.read_text().replace("EUID == 0", "EUID < 0"))
    return machine


READY = ("  The environment is ready (.venv with export,plots)\n", [])


def test_without_root_the_packages_are_unpacked_below_venv(no_root):
    before = {path for path in no_root.folder.rglob("*") if ".venv" not in path.parts}
    out, _ = no_root.run()
    assert "without root into .venv/system" in out and out.splitlines()[-1].startswith("Ready after")
    system = no_root.folder / ".venv/system"
    names, checksum = (system / "complete").read_text().splitlines()
    assert {"g++", "pkg-config", "libturbojpeg0-dev"} <= set(names.split()) and checksum
    calls = (no_root.folder / "apt.log").read_text().splitlines()
    assert all("-c " + str(no_root.folder / ".venv/system.apt/apt.conf") in call for call in calls)
    new = {path for path in no_root.folder.rglob("*") if ".venv" not in path.parts} - before
    assert {path.name for path in new} == {"apt.log", "pip.log"}
    assert not (system / "usr/share/doc/all").exists() and (system / "lib").readlink() == Path("usr/lib")
    assert (system / "usr/lib/x86_64-linux-gnu/libblas.so.3").readlink() == Path("blas/libblas.so.3")
    called, _ = no_root.run(".venv/system/tools/g++ -c x.cpp")
    assert called == f"{system}/usr/bin/g++ {system}/usr/include/python3.11 --sysroot={system} -c x.cpp\n"
    assert {path.name for path in (no_root.folder / ".venv").iterdir()}.isdisjoint({"system.apt", "system.new"})
    assert no_root.run() == READY and len((no_root.folder / "apt.log").read_text().splitlines()) == len(calls)


def test_an_apt_that_reaches_nothing_is_told_in_a_line(no_root):
    for told in ("Unable to locate package g+", "Failed to fetch http://x  No route"):
        no_root.write("broken", f"W: {told}\n" if "fetch" in told else "")
        out, pip = no_root.run(code=1)
        assert f"apt cannot get the packages: {told}\n" in out and "conda create" in out and not pip
    (no_root.folder / "broken").unlink()
    no_root.run()
    assert no_root.run() == READY


@pytest.mark.parametrize("damage", ["killed", "cut", "moved"])
def test_a_half_unpacked_system_is_mended(no_root, damage):
    deb = no_root.bin / "dpkg-deb"
    if damage == "killed":  # in the middle of unpacking
        text = deb.read_text()
        executable(deb, f"#!/bin/bash\nhead -c 3000 {no_root.folder}/all.tar\nkill -TERM $SETUP\n")
        no_root.run("SETUP=$BASHPID; export SETUP; exec bash scripts/setup.sh", code=143)
        assert (no_root.folder / ".venv/system.new").exists()
        executable(deb, text)
    else:
        no_root.run()
        (no_root.folder / ".venv/made-for").unlink()  # so that it looks
        if damage == "cut":
            (no_root.folder / ".venv/system/usr/include/turbojpeg.h").write_text("")
    python = (no_root.folder / ".venv/bin/python").read_text()
    for name in ("python3.11", "python3"):
        executable(no_root.bin / name, python)
    no_root.write("apt.log", "")
    out, _ = no_root.run()
    assert ("Removing .venv/system (damaged)" in out) == (damage == "cut")
    assert ("--download-only" in (no_root.folder / "apt.log").read_text()) == (damage != "moved")  # else it is kept
    assert (no_root.folder / ".venv/system/usr/include/turbojpeg.h").read_text() == "x"
    assert no_root.run() == READY


def test_ffcv_finds_the_unpacked_libraries_by_itself(no_root):
    python = no_root.folder / ".venv/bin/python"
    told = '*--require-hashes*) echo "$LDFLAGS;$CXX;$(pkg-config --libs opencv4)" >ffcv.log ;;'
    python.write_text(
        python.read_text()
        .replace('*"self_check.py --"*', '*"self_check.py --native") exit 1 ;;\n  *"self_check.py --"*')
        .replace('  *"-m pip"*', f'  {told}\n  *"-m pip"*')
    )
    no_root.run()
    flags, compiler, _ = (no_root.folder / "ffcv.log").read_text().split(";")
    run_path = "-Wl,--disable-new-dtags,-rpath,$ORIGIN/../../../../system/usr/lib/x86_64-linux-gnu"
    assert run_path in flags.split() and compiler.endswith("/tools/g++")


def test_ffcv_is_built_only_from_the_file_with_the_known_hash(machine, tmp_path):
    index = tmp_path / "index"
    index.mkdir()
    with tarfile.open(index / "ffcv-1.0.2.tar.gz", "w:gz") as tar:
        text = b"from setuptools import setup\nsetup(name='ffcv', version='1.0.2')\n"
        entry = tarfile.TarInfo("ffcv-1.0.2/setup.py")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
    python = machine.folder / ".venv/bin/python"
    real = f'*--require-hashes*) PIP_DRY_RUN=1 PIP_NO_INDEX=1 PIP_FIND_LINKS={index} exec {sys.executable} "$@" ;;'
    python.write_text(
        python.read_text().replace('case "$*" in', f'case "$*" in\n  {real}\n  *"self_check.py --native") exit 1 ;;')
    )
    out, _ = machine.run(code=1)
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in out and "Set-up failed at: ffcv (built from source)" in out


@pytest.fixture
def self_check():
    spec = importlib.util.spec_from_file_location("self_check", ROOT / "scripts" / "self_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_torch(cuda, available=False, capability=None, architectures=()):
    def get_device_capability(device):
        if capability is None:
            raise RuntimeError("CUDA unknown error")
        return capability

    def is_available():
        if cuda and not available:
            warnings.warn("CUDA initialization: no", stacklevel=2)
        return available

    functions = SimpleNamespace(
        is_available=is_available,
        get_device_capability=get_device_capability,
        get_arch_list=lambda: list(architectures),
    )
    return SimpleNamespace(__version__="2.x", version=SimpleNamespace(cuda=cuda), cuda=functions)


CU130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
CU126 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")


@pytest.mark.parametrize(
    ("driver", "capability", "torch", "remedy"),
    [
        ("580.65.06", "8.0", fake_torch(None), "torch==2.13.0+cu130"),
        ("580.65.06", "6.1", fake_torch(None), "torch==2.13.0+cu126"),
        ("575.57.08", "12.0", fake_torch("13.0"), "torch==2.11.0+cu128"),
        ("575.57.08", "8.9", fake_torch("13.0"), "torch==2.13.0+cu126"),
        ("525.60.13", "7.0", fake_torch("13.0"), "torch==2.13.0+cu126"),
        ("525.60.11", "7.0", fake_torch("13.0"), "torch==2.7.1+cu118"),
        ("470.256.02", None, fake_torch("12.6"), "torch==2.7.1+cu118"),
        ("440.33.01", None, fake_torch("12.6"), "Update NVIDIA's driver"),
        ("580.65.06", "3.7", fake_torch("13.0"), "Update NVIDIA's driver"),
        ("580.65.06", "[N/A]", fake_torch("13.0"), "Its build fits the driver. See what nvidia-smi says"),
        ("535.104.05", "9.0", fake_torch("12.8"), "Its build fits the driver"),
        ("580.65.06", "9.0", fake_torch("13.0", True), "Its build fits the driver"),
        ("580.65.06", "6.1", fake_torch("13.0", True, (6, 1), CU130), "torch==2.13.0+cu126"),
        ("570.86.10", "10.0", fake_torch("12.6", True, (10, 0), CU126), "torch==2.11.0+cu128"),
        ("580.65.06", "8.9", fake_torch("13.0", True, (8, 9), CU130), None),
        ("580.65.06", "12.1", fake_torch("13.0", True, (12, 1), CU130), None),
        ("535.104.05", "9.0", fake_torch("12.6", True, (9, 0), CU126), None),
    ],
)
def test_the_advice_fits_driver_and_gpu(self_check, driver, capability, torch, remedy, tmp_path, monkeypatch):
    if capability is None:
        told = "echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2"
    else:
        told = f"echo '{capability}'"
    executable(
        tmp_path / "nvidia-smi",
        f"#!/bin/bash\n[[ $1 != *compute_cap ]] || {{ {told}; exit; }}\necho '{driver}, Some GPU, 2'\n",
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setitem(sys.modules, "torch", torch)
    advice = self_check.gpu_advice()
    if remedy is None:
        assert advice == ""
    else:
        first, second, third = advice.splitlines()
        assert f"(Some GPU, 2, driver {driver})" in first and second.startswith("  torch 2.x ") and remedy in third
    assert "CUDA_VISIBLE_DEVICES" not in os.environ  # a job may hide the GPU: no fault of the environment


def test_the_first_advice_is_the_tested_torch(self_check):
    pinned = (ROOT / "scripts" / "constraints.txt").read_text()
    assert f"torch=={self_check.BUILDS[0].torch}\n" in pinned
