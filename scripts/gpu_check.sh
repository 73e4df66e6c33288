#!/usr/bin/env bash
# Build, check and time the Triton kernels of the fused loss on the GPU of this machine, and write one JSON.
#
#   scripts/gpu_check.sh [OUTPUT.json]        default: docs/results/loss-gpu.json
#
# PYTHON picks the interpreter (default .venv/bin/python, else python3); it needs torch with CUDA and triton.
set -euo pipefail
cd "$(dirname "$0")/.."

output=${1:-docs/results/loss-gpu.json}
python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
export PYTHONPATH="$PWD:$PWD/tests/core${PYTHONPATH:+:$PYTHONPATH}"
unset TRITON_INTERPRET

capability=$("$python" -c '
import sys, torch
if not torch.cuda.is_available():
    sys.exit("no GPU found: run this where torch.cuda.is_available() is true")
major, minor = torch.cuda.get_device_capability()
print(10 * major + minor)')

echo "building for sm_$capability"
"$python" -m bebop.bench.triton_build --capability "$capability" --json "$parts/build.json"

echo "checking against the plain loss in float64"
"$python" tests/core/triton_parity.py > "$parts/parity.json"

for hidden in 1024 4096; do
  echo "timing at hidden size $hidden"
  "$python" -m bebop.bench.loss --device cuda --dtype bfloat16 --hidden "$hidden" --rounds 9 \
    --json "$parts/loss-$hidden.json"
done

mkdir -p "$(dirname "$output")"
"$python" - "$parts" "$output" <<'PYTHON'
import json
import sys
from pathlib import Path

parts, output = Path(sys.argv[1]), Path(sys.argv[2])
figures = {path.stem: json.loads(path.read_text()) for path in sorted(parts.glob("*.json"))}
output.write_text(json.dumps(figures, indent=2) + "\n")
failed = sorted(case for case, difference in figures["parity"].items() if difference)
print(f"wrote {output}")
sys.exit(f"these cases differ from the plain loss: {', '.join(failed)}" if failed else 0)
PYTHON
