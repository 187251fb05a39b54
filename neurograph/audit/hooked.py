"""Effects by forward hooks alone, one model call for each intervention.

Nothing here replays, plans, shares a batch or multiplies weights: a module is called as the model
calls it, and hooks put other values in the place of what it returns. From the rest of the package
comes only what is measured: which calls are layers and where rows lie in what they return, which
elements are a neuron and what they move between, the target, and the background.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from neurograph.audit.calls import Calls, hooks
from neurograph.effects.experiment import Experiment
from neurograph.effects.routes import TARGET, Through
from neurograph.model.layers import Layer, Neuron
from neurograph.model.observe import call_model, undisturbed
from neurograph.utils.nested import flatten, iter_tensors

__all__ = ["Hooked"]


class Hooked:
    """One model under hooks, with the background of an experiment.

    With real samples as background, only what an effect is about is hooked: in a total effect the
    moved layer alone. Elsewhere the layers that do not descend from it are held.

    Parameters
    ----------
    experiment : Experiment
        Not open: the model must be as the user gave it.

    Attributes
    ----------
    background : dict of str to Tensor
        What each layer returns where nothing moves, as the model lays it out.
    unseen : list of str
        Layers whose modules the model runs without calling them, where no hook sees it.
    eps : float
        Distance from 1 to the next number in the coarsest type of what layers and model return.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.model: nn.Module = experiment.replay.model
        recording = experiment.recording
        self._held = False
        self._devices = sorted({p.device.index or 0 for p in self.model.parameters() if p.is_cuda})
        self._modules = dict(self.model.named_modules())
        self.size, self.batch = recording.size, recording.batch
        self.layers: dict[str, Layer] = {n: recording.layers[n] for n in experiment.graph}
        self._inputs = [name for name, layer in recording.layers.items() if layer.is_input]
        output, found = self.run({}, self.layers)
        targets = experiment.target(output, lambda: self.batch)
        self.eps = max(map(_eps, [*found.values(), *iter_tensors(output), targets]), default=0.0)
        self.unseen = [name for name in self.layers if name not in found]
        self.background = found
        if not experiment.real:
            calls = {n: (layer.call, layer.leaf) for n, layer in self.layers.items()}
            held = {n: recording.calls[call].leaves[leaf] for n, (call, leaf) in calls.items()}
            self.background = {n: held[n] for n in found}

    # -- one call of the model -------------------------------------------------------------------

    def run(
        self,
        forced: Mapping[str, Tensor],
        read: Collection[str] = (),
        arrived: dict[str, list[Tensor]] | None = None,
    ) -> tuple[Any, dict[str, Tensor]]:
        """Call the model once, on all reference samples.

        Parameters
        ----------
        forced : mapping of str to Tensor
            What these layers pass on, whatever they compute.
        read : collection of str
            Layers whose own result is wanted, whatever they pass on.
        arrived : dict, optional
            Filled with the tensors that each call of a layer, and the target, was given.

        Returns
        -------
        output : nested tensors
        computed : dict of str to Tensor
            For the layers in `read`; those that were not called are missing.
        """
        quiet = contextlib.nullcontext() if self._held else undisturbed(self.model)
        with quiet, torch.random.fork_rng(devices=self._devices):
            return self._call(forced, read, arrived)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the model in eval mode, and what is restored after, for several runs at once."""
        with undisturbed(self.model):
            self._held = True
            try:
                yield
            finally:
                self._held = False

    def _call(
        self,
        forced: Mapping[str, Tensor],
        read: Collection[str],
        arrived: dict[str, list[Tensor]] | None = None,
    ) -> tuple[Any, dict[str, Tensor]]:
        calls = Calls(forced, read, arrived)
        hooked = self.layers if arrived is not None else {*forced, *read}
        wanted = [layer for n, layer in self.layers.items() if n in hooked and not layer.is_input]
        for layer in wanted:
            calls.wanted[layer.call].append(layer)
        with hooks({layer.module: self._modules[layer.module] for layer in wanted}, calls):
            args, kwargs = self._given(calls)
            output = call_model(self.model, type(self.batch)(args, kwargs))
        if arrived is not None:
            arrived[TARGET] = [t.clone() for t in iter_tensors(output)]
        return output, calls.computed

    def _given(self, calls: Calls) -> tuple[Any, Any]:
        """The model's arguments, of which inputs may be forced; copies, as glue may write."""
        names = iter(self._inputs)
        leaves, rebuild = flatten((self.batch.args, dict(self.batch.kwargs)))
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                name = next(names) if leaf.dim() > 0 else None
                leaves[i] = leaf.clone() if name is None else calls.passed(name, leaf.clone())
        args, kwargs = rebuild(leaves)
        return args, kwargs

    def unrepeated(self) -> str | None:
        """Name the first layer that returns something else when the model is called again.

        Random state runs on from one call to the next. Empty where it is the model's output alone;
        None where both calls agree.
        """
        with undisturbed(self.model):
            (one, some), (other, others) = (self._call({}, self.layers) for _ in range(2))
        for name, value in some.items():
            if not _same([value], [others[name]] if name in others else []):
                return name
        return None if _same(list(iter_tensors(one)), list(iter_tensors(other))) else TARGET

    def readers(self, writer: str) -> set[str]:
        """Layers (and the target) that are given something else when a writer alone moves."""
        if self.unseen or not self.layers[writer].neurons:
            return set()
        found: set[str] = set()
        both: list[dict[str, list[Tensor]]] = []
        for level in (0, -1):
            both.append({})
            moved = self._moved(writer, self._every(writer), level)
            self.run(self._frozen({writer: moved}), arrived=both[-1])
        for call, tensors in both[0].items():
            if not _same(tensors, both[1].get(call, [])):
                found |= {name for name, layer in self.layers.items() if layer.call == call}
                found |= {TARGET} if call == TARGET else set()
        return found

    def end(self, writer: str, reader: str) -> tuple[Tensor, Tensor | None]:
        """A writer with all neurons at the contrast's end, and what a reader then returns."""
        moved = self._moved(writer, self._every(writer), -1)
        _, computed = self.run(self._frozen({writer: moved}), [reader])
        return moved, computed.get(reader)

    def _every(self, name: str) -> list[int]:
        return list(range(len(self.experiment.units(name))))

    # -- effects ---------------------------------------------------------------------------------

    def can_tell(self, kind: str, neuron: Neuron) -> bool:
        """Whether hooks can measure an effect: what they do not see cannot be moved or held."""
        if self.unseen and (kind != "total" or not self.experiment.real):
            return False
        return neuron.layer not in self.unseen

    def targets(self, kind: str, neurons: Sequence[Neuron], through: Through | None) -> Tensor:
        """Target of each sample at both ends of the contrast, ``[2, samples]``, float64.

        `kind` is ``"total"``, ``"path"`` (along `neurons`), or ``"node"`` or ``"edge"``, of the
        first neuron `through` outputs of its readers.
        """
        measure: Callable[[str, Tensor], Any]
        if kind == "total":
            measure = self._total
        elif kind == "path":
            measure = functools.partial(self._path, neurons[1:])
        else:
            measure = functools.partial(self._through, through or {})
        layer = neurons[0].layer
        unit = self.experiment.units(layer).unit(neurons[0])
        ends = [measure(layer, self._moved(layer, unit, level)) for level in (0, -1)]
        return torch.stack([self.experiment.target(e, lambda: self.batch) for e in ends]).double()

    def _total(self, layer: str, moved: Tensor) -> Any:
        return self.run(self._world({layer: moved}))[0]

    def _path(self, rest: Sequence[Neuron], layer: str, moved: Tensor) -> Any:
        for neuron in rest:
            unit = self.experiment.units(neuron.layer).unit(neuron)
            _, computed = self.run(self._frozen({layer: moved}), [neuron.layer])
            still = self.background[neuron.layer]
            moved = self._mixed(neuron.layer, [unit], computed.get(neuron.layer, still), still)
            layer = neuron.layer
        return self.run(self._frozen({layer: moved}))[0]

    def _through(self, through: Through, layer: str, moved: Tensor) -> Any:
        """All readers see the move at once, each of them also what the others changed.

        That is settled in rounds, the first readers first: as many as one descends from another.
        """
        readers = [name for name in self.layers if name in through]
        output: Any = None
        changed: dict[str, Tensor] = {}
        own: Mapping[str, Tensor] = self._alone
        for _ in readers:
            world, still = self._passed(own, changed), self._passed(own, changed, but=readers)
            _, computed = self.run({**world, layer: moved}, readers)
            changed = {
                name: self._mixed(name, through[name], value, still[name])
                for name, value in computed.items()
            }
            before = own
            output, own = self.run(self._world(changed), self.layers)
            if all(torch.equal(own[n], before[n]) for n in readers if n in own and n in before):
                break
        if TARGET in through:
            output, _ = self.run({**self._passed(own, changed), layer: moved})
        return output

    def _passed(
        self,
        own: Mapping[str, Tensor],
        changed: Mapping[str, Tensor],
        but: Collection[str] = (),
    ) -> dict[str, Tensor]:
        """What every layer passes on in a world, given what each computes there.

        `but` are layers of which that is wanted as if they were not changed.
        """
        live = own if self.experiment.real else self._below(changed)
        forced = {name: value for name, value in changed.items() if name not in but}
        return {**self.background, **{n: own[n] for n in live if n in own}, **forced}

    @functools.cached_property
    def _alone(self) -> dict[str, Tensor]:
        """What each layer computes where everything is at background."""
        return (
            self.background if self.experiment.real else self.run(self._frozen({}), self.layers)[1]
        )

    # -- what else is ----------------------------------------------------------------------------

    def _frozen(self, but: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every layer at background, except some."""
        return {**self.background, **but}

    def _world(self, changed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is forced so that a change has its consequences, and all else is background."""
        if self.experiment.real:
            return dict(changed)
        below = self._below(changed)
        held = {name: value for name, value in self.background.items() if name not in below}
        return {**held, **changed}

    def _below(self, changed: Mapping[str, Tensor]) -> set[str]:
        graph = self.experiment.graph
        return set().union(*(nx.descendants(graph, name) for name in changed))

    # -- rows ------------------------------------------------------------------------------------

    def _rows(self, name: str, tensor: Tensor) -> Tensor:
        """Rows of a layer's tensor, ``[samples, …]``, also where it is the same for all."""
        layer = self.layers[name]
        rows = layer.rows(tensor).reshape(-1, *layer.shape)
        return rows.expand(self.size, *layer.shape) if len(rows) == 1 else rows

    def _moved(self, name: str, units: int | list[int], level: int) -> Tensor:
        """A layer at background with neurons at a level of the contrast, as the model has it."""
        rows = self._rows(name, self.background[name]).flatten(1).clone()
        members = self.experiment.units(name).members(units).flatten()
        values = self.experiment.levels(name)[level].to(rows)[:, members].expand(self.size, -1)
        moving = self.experiment.moving(name)
        if moving is not None:
            values = torch.where(moving[:, members], values, rows[:, members])
        rows[:, members] = values
        return self.layers[name].tensor(rows.view(-1, *self.layers[name].shape))

    def _mixed(
        self, name: str, outputs: Sequence[int] | None, moved: Tensor, still: Tensor
    ) -> Tensor:
        """What a reader passes on if some of its outputs see the move."""
        mask = self.experiment.mask(name, outputs)
        rows = torch.where(mask, self._rows(name, moved), self._rows(name, still))
        varies = self.layers[name].layout.varies
        return self.layers[name].tensor(rows if varies else rows[:1])


def _eps(tensor: Tensor) -> float:
    if not tensor.is_floating_point():
        return 0.0
    coarse = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    if tensor.is_cuda and tensor.dtype == torch.float32 and coarse:
        return 2.0**-10
    return torch.finfo(tensor.dtype).eps


def _same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(
        a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
        if a.is_floating_point()
        else torch.equal(a, b)
        for a, b in zip(some, others, strict=True)
    )
