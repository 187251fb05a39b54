"""Registry of the scorers: a new one is a file and a line here.

Names only, so that a command line can list them before anything heavy is imported.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["SCORERS"]

SCORERS: Mapping[str, str] = {
    "auto": "neurograph.effects.auto",
    "exact": "neurograph.effects.exact_scorer",
    "hybrid": "neurograph.effects.hybrid",
    "gradient": "neurograph.effects.gradient",
    "integrated": "neurograph.effects.gradient",
}
"""Where each `Method` is: the class of that name with a capital letter (``integrated``:
`Integrated`)."""
