#!/usr/bin/env bash
# Builds the source archive and the wheel into dist/ and checks both, for a release: what the archive holds, twine's
# checks, set-up by the unpacked archive in an environment of its own, and there, in place of its editable installation,
# the wheel: it must write, load, train and predict outside of the repository. All but dist/ lies in .venv-package (2 GB),
# which is made anew each time.
set -euo pipefail
cd -P "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
exec </dev/null
unset PYTHONPATH

step="set-up"
report() {
  local code=$?
  ((code == 0)) || echo "package.sh stopped at: $step (exit code $code)" >&2
}
trap report EXIT

FASTMLP_CHAINED='' scripts/setup.sh

step="tools (build, twine)"
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' fastmlp/__init__.py)
name=fastmlp-$version
rm -rf .venv-package "dist/$name"*
.venv/bin/python -m venv --without-pip .venv-package/tools # pip is that of .venv: it is not always Debian's to have
tools=.venv-package/tools/bin/python
.venv/bin/python -m pip --python "$tools" install --quiet --disable-pip-version-check -c scripts/constraints.txt \
  setuptools wheel build==1.6.1 twine==7.0.0

step="building dist/$name"
"$tools" -m build --no-isolation . >.venv-package/build.log || { tail -n 20 .venv-package/build.log >&2; exit 1; }
archive=dist/$name.tar.gz wheel=dist/$name-py3-none-any.whl

step="what the source archive holds"
if [[ -e .git ]]; then # all files of the repository, and no others
  made_by_setuptools="^(PKG-INFO|setup\.cfg|fastmlp\.egg-info/.*)$"
  diff <(git ls-files | LC_ALL=C sort) \
    <(tar -tzf "$archive" | sed "s|^$name/||" | grep -v '/$' | grep -vE "$made_by_setuptools" | LC_ALL=C sort) || {
    echo "Lines with <: add them to MANIFEST.in. Lines with >: commit them, or remove them." >&2
    exit 1
  }
fi

step="twine check"
"$tools" -m twine check --strict "$archive" "$wheel"

step="set-up by the source archive"
tar -xzf "$archive" -C .venv-package
if [[ -d .venv/system ]]; then # without root: the system's packages, which need not be downloaded twice
  mkdir ".venv-package/$name/.venv"
  cp -al .venv/system ".venv-package/$name/.venv/"
fi
FASTMLP_CHAINED='' ".venv-package/$name/scripts/setup.sh" --extras ''

step="the wheel, outside of the repository"
check=$PWD/scripts/package_check.py python=$PWD/.venv-package/$name/.venv/bin/python
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-index --force-reinstall "$wheel"
(cd / && "$python" -I "$check" "$version")
echo "Packages are sound after $SECONDS s: $archive, $wheel"
