"""Keep-rules: which neurons a search keeps, given the effects of all neurons of a layer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from neurograph.errors import OptionError
from neurograph.utils.checks import a_share, is_number, shown, whole

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "SENSE",
    "SIGNS",
    "Above",
    "Keep",
    "Share",
    "Sign",
    "TopK",
    "TopQuantile",
    "as_keep",
    "select",
    "sign_of",
]

Sign = Literal["positive", "negative"]
SIGNS: tuple[Sign, Sign] = ("positive", "negative")
SENSE: dict[Sign, int] = {"positive": 1, "negative": -1}


def sign_of(effect: float) -> str:
    """Name the sign of an effect: ``positive``, ``negative``, or ``zero``.

    Examples
    --------
    >>> sign_of(-0.5), sign_of(0.0)
    ('negative', 'zero')
    """
    return "positive" if effect > 0 else "negative" if effect < 0 else "zero"


@dataclass(frozen=True)
class TopQuantile:
    """Keep effects at or beyond this quantile of the effects of their sign."""

    level: float = 0.95

    def __post_init__(self) -> None:
        level = a_share(self.level, "keep: quantile level", zero=True, one=True)
        object.__setattr__(self, "level", level)


@dataclass(frozen=True)
class TopK:
    """Keep this many effects of each sign."""

    count: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", whole(self.count, "keep: top", least=1))


@dataclass(frozen=True)
class Share:
    """Keep the fewest effects that add up to this share of all effects of their sign."""

    share: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", a_share(self.share, "keep: share", one=True))


@dataclass(frozen=True)
class Above:
    """Keep effects of at least this size, in units of the target.

    The threshold of automatic circuit discovery (Conmy et al. 2023, arXiv:2304.14997).
    """

    size: float

    def __post_init__(self) -> None:
        if not is_number(self.size) or not self.size > 0:
            raise OptionError(f"keep: above {shown(self.size)} is not above 0")
        object.__setattr__(self, "size", float(self.size))


Keep = TopQuantile | TopK | Share | Above


def as_keep(keep: str | Keep) -> Keep:
    """Read a selection rule as users write it.

    Examples
    --------
    >>> as_keep("top:20")
    TopK(count=20)
    >>> as_keep("quantile:0.9"), as_keep("share:0.8")
    (TopQuantile(level=0.9), Share(share=0.8))
    """
    if isinstance(keep, Keep):
        return keep
    match = re.fullmatch(r"(quantile|top|share|above):([\d.e-]+)", str(keep).strip())
    try:
        if match and match.group(1) == "quantile":
            return TopQuantile(float(match.group(2)))
        if match and match.group(1) == "share":
            return Share(float(match.group(2)))
        if match and match.group(1) == "above":
            return Above(float(match.group(2)))
        if match:
            return TopK(int(match.group(2)))
    except OptionError:
        raise
    except ValueError:
        pass
    raise OptionError(
        f"keep={shown(keep)} is no rule: write 'quantile:0.95', 'top:20', 'share:0.8' or "
        "'above:0.1'"
    )


def select(effect: Tensor, stderr: Tensor, sign: Sign, keep: Keep) -> list[int]:
    """Indices of the neurons to keep, strongest first.

    An effect counts only if it is farther from zero than its standard error; where that is
    unknown (NaN: a single sample), if it is not zero.

    Examples
    --------
    >>> import torch
    >>> effect = torch.tensor([0.3, -0.2, 0.1, 0.0, 0.9])
    >>> select(effect, torch.zeros(5), "positive", TopK(2))
    [4, 0]
    >>> select(effect, torch.zeros(5), "negative", TopK(2))
    [1]
    """
    # NumPy's small operations are several times quicker than torch's.
    values, errors = effect.cpu().numpy(), stderr.cpu().numpy()
    strength = SENSE[sign] * values
    order = np.argsort(-strength, kind="stable")
    order = order[: np.count_nonzero(strength > 0)]
    signed = strength[order]
    if not signed.size:
        return []
    certain = strength > np.nan_to_num(errors, nan=0.0).clip(min=0)
    order = order[certain[order]]
    if isinstance(keep, TopK):
        order = order[: keep.count]
    elif isinstance(keep, Above):
        order = order[strength[order] >= keep.size]
    elif isinstance(keep, TopQuantile):
        # Linear interpolation, as np.quantile has it; `signed` is sorted already.
        place = (1 - keep.level) * (len(signed) - 1)
        threshold = np.interp(place, np.arange(len(signed)), signed)
        order = order[strength[order] >= threshold]
    else:
        before = strength[order].cumsum() - strength[order]
        order = order[before < keep.share * signed.sum() * (1 - 1e-12)]
    kept: list[int] = order.tolist()
    return kept
