"""Signed neuron circuits of eager PyTorch models, every effect measured by intervention.

A public name is imported when it is first used, from where `__init__.pyi` says: its one list.
"""

import ast
from importlib import import_module
from pathlib import Path as _File
from typing import Any

_HOMES = {
    alias.name: str(line.module)
    for line in ast.parse(_File(__file__).with_suffix(".pyi").read_text("utf-8")).body
    if isinstance(line, ast.ImportFrom)
    for alias in line.names
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
