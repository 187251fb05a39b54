"""Two-sample statistics: significance tests, effect sizes, divergences, of many neurons at once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

__all__ = [
    "SHAPIRO_MOST",
    "Ranks",
    "compare_two",
    "divergences",
    "effect_sizes",
    "kruskal",
    "moments",
]

TestColumns = dict[str, np.ndarray]
"""One entry for each neuron."""

SHAPIRO_MOST = 5000  # scipy's p-values are not accurate beyond
_EXACT_MOST = 8  # as scipy chooses: exact p-values of Mann-Whitney for samples as small as this


def compare_two(a: np.ndarray, b: np.ndarray, alpha: float) -> TestColumns:
    """Compare two samples, ``[samples, neurons]`` each, neuron by neuron.

    Returns
    -------
    dict of str to ndarray, [neurons]
        The columns of `separation` from ``mean`` to ``variance_ratio``, without ``q``.
    """
    # A neuron's values side by side: sorting them is most of the work, and three times as fast so.
    a, b = (np.ascontiguousarray(x.T, dtype=np.float64) for x in (a, b))
    ranks = Ranks.of(a, b)
    (mean, std), (mean_rest, std_rest) = moments(a), moments(b)
    found: TestColumns = {"mean": mean, "mean_rest": mean_rest, "std": std, "std_rest": std_rest}
    found |= {"shapiro_p": _shapiro(a), "shapiro_p_rest": _shapiro(b)}
    found["normal"] = (found["shapiro_p"] >= alpha) & (found["shapiro_p_rest"] >= alpha)
    found |= _location(a, b, ranks, found["normal"])
    found |= effect_sizes(ranks, (mean, std), (mean_rest, std_rest))
    found["kl"], found["kl_rest"], found["js"] = divergences(ranks)
    return found | _shapes(a, b, found, alpha)


def _shapiro(values: np.ndarray) -> np.ndarray:
    """P-values of Shapiro & Wilk (1965) that values are normal; 0 where they are constant.

    Of the first 5,000 samples of ``[neurons, samples]``: there the approximation ends.
    """
    few = values[:, :SHAPIRO_MOST]
    varied = ~_never_varies(few)
    p = np.zeros(len(few))
    if varied.any():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            p[varied] = scipy.stats.shapiro(few[varied], axis=1).pvalue
    return p


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks of two samples among both, from 1, equal values sharing their mean rank.

    Attributes
    ----------
    first, second : ndarray, [neurons, samples]
    ties : ndarray of float64, [neurons]
        Sum of t³ − t over groups of t equal values.
    """

    first: np.ndarray
    second: np.ndarray
    ties: np.ndarray

    @staticmethod
    def of(a: np.ndarray, b: np.ndarray) -> Ranks:
        """Rank ``[neurons, samples]`` values; like `scipy.stats.rankdata`, but faster."""
        both = np.concatenate([a, b], axis=1)
        order = both.argsort(axis=1)
        ordered = np.take_along_axis(both, order, axis=1)
        places = np.broadcast_to(np.arange(1.0, both.shape[1] + 1), both.shape)
        ties = np.zeros(len(both))
        tied = (ordered[:, 1:] == ordered[:, :-1]).any(1)
        if tied.any():
            places = places.copy()
            for i in np.flatnonzero(tied):
                _, group, sizes = np.unique(ordered[i], return_inverse=True, return_counts=True)
                places[i] = (sizes.cumsum() - (sizes - 1) / 2)[group]
                ties[i] = (sizes.astype(float) ** 3 - sizes).sum()
        ranks = np.empty_like(both)
        np.put_along_axis(ranks, order, places, axis=1)
        return Ranks(ranks[:, : a.shape[1]], ranks[:, a.shape[1] :], ties)

    @property
    def sizes(self) -> tuple[int, int]:
        """How many samples there are of each."""
        return self.first.shape[1], self.second.shape[1]

    @property
    def constant(self) -> np.ndarray:
        """Which neurons have one value in all samples."""
        total = float(sum(self.sizes))
        found: np.ndarray = self.ties == total**3 - total
        return found

    @property
    def u(self) -> np.ndarray:
        """Mann and Whitney's U: pairs in which the first sample is larger; equal ones are half."""
        n = self.sizes[0]
        u: np.ndarray = self.first.sum(1) - n * (n + 1) / 2
        return u


def _location(a: np.ndarray, b: np.ndarray, ranks: Ranks, normal: np.ndarray) -> TestColumns:
    """Welch's t where both samples look normal, else Mann & Whitney's U (1947)."""
    statistic, p = np.zeros(len(normal)), np.ones(len(normal))
    test = np.where(ranks.constant, "constant", np.where(normal, "welch", "mann-whitney"))
    some = test == "welch"
    if some.any():
        done = scipy.stats.ttest_ind(a[some], b[some], axis=1, equal_var=False)
        statistic[some], p[some] = done.statistic, done.pvalue
    some = test == "mann-whitney"
    statistic[some], p[some] = ranks.u[some], _u_p_values(ranks)[some]
    exact = some & (ranks.ties == 0) & (min(ranks.sizes) <= _EXACT_MOST)
    if exact.any():
        p[exact] = scipy.stats.mannwhitneyu(a[exact], b[exact], axis=1, method="exact").pvalue
    return {"test": test, "statistic": statistic, "p": p}


def _u_p_values(ranks: Ranks) -> np.ndarray:
    """Two-sided p-values by the normal approximation, corrected for ties and for continuity."""
    n, m = ranks.sizes
    total = n + m
    spread = np.sqrt(n * m / 12 * (total + 1 - ranks.ties / (total * (total - 1))))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (np.abs(ranks.u - n * m / 2) - 0.5) / spread
    return np.where(spread > 0, np.clip(2 * scipy.stats.norm.sf(z), 0, 1), 1.0)


Moments = tuple[np.ndarray, np.ndarray]
"""Mean and standard deviation, ``[neurons]`` each."""


def moments(values: np.ndarray) -> Moments:
    """Mean and standard deviation of ``[neurons, samples]`` values; 0 of what does not vary."""
    samples = values.shape[1]
    std = values.std(1, ddof=1) if samples > 1 else np.zeros(len(values))
    std[_never_varies(values)] = 0  # rounding is no variation
    return values.mean(1), std


def effect_sizes(ranks: Ranks, first: Moments, second: Moments) -> TestColumns:
    """Cohen's d and AUC of two samples."""
    n, m = ranks.sizes
    gap = np.where(ranks.constant, 0.0, first[0] - second[0])
    pooled = np.sqrt(((n - 1) * first[1] ** 2 + (m - 1) * second[1] ** 2) / (n + m - 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        d = np.where(gap == 0, 0.0, gap / pooled)
    return {"cohens_d": d, "auc": ranks.u / (n * m)}


def _never_varies(values: np.ndarray) -> np.ndarray:
    found: np.ndarray = (values == values[:, :1]).all(1)
    return found


def divergences(ranks: Ranks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kullback-Leibler divergences of two samples, both ways, and Jensen-Shannon's, in nats.

    Of histograms in ``round(2 · n ** (1/3))`` bins (Rice's rule for the smaller sample) that hold
    equally much of both samples together, with half a count added to each bin, so that they are
    finite. The same distribution in both gives about ``(bins − 1) / 2 · (1/n₁ + 1/n₂)`` instead of
    0, and no transformation that keeps the order changes them.

    Returns
    -------
    kl, kl_rest, js : ndarray, [neurons]
        KL(first ‖ second), KL(second ‖ first), and JS, which is at most ln 2.
    """
    bins = max(2, round(2 * min(ranks.sizes) ** (1 / 3)))
    neurons, total = len(ranks.first), sum(ranks.sizes)
    shares = []
    for part in (ranks.first, ranks.second):
        place = ((part - 0.5) * (bins / total)).astype(np.int64)
        place += bins * np.arange(neurons)[:, None]
        counts = np.bincount(place.ravel(), minlength=bins * neurons).reshape(-1, bins)
        shares.append((counts + 0.5) / (part.shape[1] + 0.5 * bins))
    p, q = shares
    middle = (p + q) / 2

    def divergence(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        total: np.ndarray = (x * np.log(x / y)).sum(1)
        return total

    return divergence(p, q), divergence(q, p), (divergence(p, middle) + divergence(q, middle)) / 2


def _shapes(a: np.ndarray, b: np.ndarray, found: TestColumns, alpha: float) -> TestColumns:
    """Compare what is left once mean and spread are taken out, by Kolmogorov & Smirnov's test.

    Where the shapes agree, shift and ratio say all there is to say.
    """
    p = np.zeros(len(a))
    varied = (found["std"] > 0) & (found["std_rest"] > 0)
    if varied.any():
        mean, mean_rest, std, std_rest = (
            found[name][varied, None] for name in ("mean", "mean_rest", "std", "std_rest")
        )
        x, y = (a[varied] - mean) / std, (b[varied] - mean_rest) / std_rest
        p[varied] = _kolmogorov_smirnov(x, y)
    agree = p >= alpha
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (found["std"] / found["std_rest"]) ** 2
    return {
        "shape_p": p,
        "mean_shift": np.where(agree, found["mean"] - found["mean_rest"], np.nan),
        "variance_ratio": np.where(agree, ratio, np.nan),
    }


def _kolmogorov_smirnov(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """P-values of the largest gap between two distribution curves.

    By Kolmogorov's limit with Stephens' correction for small samples (1970, *J. R. Stat. Soc. B*
    32): a hundredth from the exact ones for hundreds of samples, some hundredths for five.
    """
    n, m = x.shape[1], y.shape[1]
    both = np.concatenate([x, y], axis=1)
    order = both.argsort(axis=1)
    apart = np.where(order < n, 1 / n, -1 / m).cumsum(1)
    ordered = np.take_along_axis(both, order, axis=1)
    apart[:, :-1][ordered[:, 1:] == ordered[:, :-1]] = 0  # curves are compared behind ties
    root = np.sqrt(n * m / (n + m))
    p: np.ndarray = scipy.stats.kstwobign.sf((root + 0.12 + 0.11 / root) * np.abs(apart).max(1))
    return p


def kruskal(groups: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """H and p-values of Kruskal & Wallis (1952) over several classes; 0 and 1 for constants."""
    both = np.concatenate(groups)
    varied = (both != both[:1]).any(0)
    h, p = np.zeros(both.shape[1]), np.ones(both.shape[1])
    if varied.any():
        done = scipy.stats.kruskal(
            *(group[:, varied].astype(np.float64) for group in groups), axis=0
        )
        h[varied], p[varied] = done.statistic, done.pvalue
    return h, p
