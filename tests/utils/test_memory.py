"""What a block takes at most, against tensors of known size; budgets as they are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neurograph.errors import OptionError
from neurograph.utils.memory import PeakMeter, parse_memory

KB = 250  # float32 elements


def blocks(count: int) -> Tensor:
    return torch.ones(count, KB)


def freed() -> None:
    a = blocks(3)
    del a
    b = blocks(2)
    del b


def kept() -> None:
    a = blocks(3)
    b = a * 2
    del a
    _ = blocks(1), b


def views() -> None:
    a = blocks(4)
    _ = a[1:], a.view(-1), a.t(), a.expand(9, 4, KB), a.detach(), a.chunk(2)


def a_view_outlives_its_base() -> None:
    a = blocks(4)
    part = a[:1]
    del a
    b = blocks(2)  # the whole of the first is still there
    del part
    _ = blocks(3), b


def in_place() -> None:
    a = blocks(2)
    a.mul_(2).add_(1)
    a[0] = 3
    torch.relu_(a)


def into_what_is_there() -> None:
    a, b = blocks(1), blocks(1)
    torch.add(a, a, out=b)


def several_at_once() -> None:
    _ = blocks(2).max(dim=1), blocks(2).unbind()


def other_sizes() -> None:
    _ = torch.zeros(1000, dtype=torch.uint8), torch.zeros(KB, dtype=torch.float64)


def nothing() -> None:
    _ = torch.empty(0), torch.empty(0, 5)


CASES: dict[str, tuple[Callable[[], None], int]] = {
    "freed": (freed, 3000),
    "kept": (kept, 6000),
    "views": (views, 4000),
    "a view outlives its base": (a_view_outlives_its_base, 6000),
    "in place": (in_place, 2000),
    "into what is there": (into_what_is_there, 2000),
    # Beside two blocks their two maxima, of 4 bytes, and where these are, of 8.
    "several at once": (several_at_once, 2024),
    "other sizes": (other_sizes, 3000),
    "nothing": (nothing, 0),
}


@pytest.mark.parametrize("kind", CASES)
def test_the_peak_is_what_was_alive_at_once(kind: str) -> None:
    run, peak = CASES[kind]
    with PeakMeter() as meter:
        run()
        assert meter.alive == 0
    assert meter.peak == peak


def test_what_was_there_before_does_not_count() -> None:
    before = blocks(5)
    with PeakMeter() as meter:
        before.add_(1)
        view = before[1:].view(-1)
        view.mul_(2)
        made = before + 1
        assert meter.alive == 5000
    assert meter.peak == 5000
    del made, view
    assert meter.alive == 0


def test_what_outlives_the_block_is_still_counted_down() -> None:
    with PeakMeter() as meter:
        a, b = blocks(1), blocks(2)
    del a
    assert (meter.alive, meter.peak) == (2000, 3000)
    c = blocks(9)
    del b, c
    assert (meter.alive, meter.peak) == (0, 3000)


def test_memory_that_is_used_again_is_not_lost() -> None:
    with PeakMeter() as meter:
        for _ in range(50):
            a = blocks(3)
            del a
    assert (meter.alive, meter.peak) == (0, 3000)


def test_a_chain_of_layers_holds_two_outputs_at_once() -> None:
    model = nn.Sequential(*(nn.Linear(KB, KB, bias=False) for _ in range(6)))
    x = blocks(4)
    with torch.no_grad(), PeakMeter() as meter:
        model(x)
    assert 8000 <= meter.peak < 9000


# -- budgets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MB", 512_000_000),
        ("1 GiB", 2**30),
        (" 2gb ", 2 * 10**9),
        ("1.5KiB", 1536),
        ("3kb", 3000),
        ("7B", 7),
        ("77", 77),
        (77, 77),
        ("0.1MiB", 104857),
    ],
)
def test_a_budget_is_read(text: str | int, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "2e", "MB", "-5MB", "1..5MB", "5 TB", "5 Ki", "512MB!", "lots", 0, -1, "0.5B", 1.5, None],
)
def test_what_is_no_budget_is_told(text: Any) -> None:
    with pytest.raises(OptionError, match="is no size: write bytes, or like '512MB'"):
        parse_memory(text)
