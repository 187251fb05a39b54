"""The errors this library raises on purpose, one class for each thing a user can mend."""

from __future__ import annotations

__all__ = [
    "CircuitFileError",
    "DataError",
    "ModelError",
    "NeurographError",
    "OptionError",
    "SearchInterrupted",
]


class NeurographError(Exception):
    """Base class: one line that says what is wrong, where, and what to do."""


class ModelError(NeurographError):
    """The model cannot be searched: its kind, its weights, or what it raised on the data."""


class DataError(NeurographError, ValueError):
    """The data cannot be used: empty, not finite, or of the wrong shape."""


class OptionError(NeurographError, ValueError):
    """An option has a value that means nothing here."""


class CircuitFileError(NeurographError, ValueError):
    """A file is not a circuit, is damaged, or comes from a newer version."""


class SearchInterrupted(KeyboardInterrupt):
    """Ctrl-C during a search; `result` is what it had so far, as it would return it, or None."""

    def __init__(self, result: object | None) -> None:
        super().__init__("the search was interrupted")
        self.result = result
