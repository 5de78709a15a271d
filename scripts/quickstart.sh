#!/usr/bin/env bash
# From a bare machine to a trained MLP: set-up, Fashion-MNIST as betons, a pre-training run.
# Arguments go to recipes/pretrain.py, for example: scripts/quickstart.sh --cfg.epochs=5
set -euo pipefail
cd -P "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

step="set-up"
report() {
  local code=$?
  ((code == 0)) || echo "The quick start stopped at: $step (exit code $code)" >&2
}
trap report EXIT

FASTMLP_CHAINED='' scripts/setup.sh
step="writing Fashion-MNIST betons"
echo "Writing Fashion-MNIST as betons"
.venv/bin/python writers/fashion_mnist.py
step="training"
echo "Training"
.venv/bin/python recipes/pretrain.py --cfg.dataset=fashion_mnist "$@"
echo "Quick start done after $SECONDS s."
