"""The parts of transformers that the examples use, offline and without its progress bars."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once, when transformers is imported

from transformers import (
    AutoTokenizer,
    BertModel,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    logging,
)

__all__ = ["AutoTokenizer", "BertModel", "LlamaForCausalLM", "PreTrainedTokenizerBase"]

logging.disable_progress_bar()
logging.set_verbosity_error()
