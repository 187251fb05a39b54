"""Figures of what a study found, as matplotlib draws them: needs the extra ``plot``.

Every function returns a `matplotlib.figure.Figure` of its own, 800 pixels wide, that belongs to no
window: ``figure.savefig(path)`` writes it. Nothing global is touched.
"""

from neurograph.report.figures.draw_distributions import distributions
from neurograph.report.figures.draw_faithfulness import faithfulness
from neurograph.report.figures.draw_history import history
from neurograph.report.figures.draw_masking import masking
from neurograph.report.figures.draw_quantile_bands import quantile_bands
from neurograph.report.figures.draw_responses import responses
from neurograph.report.figures.draw_separation import separation
from neurograph.report.figures.draw_shift import shift

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
