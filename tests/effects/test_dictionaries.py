"""Features of dictionaries as neurons, against numpy, hooks, and directions that are the same."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

import neurograph as ng
from neurograph.effects.exact import path_effects
from neurograph.errors import OptionError
from neurograph.model.dictionary import Dictionary
from neurograph.model.dictionary_files import load_dictionary
from tests import zoo
from tests.case import as_data
from tests.effects.test_bases import F64, SCORERS, X, orthogonal, perceptron, table

OPTIONS: dict[str, Any] = {"reference": 8, "progress": False}


def weights(channels: int, features: int, seed: int = 0, **shift: float) -> dict[str, Tensor]:
    """Random tensors of a dictionary, by SAELens' names."""
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64)

    found = {"W_enc": some(channels, features), "W_dec": some(features, channels)}
    return found | {"b_enc": some(features) + shift.get("up", 0.0), "b_dec": some(channels)}


def dictionary(channels: int, features: int, seed: int = 0, **settings: Any) -> Dictionary:
    own = weights(channels, features, seed)
    return Dictionary(own["W_enc"], own["W_dec"], own["b_enc"], own["b_dec"], **settings)


def by_numpy(
    x: NDArray[Any], own: dict[str, Tensor], kind: str, *, k: int = 0, subtract: bool = True
) -> NDArray[Any]:
    """Coordinates of rows one at a time, from the definitions alone."""
    w = {name: tensor.numpy() for name, tensor in own.items()}
    rows = []
    for row in x:
        before = (row - subtract * w["b_dec"]) @ w["W_enc"] + w["b_enc"]
        features = np.where(before > 0, before, 0)
        if kind == "jumprelu":
            features[before <= w["threshold"]] = 0
        if kind == "topk":
            features[np.argsort(before)[:-k]] = 0
        rows.append(np.concatenate([features, row - features @ w["W_dec"] - w["b_dec"]]))
    return np.array(rows)


THRESHOLD = torch.linspace(-1, 2, 9, dtype=F64)
KINDS: dict[str, dict[str, Any]] = {
    "relu": {},
    "jumprelu": {"threshold": THRESHOLD},
    "topk": {"k": 3},
}


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_features_and_the_remainder_are_those_of_numpy(kind: str, subtract: bool) -> None:
    own = weights(4, 9)
    found = dictionary(4, 9, activation=kind, subtract_decoder_bias=subtract, **KINDS[kind])
    coordinates = found.coordinates(X.view(5, 10, 4))
    tensors = own | {"threshold": THRESHOLD}
    wanted = by_numpy(X.numpy(), tensors, kind, k=3, subtract=subtract)
    np.testing.assert_allclose(coordinates.view(50, -1), wanted, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.from_coordinates(coordinates).view(50, 4), X, atol=1e-13)
    assert 0 < (wanted[:, :9] > 0).mean() < 1
    single = found.coordinates(X.float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(found.from_coordinates(single), X.float(), atol=1e-5)
    left, spread = wanted[:, 9:], X.numpy() - X.numpy().mean(0)
    quality = found.quality(X)
    assert quality.explained == pytest.approx(1 - (left**2).sum() / (spread**2).sum())
    assert quality.active == pytest.approx((wanted[:, :9] > 0).sum() / 50)


# -- the same as something else --------------------------------------------------------------------


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("of", ["neurons", "edges"])
def test_features_that_never_rest_are_directions(scorer: str, of: Any) -> None:
    """Far above 0 every feature is a coordinate and a number: what moves it moves the same."""
    bases, same = {}, {}
    for name, size in [("0", 7), ("2", 6)]:
        turn = orthogonal(size)
        up = torch.full((size,), 8.0, dtype=F64)
        same[name] = turn
        bases[name] = Dictionary(turn.T, turn, up, -up @ turn, subtract_decoder_bias=False)
    wanted = table(ng.Study(perceptron(), X, 1, basis=same, **OPTIONS), {}, of=of, scorer=scorer)
    found = table(ng.Study(perceptron(), X, 1, basis=bases, **OPTIONS), {}, of=of, scorer=scorer)
    both = found.index.intersection(wanted.index)  # edges of remainders that do not move are none
    assert len(both) > 100 if of == "edges" else len(both) == len(wanted)
    np.testing.assert_allclose(found[both], wanted[both], rtol=1e-9, atol=1e-9)
    for one in (found, wanted):
        assert (one.drop(both).abs() < 1e-9).all()


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_the_remainder_add_up_where_the_model_is_linear(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 7), nn.Linear(7, 6), nn.Linear(6, 1)).double()
    basis = dictionary(6, 9, activation=kind, **KINDS[kind])
    study = ng.Study(model, X, None, basis={"1": basis}, contrast="zero", **OPTIONS)
    effects = table(study, {})["1"]
    assert len(effects) == 10
    reference = X[study.provenance["data"]["reference"]]
    wanted = (model(reference) - model[2](basis.decoder_bias)).mean().item()
    assert effects.sum() == pytest.approx(wanted, rel=1e-9)


# -- against hooks ---------------------------------------------------------------------------------


def trained(rows: Tensor, features: int) -> Dictionary:
    """A sparse autoencoder of some rows, trained for a moment."""
    torch.manual_seed(0)
    encoder = nn.Parameter(torch.randn(rows.shape[1], features, dtype=F64) / 3)
    decoder = nn.Parameter(encoder.detach().T.clone())
    biases = [nn.Parameter(torch.zeros(features, dtype=F64)), nn.Parameter(rows.mean(0))]
    optimiser = torch.optim.Adam([encoder, decoder, *biases], lr=0.01)
    for _ in range(300):
        found = ((rows - biases[1]) @ encoder + biases[0]).relu()
        loss = (found @ decoder + biases[1] - rows).square().sum(1).mean()
        loss = loss + 0.1 * (found * decoder.norm(dim=1)).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return Dictionary(encoder, decoder, *biases)


def parts(basis: Dictionary, rows: Tensor) -> list[Tensor]:
    """What each neuron adds to rows ``[…, channels]``: features, then the error."""
    before = (rows - basis.decoder_bias) @ basis.encoder + basis.encoder_bias
    features = torch.where(before > 0, before, torch.zeros_like(before))
    added = [features[..., i : i + 1] * row for i, row in enumerate(basis.decoder)]
    return [*added, rows - sum(added) - basis.decoder_bias]


def hooked(module: nn.Module, change: Callable[[Tensor], Tensor], run: Callable[[], Any]) -> Any:
    """Run with what a module returns changed."""
    hook = module.register_forward_hook(lambda _m, _a, out: change(out))
    with torch.no_grad():
        found = run()
    hook.remove()
    return found


@pytest.mark.parametrize("background", ["data", "mean", "zero"])
def test_effects_of_features_and_of_the_remainder_are_those_of_hooks(background: Any) -> None:
    model = perceptron()
    basis = trained(model[0](X).detach(), 12)
    quality = basis.quality(model[0](X))
    assert 0.7 < quality.explained < 0.999
    assert 0.5 < quality.active < 9
    study = ng.Study(
        model, X, 1, basis={"0": basis}, contrast="zero", background=background, **OPTIONS
    )
    assert study.audit().agrees
    if background != "data":
        return
    found = table(study, {})["0"]
    reference = X[study.provenance["data"]["reference"]]
    whole = model(reference)[:, 1]
    for unit in range(13):
        moved = hooked(
            model[0], lambda out, unit=unit: out - parts(basis, out)[unit], lambda: model(reference)
        )
        assert found[unit] == pytest.approx((whole - moved[:, 1]).mean().item(), abs=1e-9)
    assert (found.abs() > 1e-3).sum() > 5


@pytest.mark.parametrize("positions", ["all", "last", "each"])
@pytest.mark.parametrize(("name", "kind"), [("resnet", nn.Conv2d), ("gpt2", "c_fc")])
def test_features_of_maps_and_sequences_are_those_of_hooks(
    name: str, kind: Any, positions: Any
) -> None:
    """A feature of channels, read at every place: at all of them, at the last, at each."""
    network = zoo.WHOLE[name](0)
    model, inputs = network.model, network.inputs(12, 1)
    data = as_data(inputs)
    layers = ng.layer_graph(model, data)
    path, module = next(
        (p, m)
        for p, m in model.named_modules()
        if (p.endswith(kind) if isinstance(kind, str) else isinstance(m, kind))
        and layers.out_degree(p)
    )
    basis = dictionary(layers.nodes[path]["neurons"], 5)
    options: dict[str, Any] = {"reference": 3, "progress": False, "contrast": "zero"}
    options |= {"basis": {path: basis}, "positions": positions}
    study = ng.Study(model, data, network.target, **options)
    effects = table(study, {})[path]
    chosen = {k: v[study.provenance["data"]["reference"]] for k, v in inputs.items()}
    dim = 1 if isinstance(module, nn.Conv2d) else -1

    def run() -> Tensor:
        return network.target(model(**chosen), None)

    def without(out: Tensor, unit: int, where: Any) -> Tensor:
        rows = out.movedim(dim, -1).clone()
        rows[:, where] -= parts(basis, rows.double())[unit][:, where]
        return rows.movedim(-1, dim)

    whole = hooked(module, lambda out: out, run)
    is_sequence = out_positions(module, run) is not None
    for place, effect in effects.items():
        unit, position = place if isinstance(place, tuple) else (place, None)
        where: Any = slice(None) if position is None or math.isnan(position) else int(position)
        if positions == "last" and is_sequence:
            where = -1
        moved = hooked(module, functools.partial(without, unit=unit, where=where), run)
        wanted = (whole - moved).double().mean().item()
        assert effect == pytest.approx(wanted, rel=1e-4, abs=1e-9)
    assert len(effects) == 6 * (out_positions(module, run) or 1 if positions == "each" else 1)
    assert effects.abs().max() > 1e-3
    assert study.audit().agrees


def out_positions(module: nn.Module, run: Callable[[], Any]) -> int | None:
    """How many positions a module's output has; None for maps."""
    shapes: list[tuple[int, ...]] = []
    hooked(module, lambda out: (shapes.append(out.shape), out)[1], run)
    return shapes[0][1] if len(shapes[0]) == 3 else None


# -- files -----------------------------------------------------------------------------------------


def saelens(folder: Path, tensors: dict[str, Tensor], **settings: Any) -> Path:
    folder.mkdir()
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "sae_weights.safetensors")
    sizes = {"d_in": len(tensors["W_enc"]), "d_sae": tensors["W_enc"].shape[1]}
    (folder / "cfg.json").write_text(json.dumps(sizes | settings))
    return folder


def sparsify(folder: Path, tensors: dict[str, Tensor], **settings: Any) -> Path:
    folder.mkdir()
    named = {"encoder.weight": tensors["W_enc"].T.contiguous(), "encoder.bias": tensors["b_enc"]}
    named |= {name: tensors[name] for name in tensors if name not in ("W_enc", "b_enc")}
    save_file(named, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": len(tensors["W_enc"])} | settings))
    return folder


OWN = weights(4, 9)
JUMP = OWN | {"threshold": THRESHOLD}


@pytest.mark.parametrize(
    ("write", "tensors", "settings", "kind", "subtract"),
    [
        (saelens, OWN, {"architecture": "standard", "apply_b_dec_to_input": False}, "relu", False),
        (saelens, OWN, {"normalize_activations": False, "activation_fn_str": "relu"}, "relu", True),
        (saelens, OWN, {"metadata": {"sae_lens_version": "6.12.1"}}, "relu", True),
        (saelens, JUMP, {"architecture": "jumprelu"}, "jumprelu", True),
        (saelens, OWN, {"architecture": "topk", "k": 3}, "topk", True),
        (
            saelens,
            OWN,
            {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}},
            "topk",
            True,
        ),
        (saelens, OWN | {"scaling_factor": torch.ones(9)}, {}, "relu", True),
        (sparsify, OWN, {"k": 3, "num_latents": 0, "expansion_factor": 32}, "topk", True),
        (sparsify, OWN, {"k": 3, "activation": "topk", "transcode": False}, "topk", True),
    ],
)
def test_layouts_of_libraries_are_read(
    tmp_path: Path,
    write: Callable[..., Path],
    tensors: dict[str, Tensor],
    settings: dict[str, Any],
    kind: str,
    subtract: bool,
) -> None:
    found = load_dictionary(write(tmp_path / "sae", tensors, **settings))
    wanted = by_numpy(X.numpy(), tensors, kind, k=3, subtract=subtract)
    np.testing.assert_allclose(found.coordinates(X), wanted, rtol=1e-9, atol=1e-12)


def test_features_that_are_ranked_by_what_they_write(tmp_path: Path) -> None:
    """SAELens' `rescale_acts_by_decoder_norm`: times the norm of what it writes, then k of them."""
    path = saelens(tmp_path / "x", OWN, architecture="topk", k=3, rescale_acts_by_decoder_norm=True)
    found = load_dictionary(path).coordinates(X)
    norms = OWN["W_dec"].norm(dim=1)
    before = ((X - OWN["b_dec"]) @ OWN["W_enc"] + OWN["b_enc"]) * norms
    wanted = torch.zeros_like(before)
    for row, values in zip(wanted, before, strict=True):
        for i in values.argsort()[-3:]:
            row[i] = max(values[i], 0)
    np.testing.assert_allclose(found[:, :9], wanted, atol=1e-12)
    made = (wanted / norms) @ OWN["W_dec"] + OWN["b_dec"]
    np.testing.assert_allclose(found[:, 9:], X - made, atol=1e-12)


def test_a_single_file_says_what_it_can(tmp_path: Path) -> None:
    file = tmp_path / "sae.safetensors"
    save_file(OWN, file)
    with pytest.raises(OptionError, match="which activation its features have: pass activation="):
        load_dictionary(file)
    with pytest.raises(OptionError, match="whether b_dec is subtracted"):
        load_dictionary(file, activation="relu")
    found = load_dictionary(file, activation="topk", k=3, subtract_decoder_bias=False)
    wanted = by_numpy(X.numpy(), OWN, "topk", k=3, subtract=False)
    np.testing.assert_allclose(found.coordinates(X), wanted, rtol=1e-9, atol=1e-12)
    save_file(JUMP | {"b_dec": torch.zeros(4, dtype=F64)}, file)
    assert load_dictionary(file).activation == "jumprelu"


@pytest.mark.parametrize(
    ("write", "tensors", "settings", "message"),
    [
        (saelens, OWN, {"normalize_activations": "layer_norm"}, "normalize_activations='layer_nor"),
        (saelens, OWN, {"normalize_activations": True}, "multiply W_enc by s"),
        (saelens, OWN, {"architecture": "gated"}, "architecture='gated'.* is not computed here"),
        (saelens, OWN, {"activation_fn_str": "tanh-relu"}, "activation 'tanh-relu'"),
        (saelens, OWN, {"architecture": "skip_transcoder"}, "architecture='skip_transcoder'"),
        (saelens, OWN | {"scaling_factor": torch.full((9,), 2.0)}, {}, "scaling factor"),
        (saelens, OWN, {"architecture": "jumprelu"}, "lacks threshold: it holds W_dec, W_enc"),
        (saelens, JUMP, {}, "has threshold, which is not understood"),
        (saelens, OWN, {"architecture": "topk"}, "'topk' has one"),
        (saelens, OWN, {"architecture": "topk", "k": 10}, "of 9 features k=10 must be 9 or less"),
        (saelens, OWN, {"d_in": 5}, "d_in is 5 but W_enc has 4"),
        (saelens, OWN | {"b_dec": torch.zeros(3)}, {}, "decoder_bias has 3 numbers, but 4"),
        (sparsify, OWN, {"k": 3, "activation": "groupmax"}, "activation='groupmax'"),
        (sparsify, OWN, {"k": 3, "skip_connection": True}, "skip_connection=True"),
        (sparsify, OWN | {"W_skip": torch.eye(4)}, {"k": 3}, "has W_skip"),
        (sparsify, {n: OWN[n] for n in ("W_enc", "b_enc", "b_dec")}, {"k": 3}, "lacks W_dec"),
    ],
)
def test_what_is_not_computed_here_is_refused(
    tmp_path: Path, write: Callable[..., Path], tensors: Any, settings: Any, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        load_dictionary(write(tmp_path / "sae", tensors, **settings))


def test_pickles_and_what_is_not_there_are_refused(tmp_path: Path) -> None:
    torch.save(OWN, tmp_path / "sae.pt")
    with pytest.raises(OptionError, match="can run any code when read: save its tensors with"):
        load_dictionary(tmp_path / "sae.pt")
    with pytest.raises(OptionError, match=r"it holds sae\.pt\. Convert other formats"):
        load_dictionary(tmp_path)
    with pytest.raises(OptionError, match="is not there"):
        load_dictionary(tmp_path / "nothing")
    with pytest.raises(OptionError, match="path=3 is no path"):
        load_dictionary(3)
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(OptionError, match="not a readable safetensors file"):
        load_dictionary(tmp_path / "bad.safetensors", activation="relu")
    path = saelens(tmp_path / "sae", OWN)
    with pytest.raises(OptionError, match=r"k= are of a single file: cfg\.json says them"):
        load_dictionary(path, k=3)
    (path / "cfg.json").write_text("{")
    with pytest.raises(OptionError, match="is no JSON"):
        load_dictionary(path)


# -- everything else that is asked of neurons ------------------------------------------------------


def test_circuits_of_features_are_saved_and_attached(tmp_path: Path) -> None:
    model, basis = perceptron(), {"0": trained(perceptron()[0](X).detach(), 12)}
    study = ng.Study(model, X, 1, basis=basis, progress=False)
    circuit = study.search(keep="top:3")
    assert circuit.audited.agrees
    names = set(circuit.neurons()["name"])
    assert any(name.startswith("0 feature ") for name in names)
    found = study.faithfulness(circuit, ablations=["mean", "zero"], draws=2, sizes=(0.5, 1.0))
    assert np.isfinite(found.draws["value"]).all()
    assert len(study.responses(neurons=[("0", 0), ("0", 12)]).table)
    assert study.strongest_paths(5).paths
    assert study.profile.nodes["0"]["mean"].shape == (12 + 7,)
    circuit.save(tmp_path / "x.circuit")
    loaded = ng.load(tmp_path / "x.circuit")
    with pytest.raises(OptionError, match="of a basis, which no file holds: pass basis="):
        loaded.attach(model, X)
    own = basis["0"]
    other = Dictionary(own.encoder, own.decoder, own.encoder_bias, own.decoder_bias, "topk", k=3)
    with pytest.raises(OptionError, match=r"basis= says .* but the circuit was found with"):
        loaded.attach(model, X, basis={"0": other})
    attached = loaded.attach(model, X, basis=basis)
    assert [p.effect for p in attached.paths(3)] == pytest.approx(
        [p.effect for p in circuit.paths(3)], rel=1e-9
    )


def test_strongest_paths_through_features_are_the_strongest_of_all() -> None:
    """Of every path there is, measured one by one; features and remainders are of other sizes."""
    bases = {"0": dictionary(7, 30), "2": dictionary(6, 30, 1)}
    study = ng.Study(perceptron(), X, 1, basis=bases, contrast="zero", **OPTIONS)
    assert len(study.experiment.units("0").alike(range(31))) == 2
    found = study.strongest_paths(10)
    every = [
        [ng.Neuron("input", i), ng.Neuron("0", j), ng.Neuron("2", k), ng.Neuron("4", 1)]
        for i in range(4)
        for j in range(31)
        for k in range(31)
    ]
    with study.experiment.replay:
        effects = path_effects(study.experiment, every).effect.abs()
    wanted = effects.sort(descending=True).values[:10]
    np.testing.assert_allclose([abs(p.effect) for p in found.paths], wanted, rtol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": torch.eye(3)[0]}, r"encoder has shape \(3,\): pass 2 dimensions"),
        ({"encoder": "all"}, "encoder='all' is no array of numbers"),
        ({"decoder": torch.ones(2, 7)}, "encoder is 7×9 and decoder 2×7"),
        ({"decoder": torch.ones(9, 6)}, "reads 7 channels and writes 6: only a transcoder may"),
        ({"encoder": torch.full((7, 9), torch.nan)}, "encoder holds NaN"),
        ({"encoder_bias": torch.ones(3)}, "encoder_bias has 3 numbers, but 9 are needed"),
        ({"decoder_bias": torch.ones(3)}, "decoder_bias has 3 numbers, but 7 are needed"),
        ({"decoder_bias": torch.ones(7) * 1j}, "pass real numbers"),
        ({"activation": "gelu"}, "activation='gelu' is none of 'relu', 'jumprelu', 'topk'"),
        ({"activation": "jumprelu"}, "'jumprelu' has one for each feature"),
        ({"threshold": torch.ones(9)}, "activation='relu' and threshold="),
        ({"activation": "topk"}, "activation='topk' and k=None"),
        ({"k": 3}, "activation='relu' and k=3"),
        ({"activation": "topk", "k": 10}, "of 9 features k=10 must be 9 or less"),
        ({"activation": "topk", "k": 2.5}, "k=2.5 is no whole number"),
        ({"subtract_decoder_bias": 1}, "subtract_decoder_bias=1 is neither True nor False"),
    ],
)
def test_what_is_no_dictionary_is_told(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Dictionary(**{"encoder": torch.ones(7, 9), "decoder": torch.ones(9, 7)} | arguments)


def test_what_is_no_dictionary_of_a_layer_is_told() -> None:
    for basis, message in [
        (dictionary(6, 9), "layer '0' is of 6 channels, but the layer has 7"),
        (dictionary(7, 9, transcodes=True), "layer '0': a transcoder reads one layer"),
    ]:
        with pytest.raises(OptionError, match=message):
            _ = ng.Study(perceptron(), X, 1, basis={"0": basis}, progress=False).layer_graph
    with pytest.raises(OptionError, match=r"shape \(50, 4\): pass \[..., 6\] channels"):
        dictionary(6, 9).quality(X)
    with pytest.raises(OptionError, match="the rows do not vary"):
        dictionary(6, 9).quality(torch.ones(5, 6))


def test_what_is_trained_on_changes_no_dictionary() -> None:
    encoder = torch.eye(3)
    found = Dictionary(encoder, torch.eye(3))
    encoder.zero_()
    assert found.coordinates(torch.ones(3)).tolist() == [1, 1, 1, 0, 0, 0]


def test_two_dictionaries_have_the_same_hash_only_if_all_is_the_same() -> None:
    made = [dictionary(4, 9), dictionary(4, 9, subtract_decoder_bias=False)]
    made += [dictionary(4, 9, activation="topk", k=k) for k in (2, 3)]
    made += [dictionary(4, 9, activation="jumprelu", threshold=torch.zeros(9)), dictionary(4, 9, 1)]
    hashes = [one.as_json()["hash"] for one in made]
    assert len(set(hashes)) == len(hashes)
    assert dictionary(4, 9).as_json()["hash"] == hashes[0]
    assert pd.Series(hashes).str.len().eq(64).all()


# -- transcoders -----------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual stream of positions, and an MLP beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.mlp: nn.Module = nn.Sequential(nn.Linear(6, 11), nn.GELU(), nn.Linear(11, 6))
        self.mix, self.head = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h + self.mlp(nn.functional.layer_norm(h, (6,)))
        return self.head(torch.tanh(self.mix(h)).mean(1))


WORDS = torch.randn(40, 3, 4, generator=torch.Generator().manual_seed(5), dtype=F64)


@pytest.mark.parametrize("positions", ["all", "last", "each"])
@pytest.mark.parametrize("kind", KINDS)
def test_effects_of_a_transcoder_are_those_of_hooks(kind: str, positions: Any) -> None:
    torch.manual_seed(0)
    model = Block().double()
    plain, mlp = model(WORDS), model.mlp
    coder = dictionary(6, 9, activation=kind, transcodes=True, **KINDS[kind])
    model.mlp = ng.Transcoder(mlp, coder)
    torch.testing.assert_close(model(WORDS), plain)
    layers = ["embed", "mlp.features", "mlp.error", "mix"]
    options: dict[str, Any] = {"reference": 6, "progress": False, "contrast": "zero"}
    study = ng.Study(model, WORDS, 1, layers=layers, positions=positions, **options)
    assert set(study.layer_graph) == {*layers, "input"}
    found = table(study, {})
    assert study.audit().agrees
    few = WORDS[study.provenance["data"]["reference"]]
    model.mlp = mlp
    seen: list[Tensor] = []
    hook = mlp.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    whole = model(few)[:, 1]
    hook.remove()
    wanted = by_numpy(
        seen[0].detach().flatten(0, 1).numpy(),
        weights(6, 9) | {"threshold": THRESHOLD},
        kind,
        k=3,
        subtract=False,
    )
    features = torch.as_tensor(wanted[:, :9]).view(6, 3, 9)
    written = features @ coder.decoder + coder.decoder_bias
    for place, effect in found.items():
        layer, unit, *rest = place if isinstance(place, tuple) else (place,)
        if layer not in ("mlp.features", "mlp.error"):
            continue
        where: Any = int(rest[0]) if positions == "each" else slice(None)
        where = -1 if positions == "last" else where
        left = torch.zeros(6, 3, 6, dtype=F64)
        if layer == "mlp.features":
            left[:, where] = (features[..., unit : unit + 1] * coder.decoder[unit])[:, where]
            moved = hooked(mlp, lambda out, left=left: out - left, lambda: model(few))
        else:

            def change(out: Tensor, unit: int = unit, where: Any = where) -> Tensor:
                out = out.clone()
                out[:, where, unit] = written[:, where, unit]
                return out

            moved = hooked(mlp, change, lambda: model(few))
        assert effect == pytest.approx((whole - moved[:, 1]).mean().item(), abs=1e-9)
    own = found.loc[["mlp.features", "mlp.error"]]
    assert len(own) == (9 + 6) * (3 if positions == "each" else 1)
    assert own.abs().max() > 1e-3


def test_transcoders_are_read_and_searched(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = weights(6, 9) | {"b_dec": torch.zeros(6, dtype=F64)}
    for number, path in enumerate(
        [
            saelens(tmp_path / "a", own, architecture="transcoder", d_out=6),
            saelens(
                tmp_path / "b",
                own | {"threshold": THRESHOLD},
                architecture="jumprelu_transcoder",
                apply_b_dec_to_input=False,
            ),
            sparsify(tmp_path / "c", own, k=3, transcode=True),
        ]
    ):
        read = load_dictionary(path)
        assert read.transcodes
        assert read.activation == list(KINDS)[number]
        model = Block().double()
        model.mlp = ng.Transcoder(model.mlp, read)
        layers = ["embed", "mlp.features", "mlp.error", "mix"]
        circuit = ng.search(model, WORDS, 1, layers=layers, keep="top:3", progress=False)
        assert circuit.audited.agrees
        assert "mlp.features" in set(circuit.neurons()["layer"])


def test_what_is_no_transcoder_is_told() -> None:
    mlp = nn.Linear(6, 6)
    with pytest.raises(OptionError, match="is no transcoder: pass a Dictionary with transcodes="):
        ng.Transcoder(mlp, dictionary(6, 9))
    with pytest.raises(OptionError, match="module=None is no Module"):
        ng.Transcoder(None, dictionary(6, 9, transcodes=True))
    with pytest.raises(OptionError, match="takes 6 channels, but its transcoder reads 5"):
        ng.Transcoder(mlp, dictionary(5, 9, transcodes=True))(torch.ones(2, 6))
    coder = Dictionary(torch.ones(6, 9), torch.ones(9, 5), transcodes=True)
    with pytest.raises(OptionError, match=r"returns \(2, 6\), but its transcoder writes \(2, 5\)"):
        ng.Transcoder(mlp, coder)(torch.ones(2, 6))
