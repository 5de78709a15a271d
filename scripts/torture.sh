#!/usr/bin/env bash
# What takes too long for every change: kills writers FASTMLP_KILLS times (default 50) and training runs 20 times;
# FASTMLP_MUTATIONS (default 1,000) damaged files of weights; the largest released model's logits on 10,000 inputs; the
# GPU's kernels, compiled for cards that are not there. Arguments go to pytest, which dumps no stacks after a minute here.
set -euo pipefail
cd -P "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
scripts/setup.sh --extras dev,plots,export,logging
run() { .venv/bin/python -m pytest -o faulthandler_timeout=0 "$@"; }
FASTMLP_KILLS=${FASTMLP_KILLS:-50} run tests/beton -k killed "$@"
FASTMLP_KILLS=${FASTMLP_KILLS:-20} run tests/training/test_resume.py -k killed "$@"
FASTMLP_KILLS=1 run tests/models/test_weights.py -k largest -s "$@"
FASTMLP_MUTATIONS=${FASTMLP_MUTATIONS:-1000} run tests/models/test_weights.py -k mutated "$@"

dry_run() { .venv/bin/python benchmarks/dry_run.py "$@" >/dev/null; }
failed=()
for card in T4 A5000 4090 A100 H100; do
  dry_run --card "$card" --case B_2-Wi_256,32,100,2048 --interpret || failed+=("$card: exit code $?")
done
for case in B_12-Wi_1024,64,11230,16384 B_6-Wi_256,64,11230,16384; do
  dry_run --card A5000 --case "$case" || failed+=("$case: exit code $?")
done
((!${#failed[@]})) || { printf 'dry run of %s\n' "${failed[@]}" >&2; exit 1; }
