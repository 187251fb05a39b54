"""Dictionaries: features that an encoder reads from a layer and a decoder writes back, sparsely."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neurograph.errors import OptionError
from neurograph.model.basis import Basis
from neurograph.utils.checks import one_of, shown, whole

__all__ = ["ACTIVATIONS", "Dictionary", "Quality", "activate"]

ACTIVATIONS = ("relu", "jumprelu", "topk")


class Quality(NamedTuple):
    """How well a dictionary writes some rows.

    Attributes
    ----------
    explained : float
        Share of their variance that features reconstruct: 1 − Σ|x − x̂|² / Σ|x − mean|².
    active : float
        Mean number of features that are not 0 (L0).
    """

    explained: float
    active: float


@dataclass(frozen=True, eq=False, repr=False)
class Dictionary(Basis):
    """Features of a sparse autoencoder, and as the last neuron the remainder: its error.

    A row x has the features f = activation((x − decoder_bias) encoder + encoder_bias), the
    reconstruction f decoder + decoder_bias, and what that leaves over, x less it, the error term of
    sparse feature circuits (Marks et al. 2024, arXiv:2403.19647). Who moves a feature moves the row
    along its row of the decoder; no other feature and no error moves with it. Where all of them are
    0, the row is decoder_bias.

    Parameters
    ----------
    encoder : Tensor or ndarray, [channels, features]
    decoder : Tensor or ndarray, [features, channels]
    encoder_bias : Tensor or ndarray, [features], optional
    decoder_bias : Tensor or ndarray, [channels], optional
        0 where they are not given.
    activation : {"relu", "jumprelu", "topk"}
        ``jumprelu`` keeps what is above both 0 and `threshold` (Rajamanoharan et al. 2024,
        arXiv:2407.14435), ``topk`` of every row the `k` largest that are above 0 (Gao et al. 2024,
        arXiv:2406.04093).
    threshold : Tensor or ndarray, [features], optional
    k : int, optional
    subtract_decoder_bias : bool
        Whether it is subtracted before the encoder; never in a transcoder.
    transcodes : bool
        Whether it is a transcoder, which reads a module's input and writes its output, perhaps of
        another width (Dunefsky et al. 2024, arXiv:2406.11944): no basis, but for `Transcoder`.

    Raises
    ------
    OptionError
        Shapes do not fit, a number is not finite, or the activation lacks what it needs.

    Examples
    --------
    >>> basis = Dictionary([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 0.5]])
    >>> basis.coordinates(torch.tensor([3.0, 4.0]))  # of the second, half is reconstructed
    tensor([3., 4., 0., 2.])
    """

    encoder: Any
    decoder: Any
    encoder_bias: Any = None
    decoder_bias: Any = None
    activation: str = "relu"
    threshold: Any = None
    k: int | None = None
    subtract_decoder_bias: bool = True
    transcodes: bool = False
    kind = "feature"

    def __post_init__(self) -> None:
        encoder, decoder = (_read(getattr(self, n), n, 2) for n in ("encoder", "decoder"))
        (reads, features), writes = encoder.shape, decoder.shape[1]
        if len(decoder) != features:
            raise OptionError(
                f"encoder is {_size(encoder)} and decoder {_size(decoder)}: pass [channels, "
                "features] and [features, channels]"
            )
        found: dict[str, Any] = {"encoder": encoder, "decoder": decoder}
        for name, length in [("encoder_bias", features), ("decoder_bias", writes)]:
            given = getattr(self, name)
            bias = encoder.new_zeros(length) if given is None else _read(given, name, 1)
            found[name] = _of_length(bias, name, length)
        one_of(self.activation, "activation", ACTIVATIONS)
        if (self.activation == "jumprelu") != (self.threshold is not None):
            raise OptionError(
                f"activation={self.activation!r} and threshold={shown(self.threshold)}: 'jumprelu' "
                "has one for each feature, and nothing else has"
            )
        if self.threshold is not None:
            threshold = _read(self.threshold, "threshold", 1)
            found["threshold"] = _of_length(threshold, "threshold", features)
        if (self.activation == "topk") != (self.k is not None):
            raise OptionError(
                f"activation={self.activation!r} and k={shown(self.k)}: 'topk' has one, and "
                "nothing else has"
            )
        if self.k is not None:
            found["k"] = whole(self.k, f"of {features} features k", least=1, most=features)
        for name in ("subtract_decoder_bias", "transcodes"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name}={shown(getattr(self, name))} is neither True nor False")
        if reads != writes and not self.transcodes:
            raise OptionError(
                f"it reads {reads} channels and writes {writes}: only a transcoder may, which says "
                "so by transcodes=True"
            )
        for name, value in found.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        features, channels = self.decoder.shape
        kind = "Transcoder dictionary" if self.transcodes else "Dictionary"
        return f"{kind}: {features} features of {channels} channels, {self.activation}"

    @property
    def channels(self) -> int:
        """How many channels a layer has that it fits."""
        if self.transcodes:
            raise OptionError(
                "a transcoder reads one layer and writes another, so it is no basis of either: put "
                "Transcoder(module, dictionary) in the place of the module"
            )
        return len(self.encoder)

    @property
    def units(self) -> list[list[int]]:
        """One coordinate for each feature, and one for each channel of the remainder."""
        count, channels = self.decoder.shape
        return [[i] for i in range(count)] + [list(range(count, count + channels))]

    @property
    def has_remainder(self) -> bool:
        """It has one."""
        return True

    def features(self, channels: Tensor) -> Tensor:
        """Features of rows, from ``[…, channels]`` to ``[…, features]``, in the rows' dtype."""
        own = self._like(channels.dtype, channels.device)
        if self.subtract_decoder_bias and not self.transcodes:
            channels = channels - own["decoder_bias"]
        before = channels @ own["encoder"] + own["encoder_bias"]
        return activate(before, self.activation, own.get("threshold"), self.k)

    def reconstructed(self, features: Tensor) -> Tensor:
        """Rows that features make, from ``[…, features]`` to ``[…, channels]``."""
        own = self._like(features.dtype, features.device)
        return features @ own["decoder"] + own["decoder_bias"]

    def coordinates(self, channels: Tensor) -> Tensor:
        """Features, then what their reconstruction leaves over."""
        features = self.features(channels)
        return torch.cat([features, channels - self.reconstructed(features)], -1)

    def from_coordinates(self, coordinates: Tensor) -> Tensor:
        """Sum of the reconstruction and the remainder."""
        count = self.decoder.shape[0]
        return self.reconstructed(coordinates[..., :count]) + coordinates[..., count:]

    def quality(self, rows: Any) -> Quality:
        """Say how well it writes some rows.

        Parameters
        ----------
        rows : Tensor or ndarray, [..., channels]
            What a layer passes on.

        Raises
        ------
        OptionError
            They have other channels, or do not vary.

        Examples
        --------
        >>> Dictionary([[1.0], [0.0]], [[1.0, 0.0]]).quality([[2.0, 1.0], [0.0, -1.0]])
        Quality(explained=0.5, active=0.5)
        """
        values = torch.as_tensor(rows).detach()
        values = values if values.is_floating_point() else values.double()
        if values.dim() < 2 or values.shape[-1] != self.channels:
            raise OptionError(
                f"rows have shape {tuple(values.shape)}: pass [..., {self.channels}] channels"
            )
        values = values.flatten(0, -2)
        features = self.features(values)
        left = (values - self.reconstructed(features)).double().square().sum()
        spread = (values.double() - values.double().mean(0)).square().sum()
        if not spread > 0:
            raise OptionError("the rows do not vary: no share of their variance can be stated")
        return Quality(float(1 - left / spread), float((features != 0).sum() / len(values)))

    def arrays(self) -> Mapping[str, Tensor]:
        """All its tensors, and its settings as numbers."""
        names = ("encoder", "decoder", "encoder_bias", "decoder_bias", "threshold")
        found = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        flags = self.subtract_decoder_bias, self.transcodes
        settings = torch.tensor([ACTIVATIONS.index(self.activation), self.k or 0, *flags])
        return found | {"settings": settings}

    def _like(self, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """Return the tensors as rows of a dtype on a device need them."""
        key = dtype, device
        if key not in self._copies:
            tensors = {name: t for name, t in self.arrays().items() if t.is_floating_point()}
            self._copies[key] = {name: t.to(device, dtype) for name, t in tensors.items()}
        return self._copies[key]

    @functools.cached_property
    def _copies(self) -> dict[tuple[torch.dtype, torch.device], dict[str, Tensor]]:
        return {}


def activate(before: Tensor, activation: str, threshold: Tensor | None, k: int | None) -> Tensor:
    """Features from what the encoder gives, ``[…, features]``; see `Dictionary`."""
    features = before.relu()
    if threshold is not None:
        features = features * (before > threshold)
    if k is not None:
        largest, which = features.topk(k, dim=-1)
        features = torch.zeros_like(features).scatter(-1, which, largest)
    return features


def _read(values: Any, name: str, dims: int) -> Tensor:
    """Read a tensor of finite numbers; a copy, of its own dtype where that is floating point."""
    try:
        dtype = None if hasattr(values, "dtype") else torch.float64
        found = torch.as_tensor(values, dtype=dtype).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise OptionError(f"{name}={shown(values)} is no array of numbers") from None
    if found.is_complex() or found.dtype == torch.bool:
        raise OptionError(f"{name} is of {found.dtype}: pass real numbers")
    if found.dim() != dims or not found.numel():
        raise OptionError(f"{name} has shape {tuple(found.shape)}: pass {dims} dimensions")
    if not found.isfinite().all():
        raise OptionError(f"{name} holds NaN or infinity")
    return found if found.is_floating_point() else found.double()


def _of_length(values: Tensor, name: str, length: int) -> Tensor:
    if len(values) != length:
        raise OptionError(f"{name} has {len(values)} numbers, but {length} are needed")
    return values


def _size(values: Tensor) -> str:
    return "×".join(map(str, values.shape))
