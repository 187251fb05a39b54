"""Families that are found from data: channels that do the same to the target, sample by sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor

from neurograph.errors import OptionError
from neurograph.model.basis import SMALLEST, Families, FoundBasis

__all__ = ["Clusters", "RandomFamilies"]


@dataclass(frozen=True)
class Clusters(FoundBasis[Families]):
    """Families of channels that do the same to the target, sample by sample.

    What channel c does in row r is its attribution, (value − mean) × gradient. Channels are as near
    to each other as the cosine of their attributions is near to 1, whatever their size; Ward's
    method (Ward 1963, *Hierarchical grouping to optimize an objective function*) joins the nearest
    into a tree, cut where there are `count` families. A larger count cuts the same tree elsewhere
    and divides these families; `Families.opened` opens one of them alone.

    Members whose values go opposite ways have opposite signs: those of the first principal
    component of the members' values, each times the root mean square of its gradient. The first
    member, which does most, has a plus sign; families come in the order of what they do, summed
    without signs. Channels that do nothing on these samples, as they are constant or have no
    gradient, are a family of their own, the last, where there is more than one.

    Examples
    --------
    >>> one, other = torch.tensor([[3.0, -3.0, 1.0, -1.0], [0.0, 1.0, -1.0, 0.0]]).double()
    >>> rows = torch.stack([one, other, -one], 1)  # the last goes the other way, and is read so
    >>> slopes = torch.tensor([[1.0, 1.0, -0.5]]).double().expand(4, 3)
    >>> Clusters(2).find(rows, slopes).members
    [{0: 1, 2: -1}, {1: 1}]
    """

    def find(self, rows: Tensor, slopes: Tensor, *, fewer: bool = False) -> Families:
        """Find them; of fewer channels than families, each alone if fewer will do."""
        count = _count(self, rows, fewer=fewer)
        done = _attributions(rows, slopes)
        sizes = done.norm(dim=0)
        silent = sizes <= SMALLEST * sizes.max()
        if silent.all():
            raise OptionError("no channel does anything to the target on these samples")
        profiles = done / sizes.where(~silent, 1)
        squared = (2 - 2 * profiles.T @ profiles).clamp_min(0)  # distances of unit vectors
        squared[silent[:, None] != silent] = len(sizes) ** 2  # beyond all that Ward's method joins
        squared[silent[:, None] & silent] = 0
        merges = _tree(squared.sqrt())
        whole = Families([dict.fromkeys(range(len(sizes)), 1)], merges)
        return _signed(whole.opened(0, count).units, rows, slopes, merges)


@dataclass(frozen=True)
class RandomFamilies(FoundBasis[Families]):
    """Families of equal sizes, drawn at random: what families that are found must do better than.

    Signs and order are as those of `Clusters`.

    Parameters
    ----------
    seed : int
        Which draw.
    """

    seed: int = 0

    def find(self, rows: Tensor, slopes: Tensor, *, fewer: bool = False) -> Families:
        """Draw them."""
        order = np.random.default_rng(self.seed).permutation(rows.shape[1])
        drawn = np.array_split(order, _count(self, rows, fewer=fewer))
        return _signed([part.tolist() for part in drawn], rows, slopes)


def _count(wanted: FoundBasis[Families], rows: Tensor, *, fewer: bool) -> int:
    """How many families there will be."""
    channels = rows.shape[1]
    if wanted.count > channels and not fewer:
        raise OptionError(
            f"there are {channels} channels, fewer than count={wanted.count} families: ask for "
            "fewer"
        )
    return min(wanted.count, channels)


def _attributions(rows: Tensor, slopes: Tensor) -> Tensor:
    """What each channel does to the target in each row, to first order, ``[rows, channels]``."""
    return (rows - rows.mean(0)) * slopes


def _tree(distances: Tensor) -> list[tuple[int, int]]:
    """Which nodes are joined, the nearest first."""
    count = len(distances)
    if count < 2:  # which SciPy refuses
        return []
    above = torch.triu_indices(count, count, offset=1)
    linked = scipy.cluster.hierarchy.linkage(distances[*above].numpy(), "ward")
    return [(int(a), int(b)) for a, b, *_ in linked]


def _signed(
    groups: Iterable[Sequence[int]],
    rows: Tensor,
    slopes: Tensor,
    merges: Sequence[tuple[int, int]] = (),
) -> Families:
    """Families of channels with signs: who does most comes first, of families and in each."""
    done = _attributions(rows, slopes).abs().sum(0)
    moves = (rows - rows.mean(0)) * slopes.square().mean(0).sqrt()
    families = []
    for group in sorted(groups, key=lambda group: (-float(done[list(group)].sum()), min(group))):
        channels = sorted(group, key=lambda channel: (-float(done[channel]), channel))
        own = moves[:, channels]
        along = torch.linalg.eigh(own.T @ own).eigenvectors[:, -1]
        turned = along * along[0] < -(SMALLEST**2)  # none is, where that is rounding
        families.append({c: -1 if t else 1 for c, t in zip(channels, turned.tolist(), strict=True)})
    return Families(families, merges)
