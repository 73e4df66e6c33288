#!/usr/bin/env bash
# Rebuild the shipped `tiny` policy from nothing: 30 to 80 minutes on one core; interrupted, it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"

[ -d build/tiny-init ] || python -m bebop.training.tiny init build/tiny-init
[ -d build/tiny-sft ] || bebop train-sft configs/train-sft-tiny.yaml
[ -d build/tiny ] || bebop train-mtp configs/train-mtp-tiny.yaml policy=build/tiny-sft output=build/tiny run=runs/tiny-head
python -m bebop.training.tiny ship build/tiny runs/tiny-sft runs/tiny-head
echo "the new weights are in bebop/models/assets/tiny; commit them with the figures of \`bebop eval-policy tiny\`"
