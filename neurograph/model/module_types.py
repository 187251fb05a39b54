"""Channel dimensions of modules, as far as their types say."""

from __future__ import annotations

from torch import nn

__all__ = ["has_channels_first", "has_channels_last", "is_convolution"]

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_ON_MAPS = frozenset(
    f"torch.nn.modules.{name}"
    for name in ("batchnorm", "conv", "instancenorm", "pixelshuffle", "pooling", "upsampling")
)
_CHANNELS_LAST = (
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.LayerNorm,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)
_CHANNELS_LAST_BY_NAME = ("Conv1D", "RMSNorm")  # of transformers


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is a convolution, whose channels lie along dimension 1."""
    return isinstance(module, _CONVOLUTIONS)


def has_channels_first(module: nn.Module) -> bool:
    """Whether a module by its type has channels along dimension 1, as convolutions have."""
    if isinstance(module, nn.PReLU):
        return module.num_parameters > 1
    known = any(kind.__module__ in _ON_MAPS for kind in type(module).__mro__)
    return known or isinstance(module, nn.GroupNorm | nn.LocalResponseNorm)


def has_channels_last(module: nn.Module) -> bool:
    """Whether a module by its type has channels in its last dimension."""
    names = (kind.__name__ for kind in type(module).__mro__)
    known = any(name.endswith(_CHANNELS_LAST_BY_NAME) for name in names)
    return known or isinstance(module, _CHANNELS_LAST)
