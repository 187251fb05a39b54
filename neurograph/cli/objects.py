"""Find models and data by the name MODULE:NAME, in a module or a .py file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

from neurograph.errors import NeurographError, OptionError

__all__ = ["find_object"]


def find_object(spec: str, as_it_is: type | tuple[type, ...] = ()) -> Any:
    """Return what ``MODULE:NAME`` names, or what that returns when it can be called.

    Parameters
    ----------
    spec : str
        ``package.module:NAME`` or ``folder/file.py:NAME``; the current folder is searched too.
        A dotted name goes through attributes.
    as_it_is : type or tuple of types
        What is not called though it can be.

    Raises
    ------
    OptionError
        Nothing has this name, or it raised.
    ImportError
        There is no such module.

    Examples
    --------
    >>> find_object("math:pi")
    3.14159...
    >>> find_object("collections:OrderedDict")
    OrderedDict()
    """
    module, _, name = spec.rpartition(":")
    if spec.endswith(".py") and Path(spec).is_file():
        raise OptionError(f"{spec!r} is a file of many names: add one, as {spec}:NAME")
    if not module or not name:
        raise OptionError(f"{spec!r} is neither a file that is there nor MODULE:NAME")
    try:
        found = reduce(getattr, name.split("."), _import(module))
    except AttributeError as error:
        raise OptionError(f"{spec!r}: {error}") from error
    if not callable(found) or isinstance(found, as_it_is):
        return found
    return _run(spec, found)


def _import(name: str) -> Any:
    path = Path(name).resolve()
    is_file = path.suffix == ".py"
    folder = str(path.parent if is_file else Path.cwd())
    if folder not in sys.path:
        # An installed command has its own folder there, unlike python itself.
        sys.path.insert(0, folder)
    if is_file:
        return sys.modules.get(str(path)) or _run(name, lambda: _import_file(path))
    try:
        return _run(name, lambda: importlib.import_module(name))
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ImportError(f"{error}: name an importable module or a .py file") from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise OptionError(f"there is no file '{path}' to import")
    # Under its path, so that it hides no other module of this name.
    spec = importlib.util.spec_from_file_location(str(path), path)
    if spec is None or spec.loader is None:
        raise OptionError(f"'{path}' cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def _run(name: str, action: Any) -> Any:
    """Run a user's code; errors name it."""
    try:
        return action()
    except (NeurographError, ImportError, OSError):
        raise
    except Exception as error:
        raise OptionError(f"{name!r} raised {type(error).__name__}: {error}") from error
