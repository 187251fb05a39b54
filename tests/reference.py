"""The same effects the slow, obvious way: forward hooks only, one run a neuron and level.

Nothing here comes from the library but plain names. Layers are given as a list of module paths
(`cell#1` for the second call); every run registers `register_forward_hook`s on a plain model,
which replace a layer's output, or only look at what it computed from what arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

Target = Callable[[Tensor], Tensor]
TARGET = ""


class Reference:
    """Effects on one model, with the background and the levels as plain tensors.

    Parameters
    ----------
    model : Module
        In eval mode.
    x : Tensor
        The reference samples: the input `input`.
    layers : sequence of str
        Every layer call, in order.
    channels : mapping of str to int
        The channel dimension of each layer's batched output, `input` included.
    target : callable
        From the model's output to one number a sample.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        layers: Sequence[str],
        channels: Mapping[str, int],
        target: Target,
    ) -> None:
        self.model, self.x, self.layers, self.channels = model, x, list(layers), channels
        self.target = target
        self.background: dict[str, Tensor] = {}
        outputs, _, _ = self.run({})
        self.background = {"input": x, **outputs}
        self.levels: dict[str, Tensor] = {}

    # -- one run ---------------------------------------------------------------------------------

    def run(
        self, forced: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Run with some outputs forced: outputs passed on, outputs computed, model's output."""
        passed: dict[str, Tensor] = {}
        computed: dict[str, Tensor] = {}
        calls: dict[str, int] = {}

        def hook(path: str) -> Callable[..., object]:
            def on_output(_module: nn.Module, _args: object, output: object) -> object:
                call = calls[path] = calls.get(path, -1) + 1
                name = path if call == 0 else f"{path}#{call}"
                first, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, ())
                assert isinstance(first, Tensor)
                computed[name] = first.clone()
                passed[name] = forced.get(name, first).clone()
                result = passed[name].clone()
                return (result, *rest) if isinstance(output, tuple) else result

            return on_output

        modules = dict(self.model.named_modules())
        paths = dict.fromkeys(name.split("#")[0] for name in self.layers)
        handles = [modules[path].register_forward_hook(hook(path)) for path in paths]
        try:
            with torch.no_grad():
                output = self.model(forced.get("input", self.x).clone())
        finally:
            for handle in handles:
                handle.remove()
        return passed, computed, output

    def frozen(self, but: Mapping[str, Tensor], at: Mapping[str, Tensor] | None = None) -> dict:
        return {**(self.background if at is None else at), **but}

    # -- who reads whom --------------------------------------------------------------------------

    def arrivals(self, forced: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        """What arrives at each layer (and leaves the model, under "") in a run."""
        seen: dict[str, list[Tensor]] = {}
        calls: dict[str, int] = {}
        modules = dict(self.model.named_modules())

        def look(path: str) -> Callable[..., None]:
            def before(_module: nn.Module, args: tuple[object, ...]) -> None:
                call = calls[path] = calls.get(path, -1) + 1
                name = path if call == 0 else f"{path}#{call}"
                seen[name] = [a.clone() for a in args if isinstance(a, Tensor)]

            return before

        paths = dict.fromkeys(name.split("#")[0] for name in self.layers)
        handles = [modules[path].register_forward_pre_hook(look(path)) for path in paths]
        try:
            seen[TARGET] = [self.run(forced)[2]]
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def readers(self, writer: str, seed: int = 0) -> set[str]:
        """Layers whose input moves when one writer does and all others are frozen."""
        still = self.arrivals(self.frozen({}))
        generator = torch.Generator().manual_seed(seed)
        value = self.background[writer]
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        # Far enough that a ReLU passes one of the two.
        noise = noise + 20 * noise.sign() * (1 + value.abs().max())
        found = set()
        for change in (noise, -noise):
            moved = self.arrivals(self.frozen({writer: value + change}))
            found |= {
                name
                for name in moved
                if any(not torch.equal(a, b) for a, b in zip(moved[name], still[name], strict=True))
            }
        return found

    def descendants(self, layer: str) -> set[str]:
        found: set[str] = set()
        front = [layer]
        while front:
            for reader in self.readers(front.pop()) - {TARGET} - found:
                found.add(reader)
                front.append(reader)
        return found

    # -- moves -----------------------------------------------------------------------------------

    def moved(self, layer: str, index: int, value: Tensor, at: Tensor | None = None) -> Tensor:
        """A layer's background output with one neuron set, `[samples or 1, *positions]`."""
        rows = (self.background[layer] if at is None else at).clone()
        rows.movedim(self.channels[layer], 0)[index] = value
        return rows

    def mixed(self, layer: str, seen: Sequence[int] | None, moved: Tensor, still: Tensor) -> Tensor:
        if seen is None:
            return moved
        rows = still.clone()
        dim = self.channels[layer]
        for index in seen:
            rows.movedim(dim, 0)[index] = moved.movedim(dim, 0)[index]
        return rows

    # -- effects ---------------------------------------------------------------------------------

    def through(
        self, layer: str, index: int, value: Tensor, through: Mapping[str, Sequence[int] | None]
    ) -> Tensor:
        """Target, `[samples]`, when only some outputs of some readers see the moved neuron."""
        moved = self.moved(layer, index, value)
        overrides: dict[str, Tensor] = {}
        world = self._world(overrides)
        for reader in [name for name in self.layers if name in through]:
            _, computed, _ = self.run({**world[0], layer: moved})
            still = world[0][reader]
            overrides[reader] = self.mixed(reader, through[reader], computed[reader], still)
            world = self._world(overrides)
        outputs, output = world
        if TARGET in through:
            output = self.run({**outputs, layer: moved})[2]
        return self.target(output)

    def _world(self, overrides: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Run with the overrides; what descends from them is live, all else is background."""
        live = set().union(*(self.descendants(name) for name in overrides)) - set(overrides)
        frozen = {name: value for name, value in self.background.items() if name not in live}
        passed, _, output = self.run({**frozen, **overrides})
        return {"input": self.background["input"], **passed}, output

    def total(self, layer: str, index: int, value: Tensor) -> Tensor:
        return self.target(self._world({layer: self.moved(layer, index, value)})[1])

    def path(self, neurons: Sequence[tuple[str, int]], value: Tensor) -> Tensor:
        """Target when a move travels along the path's neurons only."""
        (layer, index), *rest = neurons
        rows = self.moved(layer, index, value)
        for reader, output in rest:
            _, computed, _ = self.run(self.frozen({layer: rows}))
            rows = self.mixed(reader, [output], computed[reader], self.background[reader])
            layer = reader
        return self.target(self.run(self.frozen({layer: rows}))[2])

    def effect(self, measure: Callable[[Tensor], Tensor], values: Tensor) -> tuple[float, float]:
        """Mean and standard error of measure(last value) − measure(first value)."""
        difference = (measure(values[-1]) - measure(values[0])).double()
        stderr = difference.std() / len(difference) ** 0.5 if len(difference) > 1 else float("nan")
        return float(difference.mean()), float(stderr)
