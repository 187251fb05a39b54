"""Small networks of many shapes, with random weights, for tests.

`simple` has those whose size and activation tests choose; `WHOLE` has one of every kind of
architecture, each with its layers spelt out, `NETWORKS` also other views of them.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.zoo.chosen import (
    bert_last,
    constants_half,
    gpt2_each,
    gpt2_heads,
    gpt2_last,
    llama_blocks,
    llama_heads,
    llama_norms,
    lstm_first,
    resnet_half,
    swin_half,
    t5_half,
    unet_half,
    vit_position,
)
from tests.zoo.convolution import convnext, densenet, mobilenet, resnet, unet
from tests.zoo.language import bert, gpt2, llama, t5
from tests.zoo.network import Network, Site
from tests.zoo.odd import (
    branching,
    constants,
    dataclass_output,
    layer_called_input,
    layers_called_inputs,
    named_output,
    parametrised,
    shared,
    tuple_output,
    weight_norm,
    weight_norm_hook,
)
from tests.zoo.patches import swin, vit
from tests.zoo.sequence import (
    attention_weights,
    encoder_masked,
    encoder_time_first,
    gru_state,
    lstm,
    lstm_cell,
    lstm_states,
)
from tests.zoo.simple import (
    ACTIVATIONS,
    MLP,
    Attention,
    BranchedCNN,
    ResidualMLP,
    Sample,
    SharedLayer,
    attention,
    branched_cnn,
    mlp,
    plain,
    residual_mlp,
    settle,
    shared_layer,
)

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "NETWORKS",
    "WHOLE",
    "Attention",
    "BranchedCNN",
    "Network",
    "ResidualMLP",
    "Sample",
    "SharedLayer",
    "Site",
    "attention",
    "branched_cnn",
    "mlp",
    "plain",
    "residual_mlp",
    "settle",
    "shared_layer",
]

_VISION = (resnet, densenet, mobilenet, convnext, unet, vit, swin)
_RECURRENT = (lstm, gru_state, lstm_states, lstm_cell)
_TORCH_TRANSFORMERS = (encoder_time_first, encoder_masked, attention_weights)
_WEIGHTS = (shared, weight_norm_hook, weight_norm, parametrised)
_SHAPES = (branching, named_output, tuple_output, dataclass_output, constants)
_NAMES = (layer_called_input, layers_called_inputs)
_LANGUAGE = (bert, gpt2, llama, t5)
_SOME = (resnet_half, unet_half, swin_half, t5_half, constants_half)
_CHOSEN = (gpt2_heads, llama_heads, llama_blocks, llama_norms)
_POSITIONS = (gpt2_each, gpt2_last, vit_position, lstm_first, bert_last)

_BY_KIND = (_VISION, _RECURRENT, _TORCH_TRANSFORMERS, _WEIGHTS, _SHAPES, _NAMES, _LANGUAGE)

WHOLE: dict[str, Callable[[int], Network]] = {b.__name__: b for kind in _BY_KIND for b in kind}
"""One network of every kind of architecture, all its layers searched, channel by channel."""

NETWORKS = WHOLE | {b.__name__: b for b in (*_SOME, *_CHOSEN, *_POSITIONS)}
"""Those, and some of them seen in other ways."""
