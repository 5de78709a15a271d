#!/usr/bin/env bash
# For whoever has a GPU: runs what only a GPU can show, and writes one report to send in: gpu-check.md. Arguments go to
# scripts/gpu_check.py (--help).
set -euo pipefail
cd -P "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
exec </dev/null
FASTMLP_CHAINED='' scripts/setup.sh --extras dev,plots,export,logging
exec .venv/bin/python scripts/gpu_check.py "$@"
