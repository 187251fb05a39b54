# %% [markdown]
# # The heart network, studied from end to end
#
# A small network tells patients with heart disease from healthy ones. Which of its neurons tell
# the classes apart, which of them does it need, and what happens to the others when one is cut?
# A notebook asked this first: it tested every neuron's distributions by class, ablated those
# that differed, and watched accuracy fall. This is the same study with one library: every step is
# a function, and what is said of all networks has an interval over five of them.
#
# A plain script in cells: run it (`python examples/heart_study.py`, some minutes; with
# `--reduced` half a minute), or open it as a notebook (Jupytext, VS Code, PyCharm). The page it
# writes to the folder `--out` has its numbers; `docs/heart.md` is that of the full run.

# %%
import argparse
import math
import time
from pathlib import Path

import pandas as pd
import torch
from torch.utils.data import TensorDataset
from torchmetrics.classification import BinaryAccuracy

import neurograph as ng
from neurograph.ablation import importance
from neurograph.ablation.intervals import interval
from neurograph.activations.values import class_values
from neurograph.demos import heart
from neurograph.discovery.responses import SHAPES
from neurograph.report import figures
from neurograph.training import CircuitCallback, binary_classifier, fit
from notes import Notes

parser = argparse.ArgumentParser()
parser.add_argument("--reduced", action="store_true", help="less of everything, to try it")
parser.add_argument("--out", type=Path, default=Path("outputs/heart_study"), metavar="FOLDER")
settings, _ = parser.parse_known_args()  # a notebook's kernel has arguments of its own

REDUCED, FOLDER = settings.reduced, settings.out
SEEDS, EPOCHS, DRAWS = (2, 2, 2) if REDUCED else (5, 20, 10)
SHARES = (0.5, 0.9) if REDUCED else tuple(i / 10 for i in range(1, 10))
HIDDEN = ["linear1", "linear2"]
HOWS = ("zero", "mean", "resample")

RUNS = Path("outputs/heart_study")  # networks and circuits

note = Notes(FOLDER, "heart", globals().get("__file__"))
started = time.perf_counter()

# %% [markdown]
# ## 1. The network and its data
#
# 918 patients, 17 features, two hidden layers of 512 and 1024 neurons with tanh, one logit. Each
# seed draws its own split (80:10:10) and first weights. What follows is found on the training
# patients; accuracies are those of the 184 others.

# %%
note(
    "# The heart network, studied from end to end",
    "Written by `python examples/heart_study.py --out docs`" + (", reduced." if REDUCED else "."),
    "## 1. The network and its data",
)
runs = []
for seed in range(SEEDS):
    data = heart.load_data(seed)
    fitted = heart.train(seed, RUNS / str(seed), epochs=EPOCHS, progress=False)
    held_out = heart.Split(*map(torch.cat, zip(data.validation, data.test, strict=True)))
    runs.append((data, fitted.model, held_out))

data, model, held_out = runs[0]
names = {"feature_names": data.feature_names, "class_names": data.class_names}


def accuracy(net: torch.nn.Module, patients: heart.Split) -> float:
    with torch.no_grad():
        return float(((net(patients.X).squeeze(1) > 0) == patients.y.bool()).float().mean())


table = pd.DataFrame(
    [(seed, accuracy(m, d.train), accuracy(m, h)) for seed, (d, m, h) in enumerate(runs)],
    columns=["seed", "accuracy, training patients", "accuracy, held out"],
)
note(table)

# %% [markdown]
# ## 2. Layers and their activations
#
# `profile` establishes who reads whom by intervention and streams all data through the model
# once, keeping count, moments, extremes and quantiles of every neuron: here of both sides of the
# layers, and of each class.

# %%
note("## 2. Layers and their activations")
sides = ["linear*", "linear2:input", "linear3:input"]
profile = ng.profile(model, data.train, layers=sides, labels=True, progress=False)
note(
    pd.DataFrame(
        {
            "layer": name,
            "neurons": node["neurons"],
            **{
                f"mean std, {data.class_names[label]}": found.std.mean().item()
                for label, found in node["classes"].items()
            },
            "least": node["min"].min().item(),
            "most": node["max"].max().item(),
        }
        for name, node in profile.nodes(data=True)
    )
)
plain = ng.profile(model, data.train, progress=False)
note.figure(figures.quantile_bands(plain), "quantiles", "Quantiles of all neurons by layer")

# %% [markdown]
# ## 3. Do the classes separate?
#
# At each neuron: Shapiro and Wilk's test of normality in each class, then Welch's t where both
# look normal and Mann and Whitney's U elsewhere, effect sizes and divergences, and p-values
# corrected for the number of neurons.

# %%
note("## 3. Do the classes separate?")
separation = ng.separation(model, data.train, **names, progress=False)
by_layer = separation.groupby("layer", sort=False)
note(
    pd.DataFrame(
        {
            "layer": layer,
            "neurons": len(rows),
            "normal in both": int(rows["normal"].sum()),
            "p < 0.05": int((rows["p"] < 0.05).sum()),
            "q < 0.05": int(rows["separates"].sum()),
            "median AUC, turned": (0.5 + (rows["auc"] - 0.5).abs()).median(),
            "most": (0.5 + (rows["auc"] - 0.5).abs()).max(),
            "median JS, nats": rows["js"].median(),
        }
        for layer, rows in by_layer
    )
)
apart = separation.assign(turned=(separation["auc"] - 0.5).abs())
best = apart.sort_values("turned", ascending=False).groupby("layer", sort=False).head(3)
best = best.sort_index()
columns = ["name", "test", "q", "cohens_d", "auc", "js", "mean_shift", "variance_ratio"]
note("The three neurons of each layer that separate best:", best[columns])
note.figure(figures.separation(separation), "separation", "Effect size and corrected p-value")
values = class_values(model, data.train, **names, progress=False)
shown = list(best[["layer", "index"]].itertuples(index=False, name=None))
note.figure(figures.distributions(values, shown), "distributions", "Activations by class")

# %% [markdown]
# ## 4. The circuit
#
# What separates need not matter. A search moves neurons between quantiles and measures what the
# logit does.

# %%
note("## 4. The circuit")
circuit = ng.search(model, data.train, 1, keep="top:12", **names, progress=False)
circuit.save(RUNS / "heart.circuit")
paths = [path for sign in ("positive", "negative") for path in circuit.paths(5, sign=sign)]
note(
    f"{len(circuit.graph)} neurons and {circuit.graph.number_of_edges()} edges were kept.",
    pd.DataFrame(
        [(" → ".join(path.names), path.effect, path.stderr) for path in paths],
        columns=["path", "effect on the logit", "standard error"],
    ),
)

# %% [markdown]
# ## 5. Which importance predicts damage?
#
# Five ways to call a neuron important, each ranking the 1,536 hidden neurons; the better half is
# "important". A share of it is ablated, as many neurons of the other half, and as many of all.
# The original zeroed weights and biases, which makes outputs 0; here the mean and the values of
# other patients stand in besides, which do not push later layers where no patient ever was.

# %%
note("## 5. Which importance predicts damage?")
curves, tables = {}, []
for seed, (d, m, h) in enumerate(runs):
    found = ng.search(m, d.train, 1, keep="top:12", progress=False)
    tested = ng.separation(m, d.train, layers=HIDDEN, progress=False)
    kinds = {
        "separation": importance.by_separation(tested),
        "circuit effect": importance.by_effect(found),
        "total effect": importance.by_effect(
            ng.score(m, d.train, 1, scorer="exact", progress=False)
        ),
        "gradient × activation": importance.by_effect(
            ng.score(
                m,
                d.train,
                1,
                scorer="gradient",
                contrast="zero",
                reference=len(d.train.X),
                progress=False,
            )
        ),
    }
    kinds["random"] = importance.at_random(kinds["circuit effect"].index, seed)
    for how in HOWS:
        done = ng.masking_curves(
            m,
            h,
            BinaryAccuracy(),
            kinds,
            how=how,
            shares=SHARES,
            draws=DRAWS,
            seed=seed,
            progress=False,
        )
        curves[how, seed] = done
        tables.append(
            done.draws.assign(how=how, seed=seed, lost=done.baseline - done.draws["value"])
        )
draws = pd.concat(tables, ignore_index=True)
most = max(SHARES)


def over_seeds(values: pd.Series) -> str:
    """Mean with its 95 % interval (Student's t) over the seeds."""
    mean, low, high = interval(values.to_numpy(), 0.95)
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


by_seed = draws.groupby(["how", "ranking", "group", "share", "seed"], sort=False)
by_seed = by_seed[["value", "lost"]].mean().reset_index()
whole = pd.Series([curves[HOWS[0], seed].baseline for seed in range(SEEDS)])
note(
    f"Accuracy on held-out patients, {SEEDS} seeds, {DRAWS} draws each: {over_seeds(whole)} with "
    f"nothing ablated. With {most:.0%} of the better half ablated, of the other half, or as many "
    "of all (mean over seeds with its 95 % interval):"
)
at_most = by_seed[by_seed["share"] == most]
rows = at_most.groupby(["how", "ranking", "group"], sort=False)["value"].apply(over_seeds)
note(rows.unstack("group").reset_index())
note(
    "The original, on one network: 0.79 with nothing ablated, 0.57 to 0.65 with 90% of the "
    "important neurons ablated, 0.80 to 0.82 with the unimportant ones."
)

# %%
mean_lost = by_seed.groupby(["how", "ranking", "seed", "group"], sort=False)["lost"].mean()
apart = mean_lost.unstack("group")
apart = (apart["important"] - apart["unimportant"]).rename("gap").reset_index()
ranking = apart.groupby(["how", "ranking"], sort=False)["gap"].agg(["mean", over_seeds])
ranking = ranking.sort_values(["how", "mean"], ascending=[True, False], kind="stable").reset_index()
note(
    "A ranking predicts damage if accuracy falls further without what it calls important than "
    "without what it calls unimportant. That difference, averaged over all shares:",
    ranking[["how", "ranking", "over_seeds"]].rename(columns={"over_seeds": "gap"}),
)
per_seed = apart.groupby(["ranking", "seed"])["gap"].mean().unstack("seed")
order = per_seed.mean(axis=1).sort_values(ascending=False)
first, second = order.index[:2]
lead = per_seed.loc[first] - per_seed.loc[second]
note(
    f"Over all three ways of ablating, **{first}** predicts damage best ({order[first]:.3f}), "
    f"then {second} ({order[second]:.3f}); it leads by {over_seeds(lead)} of accuracy. "
    + "In falling order: "
    + ", ".join(f"{name} {value:.3f}" for name, value in order.items())
    + "."
)
note.figure(figures.masking(curves["mean", 0]), "masking", "Accuracy while neurons are ablated")

# %% [markdown]
# ## 6. What happens to the next layer when a neuron is cut?
#
# The original's open question. The strongest hidden neuron of the circuit is held at its mean;
# every later neuron's distribution is compared before and after.

# %%
note("## 6. What happens to the next layer when a neuron is cut?")
hidden = circuit.neurons(layer="linear1").iloc[0]
cut = ng.Neuron("linear1", int(hidden["index"]))
parts = zip(data.train, data.validation, data.test, strict=True)
everyone = heart.Split(*map(torch.cat, parts))
shifts = {
    f"{cut} alone": ng.causal_shift(model, everyone, [cut], labels=True, progress=False),
    "the circuit's 12 + 12 of linear1": ng.causal_shift(
        model,
        everyone,
        [n for n in circuit.graph if n.layer == "linear1"],
        labels=True,
        progress=False,
    ),
}
rows = []
for what, shift in shifts.items():
    for layer, part in shift.table.groupby("layer", sort=False):
        before, after = ((part[f"auc_{x}"] - 0.5).abs() + 0.5 for x in ("before", "after"))
        rows.append(
            {
                "cut": what,
                "layer": layer,
                "median distance, std": part["wasserstein_std"].median(),
                "most": part["wasserstein_std"].max(),
                "moved beyond 0.1 std": f"{(part['wasserstein_std'] > 0.1).mean():.0%}",
                "median AUC before": before.median(),
                "after": after.median(),
            }
        )
note(pd.DataFrame(rows))
alone = shifts[f"{cut} alone"]
moved = alone.table.sort_values("wasserstein_std", ascending=False).head(5)
note(
    f"The neurons that {cut} moves most:",
    moved[["name", "mean_before", "mean_after", "wasserstein_std", "auc_before", "auc_after"]],
)
figure = figures.shift(shifts["the circuit's 12 + 12 of linear1"].table)
note.figure(figure, "shift", "How far later neurons move")
alone.mark(circuit).to_html(RUNS / "heart_cut.html")

# %% [markdown]
# ## 7. Response curves
#
# Each hidden neuron, and each feature, is moved through its seven quantiles, everything else at
# real patients: how far does the logit go, and does it go one way?

# %%
note("## 7. Response curves")
responses = ng.response_curves(model, data.train, 1, layers=HIDDEN, **names, progress=False)
summary = responses.summary()
note(
    pd.DataFrame(
        {
            "layer": layer,
            "neurons": len(rows),
            **{shape: int((rows["shape"] == shape).sum()) for shape in SHAPES},
            "widest variation": rows["variation"].max(),
            "median": rows["variation"].median(),
        }
        for layer, rows in summary.groupby("layer", sort=False)
    )
)
features = ng.response_curves(model, data.train, 1, **names, progress=False)
note(features.summary()[["name", "low", "high", "variation", "effect", "stderr", "shape"]])
note.figure(figures.responses(features, most=12), "responses", "The logit against quantiles")

# %% [markdown]
# ## 8. When does the circuit appear?
#
# The same training with a search every few epochs.

# %%
note("## 8. When does the circuit appear?")
history = CircuitCallback(
    data.train, 1, every=max(1, EPOCHS // 10), directory=RUNS / "history", keep="top:12", **names
)
with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    fresh = heart.HeartNet()
fit(
    binary_classifier(fresh, learning_rate=1e-3),
    TensorDataset(*data.train),
    TensorDataset(*data.validation),
    directory=RUNS / "history",
    epochs=EPOCHS,
    callbacks=[history],
    tensorboard=RUNS / "tensorboard",
    progress=False,
)
note(history.to_frame())

# %% [markdown]
# ## 9. The original's steps, one by one

# %%
normal = int(separation["normal"].sum())
apart_at = int(separation["separates"].sum())
uncorrected = int((separation["p"] < 0.05).sum())
at_mean = by_seed[(by_seed["share"] == most) & (by_seed["how"] == "zero")]
at_mean = at_mean.groupby(["ranking", "group"])["value"].mean()
shapes = summary["shape"].value_counts()
steps = [
    ("layers as a directed graph", "`layer_graph`", " → ".join(plain)),
    (
        "activations by class, quantiles",
        "`profile(labels=True)`",
        f"{len(profile)} sides of layers, rank error {profile.nodes['linear2']['rank_error']:.3f}",
    ),
    ("normality by class", "`separation`: `normal`", f"{normal} of {len(separation)} neurons"),
    (
        "t-test or U-test of each neuron",
        "`separation`: `q`",
        f"{apart_at} separate, {uncorrected} before correction",
    ),
    (
        "divergence of the classes",
        "`separation`: `js`",
        f"up to {separation['js'].max():.3f} of {math.log(2):.3f} nats",
    ),
    (
        "important and unimportant neurons masked",
        "`masking_curves`",
        f"{whole.mean():.3f}; {at_mean['separation', 'important']:.3f}; "
        f"{at_mean['separation', 'unimportant']:.3f} (zeroed, by separation)",
    ),
    (
        "positive and negative paths backward",
        "`search`",
        f"{len(circuit.graph)} neurons, {circuit.graph.number_of_edges()} edges, strongest path "
        f"{paths[0].effect:+.1e}",
    ),
    (
        "what a cut does to the next layer",
        "`causal_shift`",
        f"{alone.table['wasserstein_std'].median():.3f} std for one neuron, "
        f"{shifts[list(shifts)[1]].table['wasserstein_std'].median():.3f} for the circuit's",
    ),
    (
        "target over the whole range of a neuron",
        "`response_curves`",
        ", ".join(f"{count} {shape}" for shape, count in shapes.items()),
    ),
    (
        "training and its checkpoint",
        "`fit`, `CircuitCallback`",
        f"{accuracy(model, held_out):.3f} held out, {len(history.history)} circuits on the way",
    ),
]
note(
    "## 9. The original's steps, one by one",
    pd.DataFrame(steps, columns=["step", "call", "found here"]),
)

# %%
note.save()
print(f"{time.perf_counter() - started:.0f} s; written: {FOLDER / 'heart.md'}")
