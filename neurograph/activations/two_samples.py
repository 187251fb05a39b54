"""Whether two classes differ at a neuron: tests, effect sizes, divergences, of many at once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from scipy import stats

__all__ = ["compare_two", "divergences", "kruskal", "shapiro"]

Columns = dict[str, np.ndarray]
"""One entry for each neuron."""

_SHAPIRO_MOST = 5000  # scipy's p-values are not accurate beyond
_EXACT_MOST = 8  # as scipy chooses: exact p-values of Mann-Whitney for samples as small as this


def compare_two(a: np.ndarray, b: np.ndarray, alpha: float) -> Columns:
    """Compare two samples, ``[samples, neurons]`` each, neuron by neuron.

    Returns
    -------
    dict of str to ndarray, [neurons]
        The columns of `separation` from ``mean`` to ``variance_ratio``, without ``q``.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    found: Columns = {"mean": a.mean(0), "mean_rest": b.mean(0)}
    found |= {"std": a.std(0, ddof=1), "std_rest": b.std(0, ddof=1)}
    constant = [(x == x[:1]).all(0) for x in (a, b)]
    found["std"][constant[0]] = found["std_rest"][constant[1]] = 0  # rounding is no variation
    found |= {"shapiro_p": shapiro(a), "shapiro_p_rest": shapiro(b)}
    found["normal"] = (found["shapiro_p"] >= alpha) & (found["shapiro_p_rest"] >= alpha)
    equal = constant[0] & constant[1] & (a[0] == b[0])
    found |= _location(a, b, found["normal"], equal)
    found |= _effect_sizes(a, b, found, equal)
    found["kl"], found["kl_rest"], found["js"] = divergences(a, b)
    return found | _shapes(a, b, found, alpha)


def shapiro(values: np.ndarray) -> np.ndarray:
    """P-values of Shapiro & Wilk (1965) that values are normal; 0 where they are constant.

    Of the first 5,000 samples: there the approximation ends. It calls whatever varies by rounding
    alone normal or not as it happens.
    """
    few = values[:_SHAPIRO_MOST]
    constant = (few == few[:1]).all(0)
    p = np.zeros(few.shape[1])
    if not constant.all():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            p[~constant] = stats.shapiro(few[:, ~constant], axis=0).pvalue
    return p


def _location(a: np.ndarray, b: np.ndarray, normal: np.ndarray, equal: np.ndarray) -> Columns:
    """Welch's t where both samples look normal, else Mann & Whitney's U (1947)."""
    statistic, p = np.zeros(len(normal)), np.ones(len(normal))
    test = np.where(equal, "constant", np.where(normal, "welch", "mann-whitney"))
    some = test == "welch"
    if some.any():
        done = stats.ttest_ind(a[:, some], b[:, some], axis=0, equal_var=False)
        statistic[some], p[some] = done.statistic, done.pvalue
    some = test == "mann-whitney"
    small = min(len(a), len(b)) <= _EXACT_MOST
    for tied in (False, True):  # ties in one neuron must not choose the method for the others
        chosen = some & (_tied(a, b) == tied) if small else some & tied
        if chosen.any():
            method = "asymptotic" if tied else "exact"
            done = stats.mannwhitneyu(a[:, chosen], b[:, chosen], axis=0, method=method)
            statistic[chosen], p[chosen] = done.statistic, done.pvalue
    return {"test": test, "statistic": statistic, "p": p}


def _tied(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    ordered = np.sort(np.concatenate([a, b]), axis=0)
    found: np.ndarray = (ordered[1:] == ordered[:-1]).any(0)
    return found


def _effect_sizes(a: np.ndarray, b: np.ndarray, found: Columns, equal: np.ndarray) -> Columns:
    gap = np.where(equal, 0.0, found["mean"] - found["mean_rest"])
    squares = (len(a) - 1) * found["std"] ** 2 + (len(b) - 1) * found["std_rest"] ** 2
    pooled = np.sqrt(squares / (len(a) + len(b) - 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        d = np.where(gap == 0, 0.0, gap / pooled)
    ranks = _ranks(a, b)[: len(a)].sum(0)
    auc = (ranks - len(a) * (len(a) + 1) / 2) / (len(a) * len(b))
    return {"cohens_d": d, "auc": auc}


def _ranks(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    ranks: np.ndarray = stats.rankdata(np.concatenate([a, b]), axis=0)
    return ranks


def divergences(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kullback-Leibler divergences of two samples, both ways, and Jensen-Shannon's, in nats.

    Of histograms in ``round(2 · n ** (1/3))`` bins (Rice's rule for the smaller sample) that hold
    equally much of both samples together, with half a count added to each bin, so that they are
    finite. The same distribution in both gives about ``(bins − 1) / 2 · (1/n₁ + 1/n₂)`` instead of
    0, and no transformation that keeps the order changes them.

    Parameters
    ----------
    a, b : ndarray, [samples, neurons]

    Returns
    -------
    kl, kl_rest, js : ndarray, [neurons]
        KL(a ‖ b), KL(b ‖ a), and JS, which is at most ln 2.
    """
    bins = max(2, round(2 * min(len(a), len(b)) ** (1 / 3)))
    ranks = _ranks(a, b)
    place = ((ranks - 0.5) * (bins / len(ranks))).astype(np.int64)
    place += bins * np.arange(ranks.shape[1])
    shares = []
    for part in (place[: len(a)], place[len(a) :]):
        counts = np.bincount(part.ravel(), minlength=bins * ranks.shape[1]).reshape(-1, bins)
        shares.append((counts + 0.5) / (len(part) + 0.5 * bins))
    p, q = shares
    middle = (p + q) / 2

    def divergence(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        total: np.ndarray = (x * np.log(x / y)).sum(1)
        return total

    return divergence(p, q), divergence(q, p), (divergence(p, middle) + divergence(q, middle)) / 2


def _shapes(a: np.ndarray, b: np.ndarray, found: Columns, alpha: float) -> Columns:
    """Compare what is left once mean and spread are taken out, by Kolmogorov & Smirnov's test.

    Where the shapes agree, shift and ratio say all there is to say.
    """
    p = np.zeros(a.shape[1])
    varied = (found["std"] > 0) & (found["std_rest"] > 0)
    if varied.any():
        x = (a[:, varied] - found["mean"][varied]) / found["std"][varied]
        y = (b[:, varied] - found["mean_rest"][varied]) / found["std_rest"][varied]
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
    """Asymptotic p-values of two samples, as `scipy.stats.ks_2samp` has them one by one."""
    both = np.concatenate([x, y])
    order = both.argsort(axis=0, kind="stable")
    steps = np.where(order < len(x), 1 / len(x), -1 / len(y)).cumsum(0)
    ordered = np.take_along_axis(both, order, axis=0)
    steps[:-1][ordered[1:] == ordered[:-1]] = 0  # the two curves are compared behind ties
    distance = np.abs(steps).max(0)
    size = len(x) * len(y) / (len(x) + len(y))
    p: np.ndarray = np.clip(stats.kstwo.sf(distance, np.round(size)), 0, 1)
    return p


def kruskal(groups: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """H and p-values of Kruskal & Wallis (1952) over several classes; 0 and 1 for constants."""
    both = np.concatenate(groups)
    varied = ~(both == both[:1]).all(0)
    h, p = np.zeros(both.shape[1]), np.ones(both.shape[1])
    if varied.any():
        done = stats.kruskal(*(group[:, varied].astype(np.float64) for group in groups), axis=0)
        h[varied], p[varied] = done.statistic, done.pvalue
    return h, p
