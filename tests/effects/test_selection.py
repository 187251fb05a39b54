"""A selection keeps what its rule says, and nothing that may as well be zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neurograph.effects.selection import (
    SIGNS,
    Above,
    Keep,
    Share,
    TopK,
    TopQuantile,
    as_keep,
    select,
)
from neurograph.errors import OptionError


def tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


EFFECT = tensor([0.5, -0.4, 0.1, 0.0, 2.0, -3.0, 0.2, -0.1])
NONE = torch.zeros(8, dtype=torch.float64)


@pytest.mark.parametrize(
    ("sign", "keep", "kept"),
    [
        ("positive", TopK(2), [4, 0]),
        ("negative", TopK(2), [5, 1]),
        ("positive", TopK(99), [4, 0, 6, 2]),
        # Of the four positive effects 0.1, 0.2, 0.5, 2.0: the median is 0.35.
        ("positive", TopQuantile(0.5), [4, 0]),
        ("positive", TopQuantile(0.0), [4, 0, 6, 2]),
        ("positive", TopQuantile(1.0), [4]),
        # Of the negative ones -0.1, -0.4, -3.0: the median itself is kept.
        ("negative", TopQuantile(0.5), [5, 1]),
        # 2.0 of 2.8 in all are 71 %.
        ("positive", Share(0.7), [4]),
        ("positive", Share(0.72), [4, 0]),
        ("positive", Share(1.0), [4, 0, 6, 2]),
        ("negative", Share(0.01), [5]),
        # An effect of the very size is kept.
        ("positive", Above(0.5), [4, 0]),
        ("positive", Above(0.51), [4]),
        ("positive", Above(1e-9), [4, 0, 6, 2]),
        ("positive", Above(2.1), []),
        ("negative", Above(0.2), [5, 1]),
    ],
)
def test_a_rule_keeps_the_strongest_of_one_sign(sign: Any, keep: Keep, kept: list[int]) -> None:
    assert select(EFFECT, NONE, sign, keep) == kept


@pytest.mark.parametrize("size", [0.1, 0.3, 0.7])
def test_the_share_that_is_reached_exactly_is_enough(size: float) -> None:
    for count in range(2, 12):
        for wanted in range(1, count):
            kept = select(
                tensor([size] * count), torch.zeros(count), "positive", Share(wanted / count)
            )
            assert kept == list(range(wanted))


@pytest.mark.parametrize("sign", SIGNS)
def test_an_effect_within_its_standard_error_is_not_kept(sign: Any) -> None:
    sense = 1 if sign == "positive" else -1
    effect = sense * tensor([3.0, 2.0, 1.0, 0.5])
    stderr = tensor([3.0, 1.9, 5.0, 0.0])
    for keep in (TopK(4), TopQuantile(0.0), Share(1.0), Above(0.1)):
        assert select(effect, stderr, sign, keep) == [1, 3]
    # The rule's own measure is of all effects: the quantile does not fall for it.
    assert select(effect, stderr, sign, TopQuantile(0.9)) == []


def test_a_single_sample_has_no_standard_error_and_counts_if_it_is_not_zero() -> None:
    unknown = torch.full((8,), float("nan"), dtype=torch.float64)
    assert select(EFFECT, unknown, "positive", TopK(99)) == [4, 0, 6, 2]


def test_nothing_is_kept_where_nothing_has_the_sign() -> None:
    for keep in (TopK(3), TopQuantile(0.5), Share(0.5), Above(0.5)):
        assert select(tensor([-1.0, 0.0]), torch.zeros(2), "positive", keep) == []
        assert select(tensor([]), torch.zeros(0), "positive", keep) == []


def test_how_large_an_effect_must_be_depends_on_no_other() -> None:
    alone = [i for i in range(8) if select(EFFECT[i : i + 1], NONE[:1], "positive", Above(0.2))]
    assert sorted(select(EFFECT, NONE, "positive", Above(0.2))) == alone


def test_equal_effects_keep_their_order() -> None:
    effect = tensor([1.0, 2.0] * 50)
    wanted = [*range(1, 100, 2), *range(0, 100, 2)]
    assert select(effect, torch.zeros(100), "positive", TopK(100)) == wanted


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-5, 5, allow_subnormal=False), min_size=1, max_size=30),
    st.sampled_from([TopQuantile(0.95), TopQuantile(0.3), TopK(4), Share(0.6)]),
    st.sampled_from(SIGNS),
)
def test_what_is_kept_is_stronger_than_what_is_not(
    values: list[float], keep: Keep, sign: Any
) -> None:
    effect = tensor(values)
    kept = select(effect, torch.zeros_like(effect), sign, keep)
    strength = effect if sign == "positive" else -effect
    strengths = strength[kept].tolist()
    assert strengths == sorted(strengths, reverse=True)
    rest = [float(strength[i]) for i in range(len(values)) if i not in kept]
    if kept:
        assert min(strengths) > 0
        assert max(rest, default=0.0) <= min(strengths)
    else:
        assert max(values if sign == "positive" else [-v for v in values]) <= 0
    mirrored = select(-effect, torch.zeros_like(effect), _other(sign), keep)
    assert mirrored == kept


def _other(sign: str) -> Any:
    return "negative" if sign == "positive" else "positive"


def test_rules_are_read_as_they_are_written() -> None:
    assert as_keep("quantile:0.95") == TopQuantile(0.95)
    assert as_keep(" top:20 ") == TopK(20)
    assert as_keep("share:1") == Share(1.0)
    assert as_keep("above:0.1") == Above(0.1)
    assert as_keep("above:1e-3") == Above(0.001)
    assert as_keep(Share(0.5)) == Share(0.5)


@pytest.mark.parametrize(
    "words",
    ["", "top", "top:", "top:1.5", "top:0", "top:-1", "quantile:1.1", "quantile:1.2.3", "share:0",
     "share:1.01", "above:0", "above:-1", "above:", "above:nan", "above:1e",
     "best:3", "0.95", 0.95, None],
)  # fmt: skip
def test_what_is_no_rule_is_told(words: Any) -> None:
    with pytest.raises(OptionError, match="keep"):
        as_keep(words)
