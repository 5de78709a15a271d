#!/usr/bin/env bash
# From a bare machine to a working .venv: system packages, torch, ffcv, fastmlp.
set -euo pipefail

usage() {
  cat <<'END'
scripts/setup.sh [--extras NAMES] [--check]

Makes .venv in the project folder and installs into it: torch, ffcv (built from source), fastmlp (editable)
and what they need, in the versions of scripts/constraints.txt. Run it as often as you like: it returns at
once when all is there, continues where it was interrupted, and mends what is broken.

  --extras NAMES  extras of setup.py to have, with commas between (default: plots,export). They only grow.
  --check         also import everything and decode an image through ffcv again
  --help          this text

Environment variables:
  PYTHON          the interpreter to build .venv with (default: the first of python3.11, python3.12,
                  python3.13, python3.10 and python3 that is one of Python 3.10 to 3.13)
  FASTMLP_TORCH   what to hand to `pip install` for torch, remembered for later runs, for example
                  "torch==2.12.0+cu126 --extra-index-url https://download.pytorch.org/whl/cu126"
                  (default: the tested version; its CUDA build where nvidia-smi sees a GPU, else its CPU build).
                  If torch cannot use the GPU, the last lines tell which one to install.
END
}

die() { printf '%s\n' "$@" >&2; exit 1; }
say() { printf '  %s\n' "$@"; }

wanted_extras=plots,export
check=no
while (($#)); do
  case $1 in
    --extras) (($# > 1)) || { usage >&2; exit 2; }; wanted_extras=$2; shift ;;
    --extras=*) wanted_extras=${1#*=} ;;
    --check) check=yes ;;
    -h | --help) usage; exit ;;
    *) echo "setup.sh: unknown argument '$1'" >&2; usage >&2; exit 2 ;;
  esac
  shift
done

root=$(cd -P "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd -P)
venv=$root/.venv
py=$venv/bin/python
log=$venv/setup.log
stamp=$venv/setup.stamp
constraints=$root/scripts/constraints.txt
torch_version=$(sed -n 's/^torch==//p' "$constraints")
ffcv_sha256=42766a487c8a659b543d070f24732c4b65aab8d96980f5792c63e91e55511f00 # of ffcv-1.0.2.tar.gz
cpu_index=https://download.pytorch.org/whl/cpu
fashion_mnist=/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz

# Settings of the caller's shell that would send pip, or the imports, elsewhere.
unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX
export PIP_USER=0 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1

[[ $(uname) != Darwin ]] ||
  die "ffcv 1.0.2 loads libc.so.6 by name, which macOS does not have: please use Linux (a container or virtual machine will do)."

# --- what is wanted, and whether it is there already

remembered() { [[ ! -f $stamp ]] || sed -n "s/^$1 //p" "$stamp"; }

extras=$(printf '%s,%s' "$wanted_extras" "$(remembered extras)" | tr -s ', ' '\n' | sed '/^$/d' | sort -u | paste -sd, -)
for extra in ${extras//,/ }; do
  grep -q "^ *\"$extra\": \[" "$root/setup.py" || { echo "setup.sh: setup.py has no extra '$extra'" >&2; exit 2; }
done
torch_request=${FASTMLP_TORCH:-$(remembered torch)}

# Sets gpu to the driver and name of the first GPU ("535.104.05, NVIDIA A100"), or to nothing. Judges by what nvidia-smi
# prints: it may fail with exit code 0, or list the GPUs that work and fail for another.
look_for_gpu() {
  local said code=0
  gpu="" gpu_error=""
  command -v nvidia-smi >/dev/null || return 0
  said=$(timeout -k 1 20 nvidia-smi --query-gpu=driver_version,name --format=csv,noheader 2>&1) || code=$?
  ((code != 124 && code != 137)) || said="no answer in 20 s"
  gpu=$(grep -m 1 -E '^[0-9]+\.[0-9.]+, ' <<<"$said") || gpu_error=${said%%$'\n'*}
}

has_gpu() { [[ -n $gpu ]]; }

stamp_text() {
  printf 'extras %s\ntorch %s\nproject %s\ngpu %s\n' "$extras" "$torch_request" "$root" "$gpu"
  (cd "$root" && cat setup.py scripts/setup.sh scripts/constraints.txt | cksum)
}

version_of() { "$1" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# Made for this folder (its scripts hold absolute paths) and this Python, to the end of its making.
venv_is_sound() {
  local version
  version=$(version_of "$py") && "$py" -I -c 'import pip' 2>/dev/null &&
    [[ -z ${PYTHON:-} || $(version_of "$PYTHON") == "$version" ]] &&
    [[ -f $venv/made-for && $(<"$venv/made-for") == "$version $root" ]]
}

self_check() { "$py" -I "$root/scripts/self_check.py" "$@"; }

# Writes what helps if torch cannot use the GPU, unless the CPU build was asked for. It stays for later runs to show.
check_gpu() {
  rm -f "$venv/gpu-warning"
  ! has_gpu || [[ $torch_request == *cpu* ]] || self_check --gpu >"$venv/gpu-warning" 2>>"$log" || true
}
show_gpu_warning() { [[ ! -s $venv/gpu-warning ]] || cat "$venv/gpu-warning" >&2; }

look_for_gpu
started=$SECONDS
exec 3>&2 # a step's output goes to the log; what the trap says must not
if command -v flock >/dev/null; then # one set-up at a time; the lock ends with this process
  exec 9<"$root/setup.py"
  flock -n 9 || { say "Another set-up of this folder is running; waiting for it."; flock 9 || true; }
fi

if [[ -f $stamp && $(<"$stamp") == "$(stamp_text)" ]] && venv_is_sound; then
  if problem=$(self_check --quick 2>&1) && { [[ $check == no ]] || problem=$(self_check 2>&1); }; then
    say "The environment is ready (.venv with $extras)${problem:+: $problem}"
    [[ $check == no && ! -s $venv/gpu-warning ]] || check_gpu
    show_gpu_warning
    exit 0
  fi
  say "The environment needs mending: ${problem##*$'\n'}"
fi

# --- steps: each prints its name and its seconds; its output goes to the log

step=""
tmp=$(mktemp -d /tmp/fastmlp-setup.XXXXXX) # not TMPDIR: ffcv's setup.py cannot take a path with spaces
finish() {
  local code=$?
  rm -rf "$tmp"
  ((code)) && [[ -n $step ]] || return 0
  if ((code >= 128)); then
    printf '\n  Stopped. Start it again to continue.\n' >&3
  else
    { printf 'failed\n\nThe last lines of %s:\n' "$log"; tail -n 20 "$log"; printf '\nSet-up failed at: %s\n' "$step"; } >&3
  fi
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

run() {
  local began=$SECONDS
  step=$1
  shift
  printf '  %-66s' "$step"
  printf '\n== %s\n' "$step" >>"$log"
  "$@" >>"$log" 2>&1 </dev/null
  printf '%4d s\n' $((SECONDS - began))
  step=""
}

# --- system: a Python, a compiler, OpenCV, libturbojpeg

choose_python() {
  local candidate candidates=(python3.11 python3.12 python3.13 python3.10 python3)
  [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do # run each: one that is on the PATH may yet be an empty pyenv shim
    base=$("$candidate" -I -c 'import sys; assert (3, 10) <= sys.version_info < (3, 14); print(sys.executable)' 2>/dev/null) && return
  done
  die "No Python 3.10 to 3.13 found (tried: ${candidates[*]})." \
    "Please install one (Debian and Ubuntu: apt-get install python3), or name one: PYTHON=/path/to/python3.11 scripts/setup.sh"
}

has_ensurepip() { "$base" -I -c 'import ensurepip' 2>/dev/null; }
has_headers() { "$base" -I -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null; }
knows() { command -v pkg-config >/dev/null && pkg-config --exists "$1"; }
has_opencv() { knows opencv4 || [[ -e /usr/include/opencv4/opencv2/imgproc.hpp ]]; }
can_apt() { command -v apt-get >/dev/null && { ((EUID == 0)) || sudo -n true 2>/dev/null; }; }

# Looks at what is there rather than at dpkg, so that conda's, brew's or one's own builds serve as well.
find_missing() {
  local version
  version=$(version_of "$base")
  required=()
  command -v "${CXX:-g++}" >/dev/null || required+=(g++)
  command -v pkg-config >/dev/null || required+=(pkg-config)
  has_opencv || required+=(libopencv-imgproc-dev)
  knows libturbojpeg || required+=(libturbojpeg0-dev)
  has_ensurepip || required+=("python$version-venv")
  has_headers || required+=("python$version-dev")
  optional=()
  [[ -e $fashion_mnist ]] || optional+=(dataset-fashion-mnist)
  [[ -e /etc/ssl/certs/ca-certificates.crt ]] || optional+=(ca-certificates)
  [[ ,$extras, != *,dev,* ]] || command -v chromium >/dev/null || optional+=(chromium) # tests look at report.html
}

explain_packages() {
  local version
  version=$(version_of "$base")
  cat >&2 <<END

Missing on this machine: ${required[*]}
fastmlp builds ffcv from source, which takes a C++ compiler, pkg-config, OpenCV and libturbojpeg.
This script installs them itself where there is apt and it is root or may use sudo without a password.
Here, please run the line for your system, then scripts/setup.sh again:

  Debian, Ubuntu  sudo apt-get update && sudo apt-get install --no-install-recommends ${required[*]}
  Fedora          sudo dnf install gcc-c++ pkgconf-pkg-config opencv-devel turbojpeg-devel python$version-devel
  conda           conda create -n fastmlp -c conda-forge python=3.11 cxx-compiler pkg-config opencv libjpeg-turbo && conda activate fastmlp
  Homebrew        brew install gcc pkgconf opencv jpeg-turbo python@3.11
END
  exit 1
}

install_packages() {
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120) package available=()
  ((EUID == 0)) || apt=(sudo -n "${apt[@]}")
  for package in "${required[@]}" "${optional[@]}"; do
    apt-cache show "$package" >/dev/null 2>&1 || { "${apt[@]}" update || true; break; }
  done
  for package in "${optional[@]}"; do
    ! apt-cache show "$package" >/dev/null 2>&1 || available+=("$package")
  done
  set -- "${required[@]}" "${available[@]}"
  (($#)) || return 0
  "${apt[@]}" install --no-install-recommends "$@" ||
    { "${apt[@]}" update && "${apt[@]}" install --no-install-recommends "$@"; } || # the lists were old
    ((${#required[@]} == 0))
}

# --- the environment

make_venv() {
  "$base" -I -m venv "$venv"
  version_and_folder="$(version_of "$py") $root"
  printf '%s\n' "$version_and_folder" >"$venv/made-for"
}

pip_install() {
  "$py" -I -m pip install --no-input --progress-bar off --no-compile -c "$venv/constraints.txt" "$@"
}

installed_version() { "$py" -I -c 'import sys, importlib.metadata as m; print(m.version(sys.argv[1]))' "$1" 2>/dev/null || true; }

install_torch() {
  if [[ -n $torch_request ]]; then
    local words
    read -ra words <<<"$torch_request"
    pip_install "${words[@]}"
    return
  fi
  local have
  have=$(installed_version torch)
  if has_gpu && [[ $have == *+cpu ]]; then
    "$py" -I -m pip uninstall -y torch
  elif [[ ${have%%+*} == "$torch_version" ]]; then
    return
  fi
  # Its CPU files are named 2.x+cpu, which pip prefers to the CUDA build's 2.x where it sees both.
  if ! has_gpu && cpu_index_answers; then
    ! pip_install "torch==$torch_version" --extra-index-url "$cpu_index" || return 0
  fi
  pip_install "torch==$torch_version"
}

# The alarm also ends a name server's silence, which no timeout of urlopen does.
cpu_index_answers() {
  "$py" -I -c 'import signal, sys, urllib.request as u; signal.alarm(5); u.urlopen(sys.argv[1])' "$cpu_index/torch/" >/dev/null 2>&1
}

# ffcv asks pkg-config for opencv4 and calls only cv::resize. Answer with core and imgproc alone: Debian's full
# OpenCV is 200 packages, and each module linked is one more to load at every import.
build_ffcv() {
  local flags="-I/usr/include/opencv4" dirs folder rpaths=""
  ! knows opencv4 || flags=$(pkg-config --cflags-only-I opencv4)
  mkdir -p "$tmp/include/opencv2"
  printf '#include <opencv2/core.hpp>\n#include <opencv2/imgproc.hpp>\n' >"$tmp/include/opencv2/opencv.hpp"
  dirs=$(! knows opencv4 || pkg-config --libs-only-L opencv4)
  cat >"$tmp/opencv4.pc" <<END
Name: opencv4
Description: core and imgproc only
Version: 4
Cflags: -I$tmp/include $flags
Libs: $dirs -lopencv_core -lopencv_imgproc
END
  for folder in $dirs $(pkg-config --libs-only-L libturbojpeg); do # conda's libraries lie off the loader's path
    rpaths+=" -Wl,-rpath,${folder#-L}"
  done
  # Building runs the source's code: only the tested file, by its hash on PyPI.
  echo "$(grep '^ffcv==' "$constraints") --hash=sha256:$ffcv_sha256" >"$tmp/ffcv.txt"
  # No cache: pip would hand out a library that was built against another OpenCV.
  PKG_CONFIG_PATH="$tmp${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}" LDFLAGS="${LDFLAGS:-}$rpaths" \
    pip_install --no-deps --no-build-isolation --use-pep517 --no-cache-dir --force-reinstall \
    --require-hashes -r "$tmp/ffcv.txt"
}

# What fastmlp (with its extras) and ffcv declare, but opencv-python without its need of libGL and X.
list_requirements() {
  local names
  IFS=, read -ra names <<<"$extras"
  "$py" -I - "${names[@]}" >"$venv/requirements.txt" <<'END'
import sys
from importlib.metadata import PackageNotFoundError, distribution, requires
from pip._vendor.packaging.requirements import Requirement

for package, extras in (("fastmlp", ["", *sys.argv[1:]]), ("ffcv", [""])):
    for requirement in map(Requirement, requires(package)):
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        requirement.marker = None
        if requirement.name == "ffcv":  # is here already; named to pip, it would bring opencv-python after all
            continue
        if requirement.name == "opencv-python":
            try:
                distribution("opencv-python")
            except PackageNotFoundError:
                requirement.name = "opencv-python-headless"
        print(requirement)
END
}

install_fastmlp() {
  # compat: a plain path entry. Setuptools' import hook loses to a folder named fastmlp, such as the clone's, in the
  # current directory.
  pip_install --no-deps --no-build-isolation --config-settings editable_mode=compat -e "$root"
  list_requirements
  pip_install --no-build-isolation -r "$venv/requirements.txt"
}

install_all() {
  if ! venv_is_sound; then
    [[ ! -e $venv ]] || say "Removing the old .venv (broken, moved, half-made or of another Python)"
    rm -rf "$venv"
    mkdir "$venv"
    fresh=yes
  fi
  { stamp_text; echo unfinished; } >"$stamp"
  { grep -v '^torch==' "$constraints"; } >"$venv/constraints.txt"

  [[ $fresh == no ]] || run "Python environment .venv ($("$base" -V))" make_venv
  run "Build tools (setuptools, wheel)" pip_install setuptools wheel
  run "torch (${torch_request:-$torch_version, $(has_gpu && echo "CUDA build: several GB" || echo "CPU build")})" install_torch
  local version
  version=$(installed_version torch)
  [[ -n $version ]] || die "FASTMLP_TORCH='$torch_request' installs no torch."
  echo "torch==$version" >>"$venv/constraints.txt" # nothing below may exchange it
  self_check --native >/dev/null 2>&1 || run "ffcv (built from source)" build_ffcv
  run "fastmlp (editable, with $extras) and what it needs" install_fastmlp
}

echo "Setting up fastmlp in $root"
[[ -z $gpu_error ]] || say "(nvidia-smi lists no GPU: $gpu_error)"
fresh=no
if venv_is_sound; then base=$py; else choose_python; fi
find_missing
if ((${#required[@]} + ${#optional[@]})) && can_apt; then
  log=$tmp/apt.log
  run "System packages ($((${#required[@]} + ${#optional[@]})) missing, by apt)" install_packages
  find_missing
  log=$venv/setup.log
fi
((${#required[@]} == 0)) || explain_packages
[[ -e $fashion_mnist ]] || say "(Debian's dataset-fashion-mnist is not here; writers/fashion_mnist.py will download the images.)"

install_all
# pip takes a package for sound that is installed but damaged, so a mended environment may still fail.
if [[ $fresh == yes ]] || ! result=$(self_check 2>&1); then
  if [[ $fresh == no ]]; then
    say "Still broken (${result##*$'\n'}); making the environment anew."
    rm -f "$venv/made-for"
    choose_python
    install_all
  fi
  run "Self-check: imports, an image through ffcv" self_check
  result=$(tail -n 1 "$log")
fi
check_gpu
stamp_text >"$stamp"
say "$result"
echo "Ready after $((SECONDS - started)) s.${FASTMLP_CHAINED- Next: scripts/quickstart.sh trains an MLP; source .venv/bin/activate to work in the environment.}"
show_gpu_warning
