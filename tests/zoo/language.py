"""Hugging Face's transformers from tiny random configurations; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.zoo.network import Network, Site, ids, under, vectors
from tests.zoo.simple import settle

WORDS, TOKENS = 11, 3


def _transformers() -> Any:
    return pytest.importorskip("transformers")


def bert(seed: int) -> Network:
    """Sequences of different lengths with their mask."""
    library = _transformers()
    config = library.BertConfig(
        vocab_size=WORDS,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=6,
        max_position_embeddings=8,
        num_labels=3,
    )
    model = settle(library.BertForSequenceClassification(config), seed)
    embeddings, layer = "bert.embeddings", "bert.encoder.layer.0"
    sites = vectors("input.input_ids", "input.attention_mask")
    sites |= vectors(*under(embeddings, "word_embeddings token_type_embeddings"))
    sites |= vectors(*under(embeddings, "position_embeddings"), batch=None)
    sites |= vectors(*under(f"{layer}.attention.self", "query key value"))
    sites |= vectors(*under(layer, "attention.output.dense intermediate.dense output.dense"))
    sites |= vectors("bert.pooler.dense", "classifier")

    def inputs(rows: int, seed: int) -> dict[str, Any]:
        lengths = torch.arange(rows) % (TOKENS - 1) + 2
        mask = (torch.arange(TOKENS) < lengths[:, None]).long()
        return ids(TOKENS, WORDS, "input_ids")(rows, seed) | {"attention_mask": mask}

    return Network("bert", model, inputs, lambda output, _batch: output.logits[:, 2], sites)


def _next_word(output: Any, _batch: object) -> Tensor:
    """One word against another at the last position."""
    return output.logits[:, -1, 2] - output.logits[:, -1, 5]


def gpt2(seed: int) -> Network:
    library = _transformers()
    config = library.GPT2Config(
        vocab_size=WORDS,
        n_positions=8,
        n_embd=4,
        n_layer=2,
        n_head=2,
        n_inner=6,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = settle(library.GPT2LMHeadModel(config), seed)
    sites = vectors("input", "transformer.wte") | vectors("transformer.wpe", batch=None)
    for block in ("transformer.h.0", "transformer.h.1"):
        sites |= vectors(*under(block, "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj"))
    sites |= vectors("lm_head")
    return Network("gpt2", model, ids(TOKENS, WORDS, "input_ids"), _next_word, sites)


def llama(seed: int) -> Network:
    """Four heads share two keys and values."""
    library = _transformers()
    config = library.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=8,
        intermediate_size=6,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8,
        use_cache=False,
    )
    model = settle(library.LlamaForCausalLM(config), seed)
    sites = vectors("input", "model.embed_tokens")
    for layer in ("model.layers.0", "model.layers.1"):
        sites |= vectors(*under(f"{layer}.self_attn", "q_proj k_proj v_proj o_proj"))
        sites |= vectors(*under(f"{layer}.mlp", "gate_proj up_proj down_proj"))
    sites |= vectors("lm_head")
    return Network("llama", model, ids(TOKENS, WORDS, "input_ids"), _next_word, sites)


def t5(seed: int) -> Network:
    """Encoder and decoder; biases of positions are the same for all samples."""
    library = _transformers()
    config = library.T5Config(
        vocab_size=WORDS,
        d_model=4,
        d_kv=2,
        d_ff=6,
        num_layers=1,
        num_heads=2,
        relative_attention_num_buckets=4,
        use_cache=False,
        decoder_start_token_id=0,
    )
    model = settle(library.T5ForConditionalGeneration(config), seed)
    # Each stack has an embedding of its own, though their weights are one tensor.
    sites = vectors("input.input_ids", "input.decoder_input_ids")
    sites |= vectors("encoder.embed_tokens") | _t5_stack("encoder", cross=False)
    sites |= vectors("decoder.embed_tokens") | _t5_stack("decoder", cross=True)
    sites |= vectors("lm_head")
    inputs = ids(TOKENS, WORDS, "input_ids", "decoder_input_ids")
    return Network("t5", model, inputs, _next_word, sites)


def _t5_stack(stack: str, *, cross: bool) -> dict[str, Site]:
    parts = [f"{stack}.block.0.layer.{i}" for i in range(3)]
    own = f"{parts[0]}.SelfAttention"
    sites = vectors(*under(own, "q k v"))
    bias = f"{own}.relative_attention_bias"
    sites |= {bias: Site(bias, batch=None, moves=False)} | vectors(f"{own}.o")
    if cross:
        sites |= vectors(*under(f"{parts[1]}.EncDecAttention", "q k v o"))
    last = parts[2] if cross else parts[1]
    return sites | vectors(*under(f"{last}.DenseReluDense", "wi wo"))
