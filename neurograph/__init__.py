"""Signed neuron circuits of eager PyTorch models, every effect measured by intervention."""

from neurograph.ablation.causal_shift import causal_shift
from neurograph.ablation.mask import mask_neurons
from neurograph.ablation.masking_curves import masking_curves
from neurograph.activations.profile import profile
from neurograph.activations.separation import separation
from neurograph.circuit.archive import load
from neurograph.circuit.circuit import Circuit, Path
from neurograph.comparison.compare import compare
from neurograph.comparison.comparison import Comparison
from neurograph.comparison.comparisons import Comparisons
from neurograph.effects.contrast import Counterfactual
from neurograph.errors import NeurographError
from neurograph.model.layers import Neuron
from neurograph.model.target import logit_difference
from neurograph.questions.functions import (
    faithfulness,
    response_curves,
    score,
    search,
    strongest_paths,
)
from neurograph.questions.study import Study
from neurograph.replay.wiring import layer_graph

__all__ = [
    "Circuit",
    "Comparison",
    "Comparisons",
    "Counterfactual",
    "NeurographError",
    "Neuron",
    "Path",
    "Study",
    "causal_shift",
    "compare",
    "faithfulness",
    "layer_graph",
    "load",
    "logit_difference",
    "mask_neurons",
    "masking_curves",
    "profile",
    "response_curves",
    "score",
    "search",
    "separation",
    "strongest_paths",
]
