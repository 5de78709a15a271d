#!/usr/bin/env bash
# Everything that must hold before a change goes in: lint, types, tests. Arguments go to pytest.
set -euo pipefail
cd -P "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
exec </dev/null
export CI=true

FASTMLP_CHAINED='' scripts/setup.sh --extras dev,plots,export,logging
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy fastmlp
.venv/bin/python -m pytest "$@"
