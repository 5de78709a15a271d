#!/usr/bin/env bash
# Everything that must hold before a change goes in: lint, types, tests: on all cores, then one by one those
# marked serial. Arguments go to pytest.
set -euo pipefail
cd -P "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
exec </dev/null
export CI=true
unset PYTHONDONTWRITEBYTECODE # or each of the tests' hundred processes compiles all modules anew

FASTMLP_CHAINED='' scripts/setup.sh --extras dev,plots,export,logging
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy fastmlp

none=5 codes=()                      # pytest's exit code if it finds no test; the codes of both calls
pytest() {
  local code=0
  .venv/bin/python -m pytest "$@" || code=$?
  codes+=("$code")
  ((code == 0 || code == none)) || exit "$code"
}
pytest --numprocesses "$(nproc)" --dist worksteal --serial without "$@"
pytest --serial only "$@"
[[ ${codes[*]} != "$none $none" ]] || exit "$none"
