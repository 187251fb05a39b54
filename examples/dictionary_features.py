"""Features of sparse autoencoders: which make a four no nine, which remember an open bracket.

How well they reconstruct is said before, and how much their error carries.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import neurograph as ng
import recurrent_text
from digits_4_vs_9 import PAIRS, four_minus_nine
from hooks import record
from pretrained import mnist, recurrent
from report import OUTPUTS, measured, publish

LAYER, STATES = "fc_layers.0", "rnn_2"
FEATURES = 512
SPARSITY = 0.05
"""How much a feature's activation costs, against squared error."""
STEPS = 3000


def train(rows: Tensor) -> dict[str, Tensor]:
    """Train a sparse autoencoder of rows ``[samples, channels]``; tensors as SAELens names them."""
    torch.manual_seed(0)
    scale = rows.std()
    x = rows / scale
    decoder = nn.functional.normalize(torch.randn(FEATURES, rows.shape[1]), dim=1)
    parameters = {"W_enc": decoder.T.clone(), "W_dec": decoder, "b_enc": torch.zeros(FEATURES)}
    parameters["b_dec"] = x.mean(0)
    for tensor in parameters.values():
        tensor.requires_grad_()
    optimiser = torch.optim.Adam(parameters.values(), lr=1e-3)
    encoder, decoder, before, after = parameters.values()
    for _ in range(STEPS):
        batch = x[torch.randint(len(x), (256,))]
        features = ((batch - after) @ encoder + before).relu()
        error = (features @ decoder + after - batch).square().sum(1)
        loss = (error + SPARSITY * rows.shape[1] ** 0.5 * features.sum(1)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():  # or features would shrink and their directions grow
            decoder /= decoder.norm(dim=1, keepdim=True)
    found = {name: tensor.detach() for name, tensor in parameters.items()}
    # Trained on rows of size 1: as the model has them, features and biases are larger.
    return found | {"b_enc": found["b_enc"] * scale, "b_dec": found["b_dec"] * scale}


def save(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write what SAELens writes."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "sae_weights.safetensors")
    channels, features = tensors["W_enc"].shape
    settings = {"architecture": "standard", "d_in": channels, "d_sae": features}
    settings |= {"apply_b_dec_to_input": True, "normalize_activations": "none"}
    (folder / "cfg.json").write_text(json.dumps(settings))


def main() -> None:
    digits()
    bracket()


def learned(rows: Tensor, name: str, what: str) -> ng.Dictionary:
    """Train on all but the first 1,000 rows, write, read back, and say how good it is on these."""
    with measured("training"):
        save(train(rows[1000:]), OUTPUTS / name)
    dictionary = ng.load_dictionary(OUTPUTS / name)
    explained, active = dictionary.quality(rows[:1000])
    print(
        f"{FEATURES} features of the {rows.shape[1]} channels of {what} reconstruct "
        f"{explained:.1%} of the variance of 1,000 rows held out, {active:.1f} of them at a time"
    )
    return dictionary


def digits() -> None:
    """Features of a network's last hidden layer that make a four no nine."""
    with measured("model and data"):
        model = mnist.load()
        images, labels = mnist.digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    rows = record(model, [LAYER], lambda: model(images[order]))[LAYER]
    dictionary = learned(rows, "sae", LAYER)
    fours, nines = images[labels == 4][:PAIRS], images[labels == 9][:PAIRS]
    with measured("search"):
        circuit = ng.search(
            model,
            fours,
            four_minus_nine,
            layers=["conv_layers.6", LAYER],
            basis={LAYER: dictionary},
            contrast=ng.Counterfactual(nines),
            reference=PAIRS,
            keep="top:8",
            paths=50,
        )
    publish(circuit, "dictionary_features", source="conv_layers.6")
    by_hand(circuit, model, dictionary, fours, nines)


def bracket() -> None:
    """Features of an LSTM's states that remember which bracket is open."""
    with measured("model and titles"):
        model, codes = recurrent.load()
        titles = recurrent.encode(codes, recurrent_text.many_titles())
    rows = record(model, [STATES], lambda: model(titles))[STATES].flatten(0, 1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    dictionary = learned(rows[order], "sae_rnn", STATES)
    characters = {code: character for character, code in codes.items()}
    with measured("search"):
        study = ng.Study(
            model,
            titles,
            ng.logit_difference(codes["]"], codes[")"]),
            layers=["embedding", STATES],
            groups={"embedding": 1},
            basis={STATES: dictionary},
            positions="last",
            reference=32,
            tokenizer=lambda code: characters.get(code, "·"),
        )
        circuit = study.search(keep="top:8", paths=50)
    publish(circuit, "dictionary_features_rnn", source="embedding")
    table = circuit.neurons()
    table = table[(table["layer"] == STATES) & ~table["name"].str.endswith("remainder")]
    strongest = table.loc[table["total_effect"].abs().idxmax()]
    print(study.exemplars(neurons=[(STATES, int(strongest["index"]))], count=6))


@torch.no_grad()
def by_hand(
    circuit: ng.Circuit, model: nn.Module, dictionary: ng.Dictionary, fours: Tensor, nines: Tensor
) -> None:
    """Move the strongest feature, and the remainder, with a hook; compare, and add up."""
    coordinates = {
        name: dictionary.coordinates(record(model, [LAYER], lambda x=x: model(x))[LAYER])
        for name, x in [("fours", fours), ("nines", nines)]
    }

    def margin(which: slice) -> Tensor:
        """With some coordinates of the layer as they are in nines."""
        moved = coordinates["fours"].clone()
        moved[:, which] = coordinates["nines"][:, which]
        hook = model.get_submodule(LAYER).register_forward_hook(
            lambda _module, _arguments, _output: dictionary.from_coordinates(moved)
        )
        try:
            return four_minus_nine(model(fours), None)
        finally:
            hook.remove()

    actual = four_minus_nine(model(fours), None)
    table = circuit.neurons()
    own = table[table["layer"] == LAYER].drop_duplicates("index")
    best = own.loc[own["total_effect"].abs().idxmax()]
    unit = int(best["index"])
    by_hooks = (actual - margin(slice(unit, unit + 1))).mean()
    print(
        f"{best['name']} adds {best['total_effect']:+.4f} all in all; by hooks alone "
        f"{by_hooks:+.4f}"
    )
    whole, features, rest = (
        (actual - margin(which)).mean()
        for which in (slice(None), slice(FEATURES), slice(FEATURES, None))
    )
    print(
        f"of the {whole:+.2f} between fours and nines that passes through the layer, all features "
        f"together make {features:+.2f} and the remainder {rest:+.2f} ({rest / whole:.0%})"
    )


if __name__ == "__main__":
    main()
