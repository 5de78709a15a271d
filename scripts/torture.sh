#!/usr/bin/env bash
# What takes too long for every change: kills writers FASTMLP_KILLS times (default 50) and training runs 20 times; the
# loader's memory over FASTMLP_BATCHES batches (default 5,000); FASTMLP_MUTATIONS mutated betons (default 2,000), weights
# (1,000) and images (1,500 of each form); the largest released model's logits on 10,000 inputs; the GPU's kernels,
# compiled for cards that are not there; the commands of the documentation that are marked slow. Arguments go to
# pytest. No stacks are dumped after a minute, as in CI: these tests are longer.
set -euo pipefail
cd -P "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
scripts/setup.sh --extras dev,plots,export,logging
pytest() { .venv/bin/python -m pytest -o faulthandler_timeout=0 "$@"; }
FASTMLP_KILLS=${FASTMLP_KILLS:-50} pytest tests/beton -k killed "$@"
FASTMLP_KILLS=${FASTMLP_KILLS:-20} pytest tests/training/test_resume.py -k killed "$@"
FASTMLP_BATCHES=${FASTMLP_BATCHES:-5000} pytest tests/loader/test_processes.py -k memory "$@"
FASTMLP_MUTATIONS=${FASTMLP_MUTATIONS:-2000} pytest tests/beton/test_mutations.py "$@"
FASTMLP_MUTATIONS=${FASTMLP_MUTATIONS:-1000} pytest tests/models/test_weights.py -k mutated "$@"
FASTMLP_MUTATIONS=${FASTMLP_MUTATIONS:-1500} pytest tests/sources/test_mutated_images.py "$@"
FASTMLP_KILLS=1 pytest tests/models/test_weights.py -k largest -s "$@"
FASTMLP_KILLS=1 pytest tests/test_public_interface.py -k ffcv "$@"
FASTMLP_DOCS=all pytest tests/test_docs_commands.py "$@"

dry_run() { .venv/bin/python benchmarks/dry_run.py "$@" >/dev/null; }
failed=()
for card in T4 A5000 4090 A100 H100; do
  dry_run --card "$card" --case B_2-Wi_256,32,100,2048 --interpret || failed+=("$card: exit code $?")
done
for case in B_12-Wi_1024,64,11230,16384 B_6-Wi_256,64,11230,16384; do
  dry_run --card A5000 --case "$case" || failed+=("$case: exit code $?")
done
((!${#failed[@]})) || { printf 'dry run of %s\n' "${failed[@]}" >&2; exit 1; }
