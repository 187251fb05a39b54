"""Which modules are layers: every parameter owner by default, or those a user chooses."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch.nn.utils import parametrize

from neurograph.errors import ModelError, OptionError
from neurograph.model.layers import INPUT_SIDE
from neurograph.utils.checks import listed, shown

__all__ = ["INPUT_SIDE", "Choice", "Sites", "find_sites", "matches", "refuse_unsupported"]

Predicate = Callable[[str, nn.Module], bool]
Choice = str | type[nn.Module] | Predicate | Sequence[str | type[nn.Module] | Predicate]

_WRAPPERS = {
    "DataParallel": "pass its .module instead",
    "DistributedDataParallel": "pass its .module instead",
    "FullyShardedDataParallel": "gather the weights into the plain model and pass that",
    "FSDPModule": "gather the weights into the plain model and pass that",
    "OptimizedModule": "pass the model as it was before torch.compile (its ._orig_mod)",
}


def refuse_unsupported(model: nn.Module) -> None:
    """Raise ModelError for what cannot be replayed, naming the module and the way out."""
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model is {type(model).__name__}, not a torch.nn.Module: pass the module itself"
        )
    for name, module in model.named_modules():
        kind, where = type(module).__name__, f"module {name!r}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{where} is a ScriptModule, which takes no Python forward: "
                "pass the eager model it was scripted from"
            )
        for base in type(module).__mro__:
            if base.__name__ in _WRAPPERS:
                raise ModelError(
                    f"{where} is wrapped in {base.__name__}: {_WRAPPERS[base.__name__]}"
                )
        if name.endswith(INPUT_SIDE):
            raise ModelError(
                f"{where} is called like the input side of another: rename it, without "
                f"{INPUT_SIDE!r} at its end"
            )
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise ModelError(f"{where} was compiled in place: pass a copy that was not")
        if ".quantized" in type(module).__module__:
            raise ModelError(
                f"{where} ({kind}) is quantised: pass the float model it was converted from"
            )
        for tensor in module.parameters(recurse=False):
            if nn.parameter.is_lazy(tensor):
                raise ModelError(f"{where} is lazy ({kind}): run the model once on a batch")
            if tensor.is_meta:
                raise ModelError(f"{where} is on the meta device, without weights: load them")


def is_normalisation(module: nn.Module) -> bool:
    """Whether a module is a normalisation, which counts as glue by default."""
    return "Norm" in type(module).__name__


def find_owners(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that own parameters directly: every one that may turn out to be a layer.

    Whether one is a layer or only a container around layers shows when the model runs.
    Normalisation modules are glue; what a parametrisation adds belongs to its owner.
    """
    owners: dict[str, nn.Module] = {}
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        if parametrize.is_parametrized(module):
            inside.append(f"{name}.parametrizations" if name else "parametrizations")
        owns = next(module.parameters(recurse=False), None) is not None
        if (owns or parametrize.is_parametrized(module)) and not is_normalisation(module):
            owners[name] = module
    return owners


@dataclass(frozen=True)
class Sites:
    """Where a model is recorded, and whose neurons are searched.

    Attributes
    ----------
    outputs : frozenset of str
        Paths of the modules whose outputs are recorded: those searched, and every other
        parameter owner, which need not be computed again where nothing has changed.
    inputs : frozenset of str
        Paths of the modules whose input side is recorded.
    left_out : frozenset of str
        Recorded outputs that are not searched: glue, as far as effects are concerned.
    asked : mapping of str to frozenset of str
        The patterns a user chose by, and the sites each matched.
    routed : frozenset of str
        Paths of modules that run on some rows only, as values say: what they return is never
        recorded, and computed in every run.
    """

    outputs: frozenset[str]
    inputs: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()
    asked: Mapping[str, frozenset[str]] = field(default_factory=dict)
    routed: frozenset[str] = frozenset()

    @property
    def paths(self) -> frozenset[str]:
        """Modules that are recorded on either side."""
        return self.outputs | self.inputs | self.routed

    def without(self, routed: frozenset[str]) -> Sites:
        """Sites of the other modules; these run on some rows only."""
        return replace(
            self,
            outputs=self.outputs - routed,
            inputs=self.inputs - routed,
            routed=self.routed | routed,
        )


def find_sites(model: nn.Module, layers: Choice | None = None) -> Sites:
    """Decide which modules are layers.

    Parameters
    ----------
    model : Module
    layers : str, type, predicate, or several of them, optional
        A pattern is compared with the last names of a module's path, `*` standing for (part of)
        one of them: ``"o_proj"``, ``"layers.*.mlp"``. With ``:input`` behind, it means the
        input side of the module. A predicate takes ``(path, module)``. By default every module
        that owns parameters directly, but for normalisations.

    Raises
    ------
    OptionError
        Nothing matches.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    >>> sorted(find_sites(model).outputs), sorted(find_sites(model, nn.LayerNorm).left_out)
    (['0', '2'], ['0', '2'])
    """
    owners = frozenset(find_owners(model))
    if layers is None:
        return Sites(owners)
    single = isinstance(layers, str | type) or callable(layers)
    choices = [layers] if single else listed(layers, "layers", "patterns, types or predicates")
    if not choices:
        raise OptionError("layers=[] chooses nothing: leave it out for every layer")
    modules = {name: module for name, module in model.named_modules() if name}
    first = {id(module): name for name, module in modules.items()}
    every = model.named_modules(remove_duplicate=False)
    paths = {name: first[id(module)] for name, module in every if name}
    asked: dict[str, frozenset[str]] = {}
    chosen: set[str] = set()
    for choice in choices:
        found = _chosen(choice, modules, paths)
        if isinstance(choice, str):
            asked[choice] = found
        chosen |= found
    inputs = frozenset(n.removesuffix(INPUT_SIDE) for n in chosen if n.endswith(INPUT_SIDE))
    outputs = frozenset(n for n in chosen if not n.endswith(INPUT_SIDE))
    rest = owners - outputs - _inside(outputs, outputs | inputs, owners)
    return Sites(outputs | rest, inputs, rest, asked)


def _chosen(
    choice: object, modules: Mapping[str, nn.Module], paths: Mapping[str, str]
) -> frozenset[str]:
    """Sites that one choice means; `paths` gives each path of a module its first one."""
    if isinstance(choice, str):
        side = INPUT_SIDE if choice.endswith(INPUT_SIDE) else ""
        found = {paths[name] + side for name in matches(choice.removesuffix(INPUT_SIDE), paths)}
        near = _near(choice.removesuffix(INPUT_SIDE), modules)
        hint = f"; near it are {', '.join(near)}" if near else ""
    elif isinstance(choice, type):
        found = {name for name, module in modules.items() if isinstance(module, choice)}
        hint = ""
    elif callable(choice):
        try:
            found = {name for name, module in modules.items() if choice(name, module)}
        except Exception as error:
            reason = " ".join(str(error).split())
            raise OptionError(
                f"layers={shown(choice)} raised {type(error).__name__}: {reason} (a predicate "
                "takes the path and the module)"
            ) from error
        hint = ""
    else:
        raise OptionError(f"layers={shown(choice)}: pass patterns, module types or predicates")
    if not found:
        pattern = choice if isinstance(choice, str) else getattr(choice, "__name__", choice)
        if pattern == "input" or str(pattern).startswith("input."):
            hint = " (inputs are no modules; they are there without being named)"
        raise OptionError(f"layers={pattern!r} matches no module of the model{hint}")
    return frozenset(found)


def _near(pattern: str, names: Iterable[str]) -> list[str]:
    """Names whose last parts, or which as a whole, are much like a pattern."""
    parts = pattern.count(".") + 1
    ends = {".".join(name.split(".")[-parts:]): name for name in reversed(list(names))}
    near = difflib.get_close_matches(pattern, ends, n=3, cutoff=0.6)
    near = [ends[end] for end in near]
    return near or difflib.get_close_matches(pattern, ends.values(), n=3, cutoff=0.3)


def matches(pattern: str, names: Iterable[str]) -> list[str]:
    """Names that a pattern means: the very name if there is one, else by their last parts.

    Examples
    --------
    >>> names = ["fc", "blocks.0.fc", "blocks.1.fc", "blocks.1.fc.bias"]
    >>> matches("fc", names), matches("blocks.*.fc", names)
    (['fc'], ['blocks.0.fc', 'blocks.1.fc'])
    """
    names = list(names)
    if pattern in names:
        return [pattern]
    parts = pattern.split(".")

    def fits(name: str) -> bool:
        last = name.split(".")[-len(parts) :]
        return len(last) == len(parts) and all(map(fnmatch.fnmatchcase, last, parts))

    return [name for name in names if fits(name)]


def _inside(
    outputs: frozenset[str], chosen: frozenset[str], owners: frozenset[str]
) -> frozenset[str]:
    """Owners inside a chosen module that holds no other chosen one: parts of that layer."""
    whole = [
        f"{path}." for path in outputs if not any(other.startswith(f"{path}.") for other in chosen)
    ]
    return frozenset(o for o in owners if any(o.startswith(prefix) for prefix in whole))
