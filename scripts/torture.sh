#!/usr/bin/env bash
# What takes too long for every change: kills writers FASTMLP_KILLS times (default 50) and training runs 20 times; the
# largest released model's logits on 10,000 inputs.
# Arguments go to pytest.
set -euo pipefail
cd -P "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
scripts/setup.sh --extras dev,plots,export,logging
FASTMLP_KILLS=${FASTMLP_KILLS:-50} .venv/bin/python -m pytest tests/beton -k killed "$@"
FASTMLP_KILLS=${FASTMLP_KILLS:-20} .venv/bin/python -m pytest tests/training/test_resume.py -k killed "$@"
FASTMLP_KILLS=1 .venv/bin/python -m pytest tests/models/test_weights.py -k largest -s "$@"
