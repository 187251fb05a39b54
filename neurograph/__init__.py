"""Signed neuron circuits of eager PyTorch models, every effect measured by intervention."""

from neurograph.ablation.curves import masking_curves
from neurograph.ablation.mask import mask_neurons
from neurograph.ablation.shift import causal_shift
from neurograph.activations.profile import profile
from neurograph.activations.separation import separation
from neurograph.archive import load
from neurograph.circuit import Circuit, Path
from neurograph.comparison.compare import compare
from neurograph.comparison.many import Comparisons
from neurograph.comparison.result import Comparison
from neurograph.contrast import Counterfactual
from neurograph.errors import NeurographError
from neurograph.faithfulness.curves import faithfulness
from neurograph.layers import Neuron
from neurograph.pathways.strongest import strongest_paths
from neurograph.replay.wiring import layer_graph
from neurograph.response import response_curves
from neurograph.score import score
from neurograph.search import search
from neurograph.target import logit_difference

__all__ = [
    "Circuit",
    "Comparison",
    "Comparisons",
    "Counterfactual",
    "NeurographError",
    "Neuron",
    "Path",
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
