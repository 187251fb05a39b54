"""One-pass statistics against numpy on the whole data."""

from __future__ import annotations

import copy
import itertools
import math
import subprocess
import sys
from pathlib import Path

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neurograph.activations.statistics import ActivationStatistics, Statistics, merged
from neurograph.errors import DataError, OptionError

LEVELS = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def fed(values: Tensor, cuts: tuple[int, ...] = (), **options: object) -> ActivationStatistics:
    """Build a metric that saw `values`, cut into batches at `cuts`."""
    metric = ActivationStatistics(values.shape[1:], **{"dtype": values.dtype, **options})
    for part in torch.tensor_split(values, sorted(cuts)):
        metric.update(part)
    return metric


def check_moments(found: Statistics, data: np.ndarray, rtol: float) -> None:
    data = data.astype(np.float64)
    scale = np.abs(data).max(initial=1e-12)
    assert found.count == len(data)
    np.testing.assert_allclose(found.mean, data.mean(0), rtol=rtol, atol=rtol * scale)
    std = data.std(0, ddof=1) if len(data) > 1 else np.zeros(data.shape[1:])
    np.testing.assert_allclose(found.std, std, rtol=rtol, atol=rtol * scale)
    np.testing.assert_array_equal(found.min, data.min(0))
    np.testing.assert_array_equal(found.max, data.max(0))


def check_equal(a: ActivationStatistics, b: ActivationStatistics) -> None:
    """Compare two metrics that saw the same rows with the same keys."""
    one, two = a.compute(), b.compute()
    assert (one.count, one.rank_error) == (two.count, two.rank_error)
    for name in ("mean", "std"):
        # Sums of float32 batches round by how the rows are cut.
        scale = float(torch.maximum(one.min.abs(), one.max.abs()).max())
        rtol = 1e-5 if one.mean.dtype == torch.float32 else 1e-7
        torch.testing.assert_close(
            getattr(one, name), getattr(two, name), rtol=rtol, atol=rtol * scale + 1e-12
        )
    for name in ("min", "max", "quantiles"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    assert torch.equal(a.sample, b.sample)


def rank_error(values: np.ndarray, quantile: float, level: float) -> float:
    """Distance of `level` to the ranks that `quantile` has in `values`."""
    below, upto = (values < quantile).mean(), (values <= quantile).mean()
    return float(max(below - level, level - upto, 0))


@st.composite
def data_and_cuts(draw: st.DrawFn) -> tuple[Tensor, tuple[int, ...]]:
    rows = draw(st.integers(1, 40))
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=3, max_side=3))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    elements = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
    values = draw(arrays.arrays(dtype, (rows, *shape), elements=elements))
    cuts = draw(st.lists(st.integers(0, rows), max_size=5))
    return torch.from_numpy(values), tuple(cuts)


@settings(deadline=None, max_examples=120)
@given(data_and_cuts())
def test_equals_numpy_while_every_row_is_kept(case: tuple[Tensor, tuple[int, ...]]) -> None:
    values, cuts = case
    data = values.numpy()
    metric = fed(values, cuts, reservoir=40)
    found = metric.compute()
    check_moments(found, data, 1e-10 if data.dtype == np.float64 else 2e-6)
    assert found.rank_error == 0
    assert found.finite
    expected = np.quantile(data.astype(np.float64), LEVELS, axis=0).astype(data.dtype)
    np.testing.assert_allclose(found.quantiles, expected, rtol=1e-6, atol=1e-9)
    for tensor in (found.mean, found.std, found.min, found.max, *found.quantiles):
        assert (tensor.shape, tensor.dtype) == (values.shape[1:], values.dtype)
    np.testing.assert_array_equal(np.sort(metric.sample, axis=0), np.sort(data, axis=0))


@settings(deadline=None, max_examples=60)
@given(data_and_cuts(), st.integers(1, 30))
def test_batches_do_not_matter(case: tuple[Tensor, tuple[int, ...]], reservoir: int) -> None:
    values, cuts = case
    check_equal(fed(values, cuts, reservoir=reservoir), fed(values, reservoir=reservoir))


@settings(deadline=None, max_examples=60)
@given(data_and_cuts(), st.integers(1, 30))
def test_merging_equals_one_pass(case: tuple[Tensor, tuple[int, ...]], reservoir: int) -> None:
    values, cuts = case
    parts = torch.tensor_split(values, sorted(cuts))
    metrics = [fed(part, reservoir=reservoir, stream=i) for i, part in enumerate(parts)]
    before = [metric.compute() if metric.count else None for metric in metrics]
    whole = merged(metrics)
    check_moments(whole.compute(), values.numpy(), 1e-10 if values.dtype == torch.double else 2e-6)
    # The sample of the union: the rows with the smallest keys of all parts.
    keys, rows = torch.cat([metric.keys for metric in metrics]), [m.rows for m in metrics]
    smallest = keys.argsort()[: min(reservoir, len(values))]
    assert torch.equal(whole.sample, torch.cat([r for r in rows if len(r)])[smallest])
    for metric, old in zip(metrics, before, strict=True):
        assert old is None or metric.compute().count == old.count


DRAWS = {
    "normal": lambda rng, n: rng.normal(3, 2, n),
    "uniform": lambda rng, n: rng.uniform(-1, 1, n),
    "heavy tails": lambda rng, n: rng.standard_cauchy(n),
    "skewed": lambda rng, n: rng.exponential(size=n),
    "rectified": lambda rng, n: np.maximum(rng.normal(size=n), 0),
    "two values": lambda rng, n: (rng.random(n) < 0.3).astype(float),
    "sorted": lambda rng, n: np.sort(rng.normal(size=n)),
    "periodic": lambda rng, n: np.arange(n) % 256,
}


def test_rank_error_holds_on_long_data() -> None:
    rng = np.random.default_rng(0)
    data = np.stack([draw(rng, 200_000) for draw in DRAWS.values()], axis=1)
    metric = ActivationStatistics((len(DRAWS),), dtype=torch.float64)
    for part in torch.from_numpy(data).split(256):
        metric.update(part)
    found = metric.compute()
    assert found.rank_error == pytest.approx(math.sqrt(math.log(200) / (2 * 2048)))
    for level, quantiles in zip(found.levels, found.quantiles.numpy(), strict=True):
        for column, quantile in enumerate(quantiles):
            assert rank_error(data[:, column], quantile, level) <= found.rank_error
    fine = np.linspace(0, 1, 101)
    for level, quantiles in zip(fine, metric.quantiles_at(fine.tolist()).numpy(), strict=True):
        assert rank_error(data[:, 0], quantiles[0], level) <= found.rank_error
    check_moments(found, data, 1e-9)


def test_every_row_is_kept_with_the_same_chance() -> None:
    """Positions of kept rows are uniform, and pairs of metrics do not keep the same ones."""
    values = torch.arange(2000.0)[:, None]
    samples = [fed(values, reservoir=100, seed=s // 50, stream=s % 50).sample for s in range(200)]
    kept = torch.stack(samples).flatten()
    counts = torch.histc(kept, 10, 0, 2000)
    assert ((counts - 2000).abs() < 4.5 * math.sqrt(2000)).all()
    common = [np.isin(a, b).sum() for a, b in itertools.pairwise(samples)]
    assert np.mean(common) == pytest.approx(100 * 100 / 2000, abs=1)
    assert max(common) < 20


def test_merged_sample_is_fair_to_unequal_parts() -> None:
    parts = [torch.zeros(9000, 1), torch.ones(1000, 1)]
    shares = []
    for seed in range(40):
        metrics = [fed(p, reservoir=200, seed=seed, stream=i) for i, p in enumerate(parts)]
        shares.append(merged(metrics).sample.mean().item())
    assert np.mean(shares) == pytest.approx(0.1, abs=0.015)


def in_batches(rows: int, size: int) -> tuple[int, ...]:
    return tuple(range(size, rows, size))


@pytest.mark.parametrize("size", [1, 7, 99, 100, 101, 250, 1000])
@pytest.mark.parametrize("rows", [99, 100, 101, 1000])
def test_sample_is_of_the_smallest_keys_while_it_fills_and_after(rows: int, size: int) -> None:
    data = np.random.default_rng(3).normal(size=(rows, 2, 3))
    values = torch.from_numpy(data)
    every = fed(values, reservoir=1000)  # has the key of each row
    assert torch.equal(every.rows[:rows], values)
    kept = np.argsort(every.keys[:rows].numpy())[:100]
    metric = fed(values, in_batches(rows, size), reservoir=100)
    np.testing.assert_array_equal(metric.sample, data[kept])
    found = metric.compute()
    check_moments(found, data, 1e-10)
    wanted = np.quantile(data[kept], LEVELS[1:-1], axis=0)
    np.testing.assert_allclose(found.quantiles[1:-1], wanted, rtol=1e-12, atol=1e-12)


def test_sizes_of_batches_may_change() -> None:
    values = torch.randn(9000, 2)
    sizes = [1, 300, 2, 1, 64, 1300, 5] * 4
    cuts = tuple(itertools.accumulate(sizes))
    check_equal(fed(values, cuts, reservoir=200), fed(values, reservoir=200))


@pytest.mark.parametrize("reservoir", [50, 6000])  # choices are shared, and too large for that
def test_layers_of_one_stream_keep_the_same_rows(reservoir: int) -> None:
    values = torch.arange(12_000.0)[:, None]
    narrow, wide = (ActivationStatistics(shape, reservoir=reservoir) for shape in ((1,), (2, 2)))
    for part in values.split(256):
        narrow.update(part)
        wide.update(part[:, :, None].expand(-1, 2, 2))
    assert (narrow.keys is wide.keys) == (reservoir == 50)
    late = ActivationStatistics((1,), reservoir=reservoir)
    late.merge_state(fed(values[:5000], reservoir=reservoir))
    late.update(values[5000:])
    for metric in (wide, late):
        assert torch.equal(metric.sample.flatten(1)[:, 0], narrow.sample[:, 0])
    assert len(narrow.sample.unique()) == reservoir


@pytest.mark.parametrize("cuts", [(), (1,), (3, 500), in_batches(1000, 37), in_batches(1000, 1)])
def test_small_std_on_a_large_mean(cuts: tuple[int, ...]) -> None:
    noise = np.random.default_rng(1).normal(size=(1000, 5))
    for data in (1e4 + 1e-2 * noise, np.where(noise > 0, 1e4, 1e4 + 1e-2)):
        values = torch.from_numpy(data.astype(np.float32))
        exact = values.double().numpy()
        found = fed(values, cuts).compute()
        np.testing.assert_allclose(found.std, exact.std(0, ddof=1), rtol=1e-4)
        np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-7)


@pytest.mark.parametrize("sizes", [(1, 4000), (4000, 1), (50, 50, 50), (1, 2, 4, 2000)])
def test_std_survives_means_that_jump_between_batches(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    parts = [rng.normal(10.0 ** (3 * i), 1e-2, (n, 3)) for i, n in enumerate(sizes)]
    values = torch.from_numpy(np.concatenate(parts).astype(np.float32))
    found = fed(values, tuple(np.cumsum(sizes[:-1]).tolist())).compute()
    np.testing.assert_allclose(found.std, values.double().numpy().std(0, ddof=1), rtol=1e-4)


@pytest.mark.parametrize("size", [1, 10, 64, 3000])
@pytest.mark.parametrize("drift", [1e-3, 1.0, 1e3])
def test_std_survives_a_mean_that_drifts(drift: float, size: int) -> None:
    noise = np.random.default_rng(4).normal(size=(3000, 3))
    data = 1e4 + 1e-1 * noise + drift * np.linspace(0, 1, 3000)[:, None] ** 3
    values = torch.from_numpy(data.astype(np.float32))
    found = fed(values, in_batches(3000, size)).compute()
    np.testing.assert_allclose(found.std, values.double().numpy().std(0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(found.mean, values.double().numpy().mean(0), rtol=1e-7)


@pytest.mark.parametrize("size", [7, 64, 1000])
@pytest.mark.parametrize("mean", [0.0, 1.0, 3.8, 4.2, 30.0])
def test_std_is_as_good_wherever_gaps_are_taken_from(mean: float, size: int) -> None:
    data = np.random.default_rng(6).normal(mean, 1, size=(4000, 3))
    values = torch.from_numpy(data.astype(np.float32))
    found = fed(values, in_batches(4000, size)).compute()
    np.testing.assert_allclose(found.std, values.double().numpy().std(0, ddof=1), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 3])
def test_std_survives_an_outlier_at_the_start(size: int) -> None:
    """All squares of gaps to it would round in the same direction, and all but cancel."""
    values = torch.full((3000, 1), 1000.1)
    values[0] = 0
    found = fed(values, in_batches(3000, size)).compute()
    np.testing.assert_allclose(found.std, values.double().numpy().std(0, ddof=1), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e4 / 3, 1e-30])
def test_a_constant_has_no_spread(value: float, dtype: torch.dtype) -> None:
    values = torch.full((1001, 2), value, dtype=dtype)
    found = fed(values, (10, 11), reservoir=64).compute()
    for tensor in (found.mean, found.min, found.max, *found.quantiles):
        assert torch.equal(tensor, values[0])
    assert not found.std.any()


def test_one_row_and_one_element() -> None:
    found = fed(torch.tensor([[[7.0]]])).compute()
    assert (found.count, found.mean.shape, found.quantiles.shape) == (1, (1, 1), (7, 1, 1))
    assert (found.mean.item(), found.std.item(), found.quantile(0.25).item()) == (7, 0, 7)


def test_float64_keeps_its_precision() -> None:
    values = 1 + 1e-12 * torch.arange(11, dtype=torch.float64)[:, None]
    found = fed(values).compute()
    assert found.quantile(0.5).item() == values[5].item()
    np.testing.assert_allclose(found.quantile(0.25), np.quantile(values, 0.25, axis=0), rtol=1e-15)


def test_other_dtypes_and_layouts_are_taken() -> None:
    values = torch.arange(24).reshape(2, 3, 4)
    expected = fed(values.float()).compute()
    metric = ActivationStatistics((3, 4))
    metric.update(values.half().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_())
    assert torch.equal(metric.compute().quantiles, expected.quantiles)
    assert not metric.sample.requires_grad


def test_moments_do_not_depend_on_what_is_added_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(300, 2, 5, dtype=torch.float64)
    expected = fed(values, (100, 250))
    monkeypatch.setattr("neurograph.activations.statistics._ADD_AT_ONCE", 96)
    check_equal(fed(values, (100, 250)), expected)
    check_equal(fed(values.transpose(1, 2).contiguous().transpose(1, 2), (100, 250)), expected)


def test_quantiles_do_not_depend_on_the_chunking(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = fed(torch.randn(50, 4, 5))
    expected = metric.compute().quantiles
    monkeypatch.setattr("neurograph.activations.statistics._SORT_AT_ONCE", 120)
    assert torch.equal(metric.compute().quantiles, expected)


def test_memory_does_not_grow() -> None:
    metric = ActivationStatistics((3,), reservoir=64)
    for _ in range(3):
        metric.update(torch.randn(50, 3))
    place = metric.rows.data_ptr()
    shapes = {name: tensor.shape for name, tensor in metric.state.items()}
    for _ in range(50):
        metric.update(torch.randn(500, 3))
    assert metric.rows.data_ptr() == place
    assert {name: tensor.shape for name, tensor in metric.state.items()} == shapes
    assert metric.sample.shape == (64, 3)


def test_seed_and_stream_choose_the_sample() -> None:
    values = torch.randn(5000, 2)
    assert torch.equal(fed(values, seed=3).sample, fed(values, seed=3).sample)
    samples = [fed(values, seed=s, stream=t).sample for s, t in ((0, 0), (1, 0), (0, 1))]
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(samples))


@pytest.mark.parametrize("rows", [10, 500])
def test_same_stream_is_refused(rows: int) -> None:
    one, two = (fed(torch.randn(rows, 2), reservoir=100) for _ in range(2))
    with pytest.raises(OptionError, match=r"seed=0, stream=0.*its own `stream`"):
        one.merge_state(two)
    with pytest.raises(OptionError, match="merge none twice"):
        one.merge_state(one)


def test_merging_goes_on() -> None:
    values = torch.randn(3000, 2)
    one, two = fed(values[:1000], reservoir=50), fed(values[1000:2000], reservoir=50, stream=1)
    one.merge_state(two.state)
    one.update(values[2000:])
    check_moments(one.compute(), values.numpy(), 2e-6)
    assert len(np.unique(one.keys)) == 50


def test_samples_that_are_not_full_merge_and_fill_up() -> None:
    values = torch.randn(1000, 2)
    parts = [fed(values[30 * i : 30 * i + 30], reservoir=100, stream=i) for i in range(3)]
    whole = merged(parts)
    np.testing.assert_array_equal(np.sort(whole.sample, axis=0), np.sort(values[:90], axis=0))
    exact = np.quantile(values[:90].double(), LEVELS, axis=0)
    np.testing.assert_allclose(whole.compute().quantiles, exact, rtol=1e-6, atol=1e-9)
    for part in values[90:].split(64):
        whole.update(part)
    check_moments(whole.compute(), values.numpy(), 2e-6)
    assert whole.sample.shape == (100, 2)
    assert torch.equal(whole.quantiles_at([0.5])[0], whole.sample.double().quantile(0.5, 0).float())


def test_std_survives_merging_means_far_apart() -> None:
    rng = np.random.default_rng(5)
    data = np.concatenate([rng.normal(mean, 1e-2, (n, 2)) for mean, n in ((0, 1), (1e4, 3000))])
    values = torch.from_numpy(data.astype(np.float32))
    for first, second in ((values[:1], values[1:]), (values[1:], values[:1])):
        whole = merged([fed(first), fed(second, stream=1)])
        whole.update(values[1:2000])
        exact = np.concatenate([values, values[1:2000]]).astype(np.float64)
        check_moments(whole.compute(), exact, 1e-7)


def test_small_std_on_a_large_mean_survives_merging() -> None:
    values = 1e6 + 1e-3 * torch.randn(1000, 2, dtype=torch.float64)
    parts = [fed(values[:0]), *(fed(v, stream=i + 1) for i, v in enumerate(values.split(300)))]
    exact = (values - 1e6).numpy().std(0, ddof=1)
    np.testing.assert_allclose(merged(parts).compute().std, exact, rtol=1e-6)


WORKER = """
import sys, torch
from torch import distributed
from neurograph.activations.statistics import ActivationStatistics

rank = int(sys.argv[1])
where = f"file://{sys.argv[2]}"
distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=2)
metric = ActivationStatistics((1,), reservoir=100)
metric.update(torch.arange(1000.0 * rank, 1000.0 * (rank + 1))[:, None])
own = metric.compute()
states = [None, None]
distributed.all_gather_object(states, metric.state)
metric.merge_state(states[1 - rank])
found = metric.compute()
kept = len(metric.sample.unique()), len((metric.sample % 1000).unique())
print(own.count, own.mean.item(), found.count, found.mean.item(), found.max.item(), *kept)
"""


@pytest.mark.slow
def test_processes_keep_rows_of_their_own_and_merge(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER]
    places = [[str(rank), str(tmp_path / "store")] for rank in range(2)]
    runs = [subprocess.Popen(command + p, stdout=subprocess.PIPE, text=True) for p in places]
    for rank, run in enumerate(runs):
        numbers = [float(word) for word in run.communicate(timeout=60)[0].split()]
        assert numbers[:5] == [1000, 499.5 + 1000 * rank, 2000, 999.5, 1999]
        assert numbers[5] == 100
        assert numbers[6] > 80  # at the same positions they would be 50


def test_state_restores_and_shares_nothing() -> None:
    values = torch.randn(3000, 4)
    whole, first = fed(values), fed(values[:2500])
    copies = [ActivationStatistics((4,)) for _ in range(2)]
    for one in copies:
        one.merge_state(first.state)
    copies[0].update(values[2500:])
    check_equal(copies[0], whole)
    check_equal(copies[1], first)


def test_reset_and_copy() -> None:
    values = torch.randn(3000, 4)
    metric, fresh = fed(torch.ones(10, 4)), fed(values)
    metric.reset()
    metric.update(values)
    check_equal(metric, fresh)
    twin = copy.deepcopy(metric)
    twin.update(values)
    check_equal(metric, fresh)


def test_inference_mode_may_come_and_go() -> None:
    values = torch.randn(400, 2)
    with torch.inference_mode():
        metric = ActivationStatistics((2,), reservoir=50)
        metric.reset()
        metric.update(values[:200] * 1)
    metric.update(values[200:])
    check_equal(metric, fed(values, reservoir=50))


def test_moves_keep_dtypes() -> None:
    metric = fed(torch.randn(100, 2)).to("meta")
    assert (metric.moments.dtype, metric.rows.dtype) == (torch.float64, torch.float32)
    assert metric.device.type == "meta"
    assert all(tensor.is_meta for name, tensor in metric.state.items() if name != "count")


def test_columns_are_added_some_at_a_time() -> None:
    """Of rows longer than what stays in the cache."""
    values = torch.randn(100, 3, 5000, dtype=torch.float64)
    check_moments(fed(values, (30,)).compute(), values.numpy(), 1e-10)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_told(bad: float) -> None:
    values = torch.randn(500, 3)
    values[7, 1] = bad
    found = fed(values, (20,), reservoir=50).compute()
    assert not found.finite
    assert found.mean.isfinite().tolist() == [True, False, True]
    assert found.quantiles[:, [0, 2]].isfinite().all()
    assert found.quantiles[:, 1].isnan().all() == math.isnan(bad)


def test_quantile_by_level() -> None:
    metric = fed(torch.randn(30, 2), quantiles=(0.1, 0.1 + 0.2))
    found = metric.compute()
    assert torch.equal(found.quantile(0.3), found.quantiles[1])
    with pytest.raises(ValueError, match=r"q=0\.5 .* levels=\(0\.1, 0\.3"):
        found.quantile(0.5)


def test_errors_name_what_is_wrong() -> None:
    metric = ActivationStatistics((2, 3), reservoir=8)
    for ask in (metric.compute, lambda: metric.quantiles_at([0.5])):
        with pytest.raises(ValueError, match="no data"):
            ask()
    for shape in ((), (2,), (5, 3, 2), (5, 6)):
        with pytest.raises(DataError, match=r"values has shape .*\[rows, \*\(2, 3\)\]"):
            metric.update(torch.zeros(shape))
    metric.update(torch.zeros(0, 2, 3))
    assert metric.count == 0
    metric.update(torch.zeros(4, 2, 3))
    for level in (-0.1, 1.1, math.nan):
        with pytest.raises(OptionError, match=rf"level {level}"):
            metric.quantiles_at([level])
    with pytest.raises(OptionError, match="same reservoir and shape"):
        metric.merge_state(fed(torch.zeros(9, 2, 3), reservoir=9, stream=1))
    with pytest.raises(OptionError, match="metrics is empty"):
        merged([])
    for options in ({"reservoir": 0}, {"quantiles": (2,)}, {"dtype": torch.int64}):
        with pytest.raises(OptionError, match=str(next(iter(options.values()))).strip("(),")):
            ActivationStatistics((2,), **options)
    with pytest.raises(OptionError, match=r"shape=\(0,\)"):
        ActivationStatistics((0,))
