"""Figures of what a study found, as matplotlib draws them: needs the extra ``plot``.

Every function returns a `matplotlib.figure.Figure` of its own, 800 pixels wide, that belongs to no
window: ``figure.savefig(path)`` writes it. Nothing global is touched.
"""

from neurograph.report.figures.draw_distributions import distributions as distributions
from neurograph.report.figures.draw_exemplars import exemplars as exemplars
from neurograph.report.figures.draw_faithfulness import faithfulness as faithfulness
from neurograph.report.figures.draw_history import history as history
from neurograph.report.figures.draw_masking import masking as masking
from neurograph.report.figures.draw_quantile_bands import quantile_bands as quantile_bands
from neurograph.report.figures.draw_responses import responses as responses
from neurograph.report.figures.draw_separation import separation as separation
from neurograph.report.figures.draw_shift import shift as shift
from neurograph.report.figures.draw_signals import signals as signals
