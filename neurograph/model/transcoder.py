"""Transcoders: a module's output written by features of its input, as a model may run them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from neurograph.errors import OptionError
from neurograph.model.dictionary import Dictionary, activate
from neurograph.utils.checks import shown

__all__ = ["Transcoder"]


class Transcoder(nn.Module):
    """Stands in the place of a module, computes what it does, and has features inside.

    Its output is what the features of its input write, and the error: what the module itself makes
    of that input, less what the features wrote (Dunefsky et al. 2024, arXiv:2406.11944). Features
    are channels of the submodule ``features``; the error is the submodule ``error``, whose channels
    are those of the module. Who moves a feature moves the output along its row of the decoder; the
    error reads the input alone, and stays. Choose both in `layers=`, and the module's own layers
    are left out: ``layers=["*.features", "*.error", …]``, with ``groups={"*.error": 1}`` where the
    error is to be one neuron.

    Parameters
    ----------
    module : Module
        Takes one tensor ``[…, channels]``, the first of its arguments, and returns one.
    dictionary : Dictionary
        A transcoder (`Dictionary.transcodes`) between the two; see `load_dictionary`.

    Raises
    ------
    OptionError
        One of the two is something else; when it runs, if its widths are not those of the module.

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> mlp, x = nn.Linear(3, 2), torch.ones(1, 3)
    >>> found = Transcoder(mlp, Dictionary(torch.ones(3, 5), torch.ones(5, 2), transcodes=True))
    >>> torch.testing.assert_close(found(x), mlp(x))
    >>> found.features(x)
    tensor([[3., 3., 3., 3., 3.]])
    """

    def __init__(self, module: Any, dictionary: Any) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise OptionError(f"module={shown(module)} is no Module")
        if not isinstance(dictionary, Dictionary) or not dictionary.transcodes:
            raise OptionError(
                f"dictionary={shown(dictionary)} is no transcoder: pass a Dictionary with "
                "transcodes=True; an autoencoder of one layer goes into basis="
            )
        self.features = _Features(dictionary)
        features, channels = dictionary.decoder.shape
        self.decoder = nn.Linear(features, channels)
        self.decoder.weight = _fixed(dictionary.decoder.T)
        self.decoder.bias = _fixed(dictionary.decoder_bias)
        own = next((p for p in module.parameters() if p.is_floating_point()), None)
        if own is not None:
            self.to(own)
        self.error = _Error(module, self.features, self.decoder)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Add what the features write and the error."""
        found: Tensor = self.decoder(self.features(x)) + self.error(x, *args, **kwargs)
        return found


class _Features(nn.Module):
    """Features of what a module takes."""

    def __init__(self, dictionary: Dictionary) -> None:
        super().__init__()
        self.encoder, self.bias = _fixed(dictionary.encoder), _fixed(dictionary.encoder_bias)
        threshold = dictionary.threshold
        self.threshold = None if threshold is None else _fixed(threshold)
        self.activation, self.k = dictionary.activation, dictionary.k

    def forward(self, x: Tensor) -> Tensor:
        return self.of(x)

    def of(self, x: Tensor) -> Tensor:
        if x.shape[-1] != len(self.encoder):
            raise OptionError(
                f"the module takes {x.shape[-1]} channels, but its transcoder reads "
                f"{len(self.encoder)}"
            )
        return activate(x @ self.encoder + self.bias, self.activation, self.threshold, self.k)


class _Error(nn.Module):
    """What a module makes of its input, less what the features of that write."""

    def __init__(self, module: nn.Module, features: _Features, decoder: nn.Linear) -> None:
        super().__init__()
        self.module = module
        # No submodules: computed here again, never called, as moved features must not move it.
        self.written_by = (features, decoder)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        features, decoder = self.written_by
        whole: Any = self.module(x, *args, **kwargs)
        written = linear(features.of(x), decoder.weight, decoder.bias)
        if not isinstance(whole, Tensor) or whole.shape != written.shape:
            raise OptionError(
                f"the module returns {tuple(getattr(whole, 'shape', ())) or type(whole).__name__}, "
                f"but its transcoder writes {tuple(written.shape)}"
            )
        left: Tensor = whole - written
        return left


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.clone(), requires_grad=False)
