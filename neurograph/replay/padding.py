"""Which positions of which layers a mask calls padding, shown by intervention rather than by name.

A mask says padding of a layer if what it calls padding does not move the output and what it calls
tokens does. Masks are written both ways: 1 where a token is (``attention_mask`` of Hugging Face),
or True where padding is (``key_padding_mask`` of PyTorch), and both readings are tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from neurograph.errors import ModelError
from neurograph.model.batch import Batch
from neurograph.model.observe import input_tensors
from neurograph.model.positions import INVERTED, is_mask, masks_for, may_say_padding, says_token
from neurograph.model.target import Target, logits_of
from neurograph.replay.plan import Plan
from neurograph.replay.recording import Recording, capture
from neurograph.replay.replay import Replay
from neurograph.utils.nested import flatten

__all__ = ["Padding", "find_padding"]

_SAMPLES = 4
_SHOWN = 3


@dataclass(frozen=True)
class Padding:
    """What was found.

    Attributes
    ----------
    masks : mapping of str to str
        For layers that have padding the name of the input that says so, with ``~`` before it where
        it is not zero for padding.
    notes : tuple of str
        Notes for the result.
    tried : bool
        Whether there were samples with padding.
    """

    masks: Mapping[str, str]
    notes: tuple[str, ...] = ()
    tried: bool = False

    def on(self, recording: Recording) -> Recording:
        """Return the recording with layers that know their masks."""
        layers = {
            name: replace(layer, mask=self.masks.get(name))
            for name, layer in recording.layers.items()
        }
        return replace(recording, layers=layers)


def find_padding(
    model: nn.Module,
    batches: Iterable[Batch],
    recording: Recording,
    target: Target | None = None,
) -> Padding:
    """Find which layers have padding by which of the masks among the inputs.

    Parameters
    ----------
    model : Module
    batches : iterable of Batch
        Read until some hold padding.
    recording : Recording
        Of any samples: tells the inputs and what was recorded.
    target : Target, optional
        What padding must not move; without it the logits, at the tokens if they have positions.

    Returns
    -------
    Padding
        Of no layer where no sample has padding.
    """
    inputs = input_tensors(model, recording.batch)
    unread = _unread(inputs, recording)
    if not any(is_mask(name, tensor) for name, tensor in inputs.items()):
        return Padding({}, unread)
    padded = _padded(model, batches)
    if padded is None:
        return Padding({}, unread)
    try:
        few = capture(model, padded, recording.sites, like=recording)
        with Replay(model, few) as replay:
            found = _Trial(replay, input_tensors(model, padded), target).found()
            return replace(found, notes=found.notes + unread)
    except ModelError:  # a model made for one batch size
        masks = ", ".join(sorted(n.split(".")[-1] for n, t in inputs.items() if is_mask(n, t)))
        note = f"it could not be tried what {masks} calls padding: nothing is"
        return Padding({}, (note, *unread))


def _unread(inputs: Mapping[str, Tensor], recording: Recording) -> tuple[str, ...]:
    """Tell of inputs that are called masks, or lengths, and say padding in a way not read here."""
    if not any(layer.is_sequence for layer in recording.layers.values()):
        return ()
    names = [n for n, t in inputs.items() if may_say_padding(n) and not is_mask(n, t)]
    varied = [n.split(".")[-1] for n in names if bool((inputs[n] != inputs[n].flatten()[0]).any())]
    return tuple(
        f"{name!r} is not read as a mask: only one of 0 and 1, [samples, positions], is. Where it "
        "says padding, that moves and counts like all else"
        for name in varied
    )


def _padded(model: nn.Module, batches: Iterable[Batch]) -> Batch | None:
    """A few samples that have padding by any mask, of one batch."""
    for batch in batches:
        rows: dict[int, None] = {}
        for name, mask in input_tensors(model, batch).items():
            if is_mask(name, mask) and len(mask) == batch.size:
                both = (mask != 0).any(1) & (mask == 0).any(1)
                rows |= dict.fromkeys(both.nonzero()[:_SAMPLES, 0].tolist())
        if rows:
            chosen = sorted(rows)
            return batch.map(lambda leaf, chosen=chosen: leaf[chosen])
    return None


class _Trial:
    """Layers moved at what masks call padding, or tokens, on samples that have both."""

    def __init__(self, replay: Replay, inputs: Mapping[str, Tensor], target: Target | None) -> None:
        self.replay, self.inputs, self.target = replay, inputs, target
        recording = replay.recording
        self.candidates: dict[str, list[str]] = {
            name: [mask for mask in masks_for(inputs, layer) if not _inert(inputs[mask])]
            for name, layer in recording.layers.items()
            if layer.neurons and layer.layout.varies
        }
        self.masks = list(dict.fromkeys(m for some in self.candidates.values() for m in some))
        self.generator = torch.Generator().manual_seed(0)
        live = frozenset(n for n, layer in recording.layers.items() if not layer.is_input)
        self.plan = Plan(live=live)
        self.still = self._output({})

    def found(self) -> Padding:
        masks: dict[str, str] = {}
        for mask in self.masks:
            left = [n for n, own in self.candidates.items() if mask in own and n not in masks]
            plain = self._fitting(left, mask)
            inverted = [] if plain == left else self._fitting(left, INVERTED + mask)
            # Layers that work position by position fit both where the output has positions too:
            # they follow the others.
            if set(inverted) - set(plain) and not set(plain) - set(inverted):
                plain = []
            masks |= dict.fromkeys(inverted, INVERTED + mask) | dict.fromkeys(plain, mask)
        return Padding(masks, tuple(self._notes(masks)), tried=True)

    def _fitting(self, layers: Sequence[str], mask: str) -> list[str]:
        """Layers where a reading of a mask is shown to matter; tried together, then one by one."""
        if not layers:
            return []
        if not self._moves(layers, mask, tokens=False) and self._moves(layers, mask, tokens=True):
            return list(layers)
        alone = [[name] for name in layers] if len(layers) > 1 else []
        return [
            one[0]
            for one in alone
            if not self._moves(one, mask, tokens=False) and self._moves(one, mask, tokens=True)
        ]

    def _moves(self, layers: Sequence[str], mask: str, *, tokens: bool) -> bool:
        """Whether the output moves with what a mask calls tokens, or padding, of some layers."""
        there = says_token(self.inputs, mask)
        places = there if tokens else ~there
        moved = self._output({name: self._change(name, places) for name in layers})
        still = self.still
        if self.target is None and moved.dim() > 1:
            axes = [d for d in range(1, moved.dim()) if moved.shape[d] == places.shape[1]]
            if axes:  # padding may say what it likes of itself
                moved, still = (x.movedim(axes[0], 1)[there] for x in (moved, still))
        if not still.numel():
            return False
        close = 1000 * torch.finfo(still.dtype).eps
        scale = float(still.abs().max())
        return not torch.allclose(moved, still, rtol=close, atol=close * scale, equal_nan=True)

    def _change(self, name: str, places: Tensor) -> Tensor:
        """What is added to the rows of a layer: noise as large as its values, at some places."""
        layer, rows = self.replay.recording.layers[name], self.replay.recording.main(name)
        size = rows.std() if rows.numel() > 1 and float(rows.std()) > 0 else torch.ones(())
        noise = torch.randn(rows.shape, generator=self.generator, dtype=torch.float64)
        at = places.cpu().unsqueeze(layer.channel_dim)
        return (noise * at).to(rows) * size.to(rows)

    def _output(self, changes: dict[str, Tensor]) -> Tensor:
        recording = self.replay.recording
        plan = replace(self.plan, nudged=frozenset(changes))
        output = self.replay.run(plan, changes).output
        if self.target is not None:
            return self.target(output, lambda: recording.batch).detach()
        logits = logits_of(output, recording.size).detach()
        leaf = next((i for i, x in enumerate(flatten(output)[0]) if x is logits), None)
        known = None if leaf is None else recording.layouts[leaf]
        return logits if known is None or known.dim is None else known.rows(logits)

    def _notes(self, masks: Mapping[str, str]) -> Iterable[str]:
        for mask in self.masks:
            own = [name for name, some in self.candidates.items() if mask in some]
            called = mask.split(".")[-1]
            honoured = {known.removeprefix(INVERTED) for known in masks.values()}
            if mask in honoured and self.inputs[mask].is_floating_point():
                yield (
                    f"{called!r} is of floating-point numbers, so that its entries are features as "
                    "well: pass it as integers or booleans"
                )
            without = [name for name in own if name not in masks]
            if any(masks.get(name) == INVERTED + mask for name in own):
                yield (
                    f"{called!r} is not 0 where padding is (moving these positions does not move "
                    "the output, moving the others does): it is read as a mask of padding"
                )
            elif mask in masks.values():
                yield (
                    f"{called!r} is read as a mask that is 0 where padding is: these positions "
                    "neither move nor count in statistics"
                )
            if without:
                where = "of the model" if len(without) == len(own) else _listed(without)
                yield (
                    f"what {called!r} calls padding moves the output, or nothing does, in the "
                    f"layers {where}: no position is padding there"
                )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _inert(mask: Tensor) -> bool:
    """Whether a mask is the same everywhere."""
    return bool((mask != 0).all()) or bool((mask == 0).all())
