"""The same effects the slow, obvious way: forward hooks only, one run a neuron and level.

Nothing here comes from the library. Layers are the sites of a test network; every run registers
hooks on a plain model, which replace a layer's output, or only look at what arrives at a layer
and at what it computed from that.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from tests.zoo.network import Network, Site, Unit

TARGET = ""
SIDE = ":input"
Seen = Mapping[str, Sequence[int] | None]


@dataclasses.dataclass
class Run:
    """What happened in one run: tensors by site, in the layout of the model."""

    passed: dict[str, Tensor]
    computed: dict[str, Tensor]
    arrived: dict[str, list[Tensor]]
    output: Any


class Reference:
    """Effects on one network, with the background and the levels as plain tensors.

    Parameters
    ----------
    network : Network
    arguments : mapping
        The reference samples, as keyword arguments of the model.

    Attributes
    ----------
    background : dict of str to Tensor
        Each site's values where nothing moves: as they are, until a test sets others.
    levels : dict of str to Tensor
        What each site's channels move between, `[channels, levels, *all other dimensions]`.
    units : dict of str to list of Unit
        The neurons of a site, where they are not its channels one by one.
    """

    def __init__(self, network: Network, arguments: Mapping[str, Any]) -> None:
        self.network, self.model, self.sites = network, network.model, network.sites
        self.arguments = dict(arguments)
        self.inputs = network.input_names(self.arguments)
        self.layers = [name for name in self.sites if name not in self.inputs]
        self._calls: dict[str, dict[int, str]] = defaultdict(dict)
        for name in self.layers:
            site = self.sites[name]
            self._calls[site.call][site.leaf] = name
        self._rest: dict[str, list[Any]] = {}
        self._readers: dict[str, set[str]] = {}
        self._below: dict[str, set[str]] = {}
        self.levels: dict[str, Tensor] = {}
        self.units: dict[str, list[Unit]] = {}
        self.background = self.run({}).passed
        if network.units is not None:
            self.units = network.units(self.background, network)

    def rows(self, values: Tensor, site: Site) -> int:
        """How many samples a tensor of a site holds."""
        return 1 if site.batch is None else values.shape[site.batch] // site.many

    def neurons(self, name: str) -> int:
        """How many neurons a site has; none where its values are no floating-point numbers."""
        return len(self.units[name]) if name in self.units else self.channels(name)

    def channels(self, name: str) -> int:
        """How many channels a site has that may move."""
        values, site = self.background[name], self.sites[name]
        return values.shape[site.channel] if values.is_floating_point() and site.moves else 0

    def target(self, output: Any) -> Tensor:
        return self.network.target(output, None)

    # -- one run ---------------------------------------------------------------------------------

    def run(self, forced: Mapping[str, Tensor]) -> Run:
        """Run with some sites forced."""
        run = Run({}, {}, {}, None)
        counts: Counter[str] = Counter()

        def before(path: str) -> Callable[..., None]:
            def on_arrival(_module: nn.Module, args: Any, kwargs: Any) -> Any:
                counts[path] += 1
                call = _call(path, counts)
                if f"{call}{SIDE}" in self._calls:
                    args = (self._pass_on(f"{call}{SIDE}", args[0], forced, run), *args[1:])
                    run.arrived[f"{call}{SIDE}"] = [run.computed[f"{call}{SIDE}"]]
                arrived = [t.clone() for t in tensors((args, kwargs))]
                for name in self._calls.get(call, {}).values():
                    run.arrived[name] = arrived
                return args, kwargs

            return on_arrival

        def after(path: str) -> Callable[..., Any]:
            def on_output(_module: nn.Module, _args: Any, output: Any) -> Any:
                call = _call(path, counts)
                return self._pass_on(call, output, forced, run) if call in self._calls else output

            return on_output

        modules = dict(self.model.named_modules())
        paths = dict.fromkeys(call.removesuffix(SIDE).split("#")[0] for call in self._calls)
        with contextlib.ExitStack() as stack:
            stack.enter_context(without_fused_kernels())
            stack.enter_context(torch.no_grad())
            for path in paths:
                hook = modules[path].register_forward_pre_hook(before(path), with_kwargs=True)
                stack.callback(hook.remove)
                stack.callback(modules[path].register_forward_hook(after(path)).remove)
            run.output = self.model(**self._given(forced, run))
        run.arrived[TARGET] = tensors(run.output)
        return run

    def _given(self, forced: Mapping[str, Tensor], run: Run) -> dict[str, Any]:
        arguments = {**self.arguments}
        for name, argument in self.inputs.items():
            run.computed[name] = self.arguments[argument].clone()
            run.passed[name] = forced.get(name, self.arguments[argument]).clone()
            arguments[argument] = run.passed[name].clone()
        return arguments

    def _pass_on(self, call: str, output: Any, forced: Mapping[str, Tensor], run: Run) -> Any:
        """Replace the forced tensors of a call's output, and with them those nothing reads."""
        sites = self._calls[call]
        leaves, spec = tree_flatten(output)
        rest = self._rest.setdefault(call, [_copy(leaf) for leaf in leaves])
        if not forced.keys().isdisjoint(sites.values()):
            passed = [_copy(rest[i]) if i not in sites else leaf for i, leaf in enumerate(leaves)]
        else:
            passed = leaves
        for leaf, name in sites.items():
            run.computed[name] = leaves[leaf].clone()
            run.passed[name] = forced.get(name, leaves[leaf]).clone()
            passed[leaf] = run.passed[name].clone()
        return tree_unflatten(passed, spec)

    def frozen(self, but: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**self.background, **but}

    # -- who reads whom --------------------------------------------------------------------------

    def readers(self, writer: str) -> set[str]:
        """Sites of the calls whose input moves when one writer does and all else is frozen."""
        if writer not in self._readers:
            still = self.run(self.frozen({})).arrived
            found: set[str] = set()
            for values in self._perturbed(writer):
                moved = self.run(self.frozen({writer: values})).arrived
                found |= {name for name in moved if _differ(moved[name], still[name])}
            self._readers[writer] = found
        return self._readers[writer]

    def _perturbed(self, writer: str) -> Iterator[Tensor]:
        """Values far away in both directions, element by element and all together."""
        values = self.background[writer]
        if not values.is_floating_point():
            yield from (values.roll(1, dims) for dims in range(values.dim()))
            return
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(values.shape, generator=generator, dtype=torch.float64).to(values)
        # Far enough that a ReLU passes one of the two, and near enough for a sigmoid.
        far = 20 * (1 + values.abs().max())
        for change in (noise, noise + far * noise.sign(), noise + far):
            yield values + change
            yield values - change

    def descendants(self, layer: str) -> set[str]:
        if layer not in self._below:
            found: set[str] = set()
            front = [layer]
            while front:
                for reader in self.readers(front.pop()) - {TARGET} - found:
                    found.add(reader)
                    front.append(reader)
            self._below[layer] = found
        return self._below[layer]

    # -- moves -----------------------------------------------------------------------------------

    def unit(self, name: str, index: int) -> Unit:
        """Which channels a neuron is, and where it may move."""
        return self.units[name][index] if name in self.units else (index, None)

    def values(self, name: str, index: int) -> Tensor:
        """A neuron's levels, `[levels, …]`, those of all its channels if it has several."""
        channels, _ = self.unit(name, index)
        values = self.levels[name][channels]
        return values if isinstance(channels, int) else values.movedim(1, 0)

    def moved(self, name: str, index: int, value: Tensor) -> Tensor:
        """A site's background values with one neuron set."""
        return self._set(name, index, self.background[name].clone(), value)

    def _set(self, name: str, index: int, into: Tensor, value: Tensor) -> Tensor:
        channels, where = self.unit(name, index)
        if where is not None and self.sites[name].batch is None:
            # Samples that move at different positions cannot share one row.
            into = into.expand(len(where), *into.shape[1:]).clone()
        rows = into.movedim(self.sites[name].channel, 0)
        rows[channels] = value if where is None else torch.where(where, value, rows[channels])
        return into

    def mixed(self, name: str, seen: Sequence[int] | None, moved: Tensor, still: Tensor) -> Tensor:
        if seen is None and name not in self.units:
            return moved
        values, dim = still.clone(), self.sites[name].channel
        for index in range(self.neurons(name)) if seen is None else seen:
            channels, _ = self.unit(name, index)
            values = self._set(name, index, values, moved.movedim(dim, 0)[channels])
        return values

    # -- effects ---------------------------------------------------------------------------------

    def through(self, layer: str, index: int, value: Tensor, through: Seen) -> Tensor:
        """Target, `[samples]`, when only some outputs of some readers see the moved neuron."""
        moved = self.moved(layer, index, value)
        overrides: dict[str, Tensor] = {}
        world = self._world(overrides)
        for reader in [name for name in self.layers if name in through]:
            computed = self.run({**world.passed, layer: moved}).computed[reader]
            still = world.passed[reader]
            overrides[reader] = self.mixed(reader, through[reader], computed, still)
            world = self._world(overrides)
        output = world.output
        if TARGET in through:
            output = self.run({**world.passed, layer: moved}).output
        return self.target(output)

    def _world(self, overrides: Mapping[str, Tensor]) -> Run:
        """Run with the overrides; what descends from them is live, all else is background."""
        live = set().union(*(self.descendants(name) for name in overrides)) - set(overrides)
        frozen = {name: value for name, value in self.background.items() if name not in live}
        return self.run({**frozen, **overrides})

    def total(self, layer: str, index: int, value: Tensor) -> Tensor:
        return self.target(self._world({layer: self.moved(layer, index, value)}).output)

    def path(self, neurons: Sequence[tuple[str, int]], value: Tensor) -> Tensor:
        """Target when a move travels along the path's neurons only."""
        (layer, index), *rest = neurons
        values = self.moved(layer, index, value)
        for reader, output in rest:
            computed = self.run(self.frozen({layer: values})).computed[reader]
            values = self.mixed(reader, [output], computed, self.background[reader])
            layer = reader
        return self.target(self.run(self.frozen({layer: values})).output)

    def effect(self, measure: Callable[[Tensor], Tensor], values: Tensor) -> tuple[float, float]:
        """Mean and standard error of measure(last value) − measure(first value)."""
        difference = (measure(values[-1]) - measure(values[0])).double()
        stderr = difference.std() / len(difference) ** 0.5 if len(difference) > 1 else float("nan")
        return float(difference.mean()), float(stderr)

    # -- levels and backgrounds ------------------------------------------------------------------

    def set_levels(self, values: Mapping[str, Tensor]) -> None:
        """Take each site's levels as `[levels, *native layout]`."""
        self.levels = {n: v.movedim(_after(self.sites[n].channel), 0) for n, v in values.items()}

    def quantiles(self, name: str, every: Tensor, q: Sequence[float]) -> Tensor:
        """Quantiles over the samples of all data, `[levels, *native layout]`."""
        site = self.sites[name]
        table = np.quantile(by_sample(every, site).numpy(), q, axis=0)
        return torch.stack([self.spread(name, torch.from_numpy(level)) for level in table])

    def mean(self, name: str, every: Tensor) -> Tensor:
        """Mean over the samples of all data, in native layout."""
        return self.spread(name, by_sample(every, self.sites[name]).mean(0))

    def spread(self, name: str, sample: Tensor) -> Tensor:
        """Give each reference sample the same values, in native layout."""
        site, like = self.sites[name], self.background[name]
        if site.batch is None:
            return sample[0].to(like)
        rows = sample.repeat(self.rows(like, site), *[1] * (sample.dim() - 1))
        return rows.movedim(0, site.batch).to(like)


def by_sample(values: Tensor, site: Site) -> Tensor:
    """Values of a site as `[samples, rows of one, *all other dimensions]`."""
    if site.batch is None:
        return values[None, None]
    return values.movedim(site.batch, 0).unflatten(0, (-1, site.many))


def tensors(tree: Any) -> list[Tensor]:
    """Every tensor of a nested structure, those in plain dataclasses too."""
    found: list[Tensor] = []
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])
    return found


@contextlib.contextmanager
def without_fused_kernels() -> Iterator[None]:
    """PyTorch's fused transformer kernels call no layers, so hooks would see nothing."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _call(path: str, counts: Counter[str]) -> str:
    return path if counts[path] == 1 else f"{path}#{counts[path] - 1}"


def _after(channel: int) -> int:
    """Where a dimension is once another has been put in front."""
    return channel if channel < 0 else channel + 1


def _copy(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _differ(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) != len(others) or any(
        not torch.equal(a, b) for a, b in zip(some, others, strict=True)
    )
