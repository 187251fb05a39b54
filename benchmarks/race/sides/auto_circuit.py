"""auto-circuit: edges of a HookedTransformer that has the plain model's weights."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.prune import run_circuits
from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
from auto_circuit.types import AblationType, Edge, PatchType
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patch_mode, patchable_model, set_all_masks
from auto_circuit.utils.patchable_model import PatchableModel
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

from race.measure import Outcome, Work
from race.models import Transformer
from race.tasks import Loaded, margin

__all__ = ["METHODS"]

EDGES = 64  # that are patched by themselves; all 1,519 would take minutes
INTEGRATED = 10


def twin(model: Transformer) -> HookedTransformer:
    """The same network as a HookedTransformer."""
    heads, width = model.heads, model.width
    size = width // heads
    config = HookedTransformerConfig(
        n_layers=model.depth,
        d_model=width,
        n_ctx=model.length,
        d_head=size,
        n_heads=heads,
        d_mlp=4 * width,
        d_vocab=model.words,
        act_fn="gelu",
        normalization_type="LN",
        use_attn_result=True,
        use_split_qkv_input=True,
        use_hook_mlp_in=True,
        device="cpu",
    )
    hooked = HookedTransformer(config)
    known, state = model.state_dict(), hooked.state_dict()

    def put(name: str, values: Tensor) -> None:
        if state[name].shape != values.shape:
            raise ValueError(f"{name}: {tuple(values.shape)} for {tuple(state[name].shape)}")
        state[name] = values.clone()

    put("embed.W_E", known["embed.token.weight"])
    put("pos_embed.W_pos", known["embed.position.weight"])
    for i in range(model.depth):
        block = f"blocks.{i}."
        for letter in "qkv":
            weight = known[f"{block}attention.{letter}_proj.weight"]
            put(f"{block}attn.W_{letter.upper()}", weight.view(heads, size, width).transpose(1, 2))
            bias = known[f"{block}attention.{letter}_proj.bias"]
            put(f"{block}attn.b_{letter.upper()}", bias.view(heads, size))
        out = known[f"{block}attention.o_proj.weight"]
        put(f"{block}attn.W_O", out.T.reshape(heads, size, width))
        put(f"{block}attn.b_O", known[f"{block}attention.o_proj.bias"])
        for name, (layer, side) in {"in": (0, "in"), "out": (2, "out")}.items():
            put(f"{block}mlp.W_{name}", known[f"{block}mlp.{layer}.weight"].T)
            put(f"{block}mlp.b_{side}", known[f"{block}mlp.{layer}.bias"])
        for norm in ("ln1", "ln2"):
            put(f"{block}{norm}.w", known[f"{block}{norm}.weight"])
            put(f"{block}{norm}.b", known[f"{block}{norm}.bias"])
    put("ln_final.w", known["ln.weight"])
    put("ln_final.b", known["ln.bias"])
    put("unembed.W_U", known["unembed.weight"].T)
    put("unembed.b_U", known["unembed.bias"])
    hooked.load_state_dict(state)
    return hooked.eval().requires_grad_(False)


def place(edge: Edge) -> list[Any]:
    """The edge in the names of the plain model."""

    def head(name: str) -> list[str]:
        return name.removeprefix("A").split(".")

    source, reader = edge.src.name, edge.dest.name
    if source == "Resid Start":
        start: list[Any] = ["embed", 0]
    elif source.startswith("MLP"):
        start = [f"blocks.{source.split()[1]}.mlp", 0]
    else:
        block, index = head(source)
        start = [f"blocks.{block}.attention.o_proj:input", int(index)]
    if reader == "Resid End":
        return [*start, "unembed", 0]
    if reader.startswith("MLP"):
        return [*start, f"blocks.{reader.split()[1]}.mlp", 0]
    block, index, letter = head(reader)
    return [*start, f"blocks.{block}.attention.{letter.lower()}_proj", int(index)]


class Setup:
    """The wrapped model and its prompts, as the library wants them."""

    def __init__(self, task: Loaded) -> None:
        assert task.corrupt is not None
        self.task, self.corrupt = task, task.corrupt
        hooked = twin(task.model)
        self.logit_difference = float((hooked(task.clean) - task.model(task.clean)).abs().max())
        pairs = PromptDataset(
            task.clean, task.corrupt, list(task.labels[:, :1]), list(task.labels[:, 1:])
        )
        self.prompts = PromptDataLoader(
            pairs, seq_len=None, diverge_idx=0, batch_size=len(task.clean)
        )
        self.model: PatchableModel = patchable_model(
            hooked, factorized=True, slice_output="last_seq", separate_qkv=True
        )
        self.edges = sorted(self.model.edges, key=lambda edge: edge.name)

    def margin(self) -> Tensor:
        return margin(self.model(self.task.clean)[self.model.out_slice], self.task.labels)


def patching(task: Loaded) -> Work:
    """Exact effects: each edge's input is the twin's, everything else the prompt's."""
    setup = Setup(task)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(setup.edges), generator=generator)[:EDGES].tolist()

    def work() -> Outcome:
        scores = []
        with torch.inference_mode():
            patches = src_ablations(setup.model, setup.corrupt)
            clean = setup.margin().double().mean()
            # setting one mask by hand: to name the edges takes three times as long
            with patch_mode(setup.model, patches):
                for edge in (setup.edges[i] for i in chosen):
                    set_all_masks(setup.model, 0.0)
                    edge.patch_mask(setup.model).data[edge.patch_idx] = 1.0
                    effect = clean - setup.margin().double().mean()
                    scores.append([*place(edge), float(effect)])
        facts = {"edges": len(setup.edges), "logit_difference": setup.logit_difference}
        return Outcome(scores, facts=facts)

    return work


def _mask_gradient(**settings: Any) -> Callable[[Loaded], Work]:
    def method(task: Loaded) -> Work:
        setup = Setup(task)

        def work() -> Outcome:
            with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
                found = mask_gradient_prune_scores(
                    setup.model, setup.prompts, None, "logit", "avg_diff", **settings
                )
            scores = [[*place(edge), edge.prune_score(found).item()] for edge in setup.edges]
            return Outcome(scores)

        return work

    return method


def circuits(task: Loaded, orders: dict[str, list[list[Any]]], counts: list[int]) -> dict[str, Any]:
    """What this library's own evaluator says of rankings: mean margins by edges kept."""
    setup = Setup(task)
    places = {tuple(place(edge)): edge for edge in setup.edges}
    found: dict[str, Any] = {}
    for name, rows in orders.items():
        scores = setup.model.new_prune_scores()
        for *where, score in rows:
            edge = places[tuple(where)]
            scores[edge.dest.module_name][edge.patch_idx] = score
        with contextlib.redirect_stderr(io.StringIO()):
            outputs = run_circuits(
                setup.model,
                setup.prompts,
                counts,
                scores,
                patch_type=PatchType.TREE_PATCH,
                ablation_type=AblationType.RESAMPLE,
            )
        found[name] = {
            kept: float(margin(next(iter(out.values())), task.labels).double().mean())
            for kept, out in outputs.items()
        }
    return found


METHODS = {
    "gradient": _mask_gradient(mask_val=0.0),
    "integrated": _mask_gradient(integrated_grad_samples=INTEGRATED),
    "patching": patching,
}
