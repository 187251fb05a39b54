"""One HTML file that needs no other: a template with its styles, scripts and data inside."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from neurograph.utils.atomic import check_writable, write_atomically

__all__ = ["VIS_NETWORK", "Tab", "assemble", "clean", "tab_fields", "write_page"]

VIS_NETWORK = "vis-network"  # among scripts: the library that pyvis carries
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Tab:
    """A tab of a page.

    Attributes
    ----------
    name : str
        Its button is ``tab-NAME`` in the page, its panel ``panel-NAME``.
    label : str
    template : str or None
        What its panel holds, among the templates; None where a script fills it.
    fields : callable or None
        From what the page shows to what this template names.
    """

    name: str
    label: str
    template: str | None = None
    fields: Callable[[Any], Mapping[str, Any]] | None = None


def tab_fields(tabs: Iterable[Tab], result: Any) -> dict[str, Any]:
    """Fields of all tabs of a page that shows a result."""
    fields: dict[str, Any] = {}
    for tab in tabs:
        fields |= {} if tab.fields is None else tab.fields(result)
    return fields


def assemble(
    template: str, *, styles: Iterable[str], scripts: Iterable[str], data: Any, **fields: Any
) -> str:
    """Fill a template with what a page needs, so that it asks for nothing.

    Parameters
    ----------
    template : str
        Its name among the templates; what it shows is escaped.
    styles, scripts : iterable of str
        Names among the templates, in the order they apply; `VIS_NETWORK` is a script, too.
    data : object
        What the scripts read, `clean` or not.
    **fields
        What the template names.

    Returns
    -------
    str
        The page; the same arguments always give the same text.
    """
    code = [_vis_network() if name == VIS_NETWORK else _read(name) for name in scripts]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in code]
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True)
    return environment.get_template(template).render(
        **fields,
        # The page's policy names its scripts by hash: browsers run and fetch nothing else.
        script_hashes=["sha256-" + digest.decode() for digest in digests],
        scripts=[Markup(text) for text in code],
        style=Markup("".join(_read(name) for name in styles)),
        data=Markup(_json_for_html(clean(data))),
    )


def write_page(path: str | os.PathLike[str], render: Callable[[], str]) -> None:
    """Write a page to a file, whole or not at all.

    Parameters
    ----------
    path : str or os.PathLike
        File to write; one that exists is replaced.
    render : callable
        Returns the page; called once the file is known to be writable.

    Raises
    ------
    OptionError
        If `path` is a folder, or lies in one that does not exist or cannot be written to.
    """
    path = check_writable(path)
    write_atomically(path, render().encode())


def clean(value: Any) -> Any:
    """Turn a value into what strict JSON can hold; what is not finite becomes null."""
    if hasattr(value, "tolist"):  # numpy scalars and arrays, tensors
        value = value.tolist()
    if isinstance(value, float):  # a float32 holds no more than seven digits
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):  # a set has no order of its own to keep
        value = sorted(value, key=str)
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    return value if value is None or isinstance(value, (bool, int)) else str(value)


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _json_for_html(data: Any) -> str:
    """Write JSON that no HTML parser can mistake for markup."""
    escapes = {ord(mark): f"\\u{ord(mark):04x}" for mark in "<>&"}  # the rest is ASCII already
    return json.dumps(data, allow_nan=False, separators=(",", ":")).translate(escapes)


def _vis_network() -> str:
    """Source of the vis-network library that pyvis carries."""
    import pyvis

    versions = sorted(Path(pyvis.__file__).parent.glob("lib/vis-*/vis-network.min.js"))
    if versions:
        return versions[-1].read_text(encoding="utf-8")
    raise FileNotFoundError(f"{pyvis.__file__} has no vis-network.min.js: reinstall pyvis")
