"""All neurons of a layer tested at once, against a loop over neurons with scipy.

    python benchmarks/separation.py --write docs/separation.md

Both do the same: two tests of normality, the test of location that these choose, effect sizes, a
test of shape, divergences. The loop is given the activations; one that asks the model for each
neuron's, as the study this comes from did, pays a forward pass a neuron besides.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import scipy
import torch
from scipy import stats

from neurograph.activations.two_samples import compare_two
from neurograph.demos.heart import HeartNet
from notebook_loop import cpu_name, timed

_SAMPLE = 40  # neurons the loop is timed on


def one_by_one(a: np.ndarray, b: np.ndarray, alpha: float = 0.05) -> tuple[float, float, float]:
    """P-value, AUC and Jensen-Shannon divergence of one neuron."""
    normal = min(stats.shapiro(a).pvalue, stats.shapiro(b).pvalue) >= alpha
    u = stats.mannwhitneyu(a, b)
    p = stats.ttest_ind(a, b, equal_var=False).pvalue if normal else u.pvalue
    x, y = ((v - v.mean()) / v.std(ddof=1) for v in (a, b))
    stats.ks_2samp(x, y, method="asymp")
    bins = max(2, round(2 * min(len(a), len(b)) ** (1 / 3)))
    place = ((stats.rankdata(np.concatenate([a, b])) - 0.5) * bins / (len(a) + len(b))).astype(int)
    shares = [
        (np.bincount(part, minlength=bins) + 0.5) / (len(part) + 0.5 * bins)
        for part in (place[: len(a)], place[len(a) :])
    ]
    middle = (shares[0] + shares[1]) / 2
    js = sum(stats.entropy(share, middle) for share in shares) / 2
    return float(p), float(u.statistic / (len(a) * len(b))), float(js)


def row(neurons: int, samples: int) -> str:
    generator = np.random.default_rng(0)
    a = np.tanh(generator.normal(0.2, 1, size=(samples, neurons)))
    b = generator.normal(0, 1, size=(samples, neurons))
    a[:, ::2], b[:, ::2] = np.arctanh(a[:, ::2]), b[:, ::2]  # every second one normal
    found = compare_two(a, b, 0.05)
    at_once = timed(lambda: compare_two(a, b, 0.05), 3)
    some = generator.choice(neurons, _SAMPLE, replace=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = np.array([one_by_one(a[:, i], b[:, i]) for i in some])
        loop = timed(lambda: [one_by_one(a[:, i], b[:, i]) for i in some], 3) / _SAMPLE * neurons
    got = np.stack([found[name][some] for name in ("p", "auc", "js")], axis=1)
    gap = np.abs(got - wanted).max()
    return (
        f"| {neurons:,} | 2 × {samples} | {loop:.2f} s | {at_once * 1e3:.0f} ms | "
        f"{loop / at_once:.0f} | {gap:.0e} |"
    )


def forward_pass() -> float:
    """Milliseconds of the heart network on 918 patients: what asking it again costs a loop."""
    model, X = HeartNet(), torch.rand(918, 17)
    with torch.no_grad():
        return timed(lambda: model(X), 20) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", type=Path)
    path = parser.parse_args().write
    sizes = [(1024, 100), (1024, 450), (1024, 2000)]
    table = "\n".join(row(*size) for size in sizes)
    text = f"""# Separation

Written by `make bench`: scipy {scipy.__version__}, {torch.get_num_threads()} threads, \
{cpu_name()}. Times are medians of one run on a shared machine.

All neurons of a layer tested at once, against a loop over neurons that calls scipy for each (timed
on {_SAMPLE} of them and scaled), given the same activations. A loop that runs the model for each
neuron, as the study this comes from did, pays {forward_pass():.1f} ms a neuron besides for the
heart network and its 918 patients.

| neurons | samples | loop | at once | ratio | largest difference of p, AUC, JS |
| --- | --- | --- | --- | --- | --- |
{table}

Most of what is left is sorting, which a loop does as well: calls are saved, not the work itself.
"""
    print(text)
    if path is not None:
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
