#!/usr/bin/env bash
# From a bare machine to a working .venv: system packages, torch, ffcv, fastmlp.
set -euo pipefail

usage() {
  cat <<'END'
scripts/setup.sh [--extras NAMES] [--check]

Makes .venv in the project folder and installs into it: torch, ffcv (built from source), fastmlp (editable)
and what they need, in the versions of scripts/constraints.txt. Run it as often as you like: it returns at
once when all is there, continues where it was interrupted, and mends what is broken.

What ffcv is built with (a C++ compiler, pkg-config, OpenCV, libturbojpeg) it takes from the system, from conda or from
where CXX and PKG_CONFIG_PATH point. What is missing, Python too, apt installs for root or where sudo asks for no
password. Otherwise, on Debian and Ubuntu, the same packages are downloaded and unpacked into .venv/system (190 MB,
then 440 MB on disk); elsewhere the commands to run are printed.

  --extras NAMES  extras of setup.py to have, with commas between (default: plots,export). They only grow.
  --check         also import everything and decode an image through ffcv again
  --help          this text

Environment variables:
  PYTHON          the interpreter to build .venv with (default: the first of python3.11, python3.12,
                  python3.13 and python3 that is one of Python 3.11 to 3.13)
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

source "$root/scripts/system_packages.sh"

# Settings of the caller's shell that would send pip, or the imports, elsewhere.
unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX NUMBA_DISABLE_JIT
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
  (cd "$root" && cat setup.py scripts/{setup,system_packages}.sh scripts/constraints.txt | cksum)
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

# The environment is sound without it: then the first run compiles.
compile_ahead() {
  timeout -k 1 600 "$py" -I "$root/scripts/self_check.py" --train || echo "failed with exit code $?"
}

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

# --- the environment

# From Debian's wheel, which imports only where there is the system's file of certificates; then as on PyPI.
install_pip() {
  local wheel folder version
  wheel=$(compgen -G "$system/usr/share/python-wheels/pip-*.whl")
  folder=$("$py" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$py" -I -m zipfile -e "$wheel" "$folder"
  [[ -e $certificates ]] || sed -i "s|$certificates|$system&|" "$folder/pip/_vendor/certifi/core.py"
  version=${wheel##*/pip-}
  "$py" -I -m pip install --no-input --force-reinstall "pip==${version%%-*}"
}

make_venv() {
  if "$base" -I -c 'import ensurepip' 2>/dev/null; then
    "$base" -I -m venv "$venv"
  else
    "$base" -I -m venv --without-pip "$venv"
    install_pip
  fi
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
write_pkg_config() {
  local flags="-I/usr/include/opencv4" dirs="" lib
  ! knows opencv4 || flags=$(pkg-config --cflags-only-I opencv4) dirs=$(pkg-config --libs-only-L opencv4)
  rm -rf "${tmp:?}/include" "${tmp:?}/lib"
  mkdir -p "$tmp/include/opencv2" "$tmp/lib"
  printf '#include <opencv2/core.hpp>\n#include <opencv2/imgproc.hpp>\n' >"$tmp/include/opencv2/opencv.hpp"
  lib=$(libraries_of "$system")
  if [[ -e $lib/libopencv_imgproc.so ]]; then # by links, since the project's path may have spaces
    ln -s "$system/usr/include/opencv4" "$lib"/libopencv_{core,imgproc}.so "$tmp/lib/"
    flags=-I$tmp/lib/opencv4 dirs=-L$tmp/lib
  fi
  cat >"$tmp/opencv4.pc" <<END
Name: opencv4
Description: core and imgproc only
Version: 4
Cflags: -I$tmp/include $flags
Libs: $dirs -lopencv_core -lopencv_imgproc
END
  [[ -e $lib/libturbojpeg.so ]] || return 0
  ln -s "$lib/libturbojpeg.so" "$tmp/lib/"
  ln -s "$system/usr/include/turbojpeg.h" "$tmp/include/"
  cat >"$tmp/libturbojpeg.pc" <<END
Name: libturbojpeg
Description: of .venv/system
Version: 2
Cflags: -I$tmp/include
Libs: -L$tmp/lib -lturbojpeg
END
}

build_ffcv() ( # a subshell, for the variables
  local folder lib rpaths=""
  write_pkg_config
  export PKG_CONFIG_PATH="$tmp${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}"
  for folder in $(pkg-config --libs-only-L opencv4 libturbojpeg); do # conda's libraries lie off the loader's path
    [[ $folder == "-L$tmp/lib" ]] || rpaths+=" -Wl,-rpath,${folder#-L}"
  done
  if [[ -d $system ]]; then
    # The old kind of run path, which serves also the libraries that it finds; from .venv/lib/python3.11/site-packages/ffcv.
    lib=$(libraries_of "$system")
    rpaths+=" -Wl,--disable-new-dtags,-rpath,\$ORIGIN/../../../../system/usr/lib/${lib##*/}"
    folder=$(version_of "$py")
    if [[ -e $system/usr/include/python$folder/Python.h ]]; then # includes its neighbour by x86_64-linux-gnu/python3.11/
      mkdir -p "$tmp/headers/${lib##*/}" # a folder of its own: pkg-config leaves out what CPATH names
      ln -sfn "$system/usr/include/${lib##*/}/python$folder" "$tmp/headers/${lib##*/}/"
      export CPATH="$system/usr/include/python$folder:$tmp/headers${CPATH:+:$CPATH}"
    fi
    ln -sfn "$system/tools" "$tmp/tools"
    [[ -n ${CXX:-} || ! -e $tmp/tools/g++ ]] || export CC=$tmp/tools/gcc CXX=$tmp/tools/g++
  fi
  # Building runs the source's code: only the tested file, by its hash on PyPI.
  echo "$(grep '^ffcv==' "$constraints") --hash=sha256:$ffcv_sha256" >"$tmp/ffcv.txt"
  # No cache: pip would hand out a library that was built against another OpenCV.
  LDFLAGS="${LDFLAGS:-}$rpaths" \
    pip_install --no-deps --no-build-isolation --use-pep517 --no-cache-dir --force-reinstall \
    --require-hashes -r "$tmp/ffcv.txt"
)

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

# Leaves .venv/system, which depends on none of the rest.
clear_venv() {
  local entry old=()
  mkdir -p "$venv"
  for entry in "$venv"/* "$venv"/.[!.]*; do
    [[ ! -e $entry && ! -L $entry || $entry == "$system" ]] || old+=("$entry")
  done
  ((${#old[@]})) || return 0
  say "Removing the old .venv (broken, moved, half-made or of another Python)"
  rm -rf "${old[@]}"
}

install_all() {
  if ! venv_is_sound; then
    clear_venv
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
  run "fastmlp (editable${extras:+, with $extras}) and what it needs" install_fastmlp
}

echo "Setting up fastmlp in $root"
[[ -z $gpu_error ]] || say "(nvidia-smi lists no GPU: $gpu_error)"
fresh=no
use_system
if venv_is_sound; then
  base=$py
else
  find_python || apt_may_bring_python || explain_python
fi
find_missing
log=$tmp/apt.log apt_problem=""
if ((${#required[@]} + ${#optional[@]})) && can_apt; then
  run "System packages ($((${#required[@]} + ${#optional[@]})) missing, by apt)" install_packages
elif ((${#required[@]})) && can_unpack; then
  run "System packages (${#required[@]} missing, without root into .venv/system)" unpack_packages
  use_system
fi
log=$venv/setup.log
[[ -n $base ]] || find_python || [[ -n $apt_problem ]] || explain_python
find_missing
if ((${#required[@]})); then
  [[ -z $apt_problem ]] || printf '%s\n' "" "apt cannot get the packages: ${apt_problem#?: }" \
    "Please check the network, and the sources in /etc/apt; for a proxy, set http_proxy." >&2
  explain_packages
fi
is_here $fashion_mnist || say "(Debian's dataset-fashion-mnist is not here; writers/fashion_mnist.py will download the images.)"

install_all
# pip takes a package for sound that is installed but damaged, so a mended environment may still fail.
if [[ $fresh == yes ]] || ! result=$(self_check 2>&1); then
  if [[ $fresh == no ]]; then
    say "Still broken (${result##*$'\n'}); making the environment anew."
    rm -f "$venv/made-for"
    find_python || explain_python
    install_all
  fi
  run "Self-check: imports, an image through ffcv" self_check
  result=$(tail -n 1 "$log")
fi
run "Kernels compiled ahead, by training a tiny model" compile_ahead
check_gpu
stamp_text >"$stamp"
say "$result"
echo "Ready after $((SECONDS - started)) s.${FASTMLP_CHAINED- Next: scripts/quickstart.sh trains an MLP; source .venv/bin/activate to work in the environment.}"
show_gpu_warning
