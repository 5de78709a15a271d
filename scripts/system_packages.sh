# What setup.sh needs of the system: a Python, a C++ compiler, pkg-config, OpenCV, libturbojpeg. Sourced by setup.sh.
#
# Packages that are missing are installed by apt where that is allowed. Without root, the same packages are downloaded by
# apt and unpacked into .venv/system, where none of their own scripts has run:
#   usr/...    the packages' files, but those of libc6, libgcc-s1 and libstdc++6: links lead to the system's own, since
#              a process must not have two of them. /bin, /lib and so on are links into usr.
#   tools/     gcc, g++, pkg-config, openssl: the same, told where their libraries, headers and linker files are
#   complete   the packages, and a checksum over names and sizes; written last
# Nothing in it holds an absolute path into it: it may be moved with the project.

system=$venv/system
certificates=/etc/ssl/certs/ca-certificates.crt
fashion_mnist=/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz

# --- what is there, and what is missing

find_python() {
  local candidate
  candidates=(python3.11 python3.12 python3.13 python3 "$system/usr/bin/python3")
  [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do # run each: one that is on the PATH may yet be an empty pyenv shim
    base=$("$candidate" -I -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14); print(sys.executable)' 2>/dev/null) && return
  done
  base=""
  return 1
}

explain_python() {
  die "No Python 3.11 to 3.13 found (tried: ${candidates[*]})." \
    "Please install one (Debian and Ubuntu: apt-get install python3), or name one: PYTHON=/path/to/python3.11 scripts/setup.sh"
}

can_apt() { command -v apt-get >/dev/null && { ((EUID == 0)) || sudo -n true 2>/dev/null; }; }
can_unpack() { command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; }

# Where there is a python3 of another version, apt would bring that one again.
apt_may_bring_python() { [[ -z ${PYTHON:-} ]] && ! command -v python3 >/dev/null && { can_apt || can_unpack; }; }

has_pip() { compgen -G "$system/usr/share/python-wheels/pip-*.whl" >/dev/null || "$base" -I -c 'import ensurepip' 2>/dev/null; }
has_headers() {
  [[ -e $system/usr/include/python$1/Python.h ]] ||
    "$base" -I -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null
}
knows() { command -v pkg-config >/dev/null && pkg-config --exists "$1"; }
is_here() { [[ -e $1 || -e $system$1 ]]; }

# Looks at what is there rather than at dpkg, so that conda's, brew's or one's own builds serve as well.
find_missing() {
  local version
  required=() optional=()
  command -v "${CXX:-g++}" >/dev/null || required+=(g++)
  command -v pkg-config >/dev/null || required+=(pkg-config)
  knows opencv4 || is_here /usr/include/opencv4/opencv2/imgproc.hpp || required+=(libopencv-imgproc-dev)
  knows libturbojpeg || [[ -e $system/usr/include/turbojpeg.h ]] || required+=(libturbojpeg0-dev)
  if [[ -n $base ]]; then
    version=$(version_of "$base")
    has_pip || required+=("python$version-venv")
    has_headers "$version" || required+=("python$version-dev")
  else
    required+=(python3 python3-venv python3-dev)
  fi
  is_here $fashion_mnist || optional+=(dataset-fashion-mnist)
  is_here $certificates || optional+=(ca-certificates)
  [[ ,$extras, != *,dev,* ]] || command -v chromium >/dev/null || optional+=(chromium) # tests look at report.html
}

explain_packages() {
  local version=3
  [[ -z $base ]] || version=$(version_of "$base")
  cat >&2 <<END

Missing on this machine: ${required[*]}
fastmlp builds ffcv from source, which takes a C++ compiler, pkg-config, OpenCV and libturbojpeg.
On Debian and Ubuntu this script gets them itself, also without root. Here, please run the line for your system
(conda needs no root), then scripts/setup.sh again:

  Debian, Ubuntu  sudo apt-get update && sudo apt-get install --no-install-recommends ${required[*]}
  Fedora          sudo dnf install gcc-c++ pkgconf-pkg-config opencv-devel turbojpeg-devel python$version-devel
  conda           conda create -n fastmlp -c conda-forge python=3.11 cxx-compiler pkg-config opencv libjpeg-turbo && conda activate fastmlp
  Homebrew        brew install gcc pkgconf opencv jpeg-turbo python@3.11

Your own builds serve as well: CXX names the compiler, PKG_CONFIG_PATH the folders of opencv4.pc and libturbojpeg.pc.
END
  exit 1
}

# --- with root

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

# --- without root

# Leaves the reason in apt_problem if apt cannot get the packages. Its local variables are those of the functions below.
unpack_packages() {
  local folder=$venv/system.apt new=$venv/system.new packages
  apt_problem=""
  mkdir -p "$venv"
  rm -rf "$new"
  if ! download_packages >"$tmp/download.log" 2>&1; then
    apt_problem=$(grep -m 1 -E '^(W: Failed to fetch|E:) ' "$tmp/download.log" || echo "E: apt-get failed")
  fi
  cat "$tmp/download.log"
  [[ -z $apt_problem ]] || return 0
  unpack_archives
  link_libraries
  write_tools
  make_findable
  printf '%s\n%s\n' "${packages[*]}" "$(checksum "$new")" >"$new/complete"
  rm -rf "$system"
  mv "$new" "$system"
  rm -rf "$folder"
}

# With lists, cache and an empty list of installed packages of our own: apt then writes nowhere else, and the packages
# are complete whatever is installed. What has been downloaded serves the next run if this one is interrupted.
download_packages() {
  local package get=(apt-get -q -y -c "$folder/apt.conf")
  mkdir -p "$folder/state/lists/partial" "$folder/cache/archives/partial"
  : >"$folder/status"
  cat >"$folder/apt.conf" <<END
#clear APT::Architectures;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Architectures { "$(dpkg --print-architecture)"; };
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Retries "1";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
Debug::NoLocking "true";
Dir::State "$folder/state";
Dir::State::status "$folder/status";
Dir::Cache "$folder/cache";
Dir::Cache::archives "archives";
END
  "${get[@]}" update || true # one source of several may fail
  packages=()
  [[ ! -f $system/complete ]] || read -ra packages <"$system/complete"
  for package in "${required[@]}"; do
    case $package in
      python*-venv) packages+=(python3-pip-whl) ;; # is all of it that make_venv needs
      python3) packages+=(python3 patchelf) ;;
      *) packages+=("$package") ;;
    esac
  done
  for package in "${optional[@]}"; do
    [[ $package == chromium ]] || ! apt-cache -c "$folder/apt.conf" show "$package" >/dev/null 2>&1 || packages+=("$package")
  done
  "${get[@]}" autoclean && "${get[@]}" install --download-only "${packages[@]}"
}

# Without documents, and without the drivers that OpenGL would draw with: OpenCV's core asks for OpenGL.
unpack_archives() {
  local archive name
  for name in bin sbin lib lib32 lib64 libx32; do
    mkdir -p "$new/usr/$name"
    ln -s "usr/$name" "$new/$name"
  done
  for archive in "$folder"/cache/archives/*.deb; do
    case ${archive##*/} in libc6_* | libgcc-s1_* | libstdc++6_*) continue ;; esac
    dpkg-deb --fsys-tarfile "$archive" | tar -x -C "$new" --keep-directory-symlink --no-same-owner \
      --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' \
      --exclude='*/dri/*' --exclude='*/libLLVM*' --exclude='*/libpython3*.a'
  done
}

# Prints .../usr/lib/x86_64-linux-gnu, or nothing if there is none.
libraries_of() { compgen -G "$1/usr/lib/*-linux-gnu*" || true; }

# The libraries that were not unpacked, and those that update-alternatives would have linked.
link_libraries() {
  local file lib
  lib=$(libraries_of "$new")
  [[ -n $lib ]] || return 0
  for file in {/lib,/usr/lib}/"${lib##*/}"/{libc.so.6,libm.so.6,libmvec.so.1,libgcc_s.so.1,libstdc++.so.6}; do
    [[ ! -e $file ]] || ln -sf "$file" "$lib/"
  done
  for file in /lib{,64}/ld-linux*; do # libc.so, a text for the linker, names it
    [[ ! -e $file ]] || ln -sf "$(readlink -f "$file")" "$new$file"
  done
  for file in "$lib"/{blas,lapack}/*.so.*; do
    [[ ! -e $file ]] || ln -sf "${file#"$lib"/}" "$lib/"
  done
}

write_tools() {
  local name
  mkdir "$new/tools"
  for name in gcc g++ pkg-config openssl; do # torch.compile calls openssl
    [[ -e $new/usr/bin/$name ]] || continue
    cat >"$new/tools/$name" <<'END'
#!/bin/bash
system=$(dirname "$(dirname "$(readlink -f "$0")")")
name=$(basename "$0")
for folder in "$system"/usr/include/python3.*; do CPATH+=${CPATH:+:}$folder; done
for folder in "$system"/usr/lib/*-linux-gnu*; do LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}; done
export CPATH LD_LIBRARY_PATH PATH=$system/usr/bin:$PATH # as and ld are on the PATH
[[ $name != g* ]] || set -- --sysroot="$system" "$@"
exec "$system/usr/bin/$name" "$@"
END
    chmod +x "$new/tools/$name"
  done
}

# Has Python find its libraries; makes the one file of certificates, as ca-certificates' script would have.
make_findable() {
  local python=$new/usr/bin/python3 lib
  lib=$(libraries_of "$new")
  [[ ! -e $python ]] ||
    "$new/usr/bin/patchelf" --force-rpath --set-rpath "\$ORIGIN/../lib/${lib##*/}" "$(readlink -f "$python")"
  [[ -d $new/usr/share/ca-certificates/mozilla ]] || return 0
  mkdir -p "$new${certificates%/*}"
  cat "$new"/usr/share/ca-certificates/mozilla/*.crt >"$new$certificates"
}

checksum() { (cd "$1" && find . -type f ! -name '*.pyc' ! -name complete -printf '%P %s\n' | LC_ALL=C sort | cksum); }

# Removes a .venv/system that is damaged; from a sound one, has the rest of setup.sh use what is there.
use_system() {
  rm -rf "$venv/system.new"
  [[ -d $system ]] || return 0
  if [[ ! -f $system/complete || $(tail -n 1 "$system/complete") != "$(checksum "$system")" ]]; then
    say "Removing .venv/system (damaged)"
    rm -rf "$system"
    return
  fi
  PATH=$system/tools:$PATH
  if [[ ! -e $certificates && -e $system$certificates ]]; then
    export SSL_CERT_FILE=${SSL_CERT_FILE:-$system$certificates}
    export PIP_CERT=${PIP_CERT:-$SSL_CERT_FILE}
  fi
}
