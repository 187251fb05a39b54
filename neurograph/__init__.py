"""Signed neuron circuits of eager PyTorch models, every effect measured by intervention."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurograph.archive import load
    from neurograph.circuit import Circuit, Path
    from neurograph.contrast import Counterfactual
    from neurograph.errors import NeurographError
    from neurograph.layers import Neuron
    from neurograph.profile import profile
    from neurograph.search import search
    from neurograph.wiring import layer_graph

__all__ = [
    "Circuit",
    "Counterfactual",
    "NeurographError",
    "Neuron",
    "Path",
    "layer_graph",
    "load",
    "profile",
    "search",
]

_HOMES = {
    "Circuit": "circuit",
    "Counterfactual": "contrast",
    "NeurographError": "errors",
    "Neuron": "layers",
    "Path": "circuit",
    "layer_graph": "wiring",
    "load": "archive",
    "profile": "profile",
    "search": "search",
}


class _Package(ModuleType):
    """Imports the public names when they are first used: ``neurograph --help`` needs no torch."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing a submodule puts it here under its name; these names are the functions'.
        if name in ("profile", "search") and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
