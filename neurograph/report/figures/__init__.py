"""Figures of what a study found, as matplotlib draws them: needs the extra ``plot``.

Every function returns a `matplotlib.figure.Figure` of its own, 800 pixels wide, that belongs to no
window: ``figure.savefig(path)`` writes it. Nothing global is touched.
"""

from neurograph.report.figures.distributions import distributions
from neurograph.report.figures.faithfulness import faithfulness
from neurograph.report.figures.history import history
from neurograph.report.figures.masking import masking
from neurograph.report.figures.quantile_bands import quantile_bands
from neurograph.report.figures.responses import responses
from neurograph.report.figures.separation import separation
from neurograph.report.figures.shift import shift

__all__ = [
    "distributions",
    "faithfulness",
    "history",
    "masking",
    "quantile_bands",
    "responses",
    "separation",
    "shift",
]
