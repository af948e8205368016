"""Predictive distributions on held-out rows of tables: the layers beside others' methods.

    python bench/tables.py diabetes wine --splits 0-4 --methods hsivi-10 normal --json rows.jsonl
    python bench/tables.py --read rows.jsonl --common --plot docs/tables.png

Each split keeps a tenth of the rows for the test and draws 200 times for each of them; y is in
units of the training rows' sd. Scores are those of hsivi_cli/tables/scores.py for every method.
Seconds are CPU seconds of one thread. hsivi-K is `hsivi boost --calls K --held-out 0`, with more
options behind it as in hsivi-10,match=0. Treeffuser 0.2 wants an older NumPy than this package: in
an environment of its own, with ngboost, scikit-lego and mlxtend, this script runs its rows.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from common import append_rows

from hsivi_cli.tables.scores import of_numbers

DRAWS = 200
METHODS = ("hsivi-10", "treeffuser", "quantiles", "ngboost", "mean", "normal")
MEASURES = ("crps", "nll", "rmse", "qice", "picp", "fit", "draw")
LEVELS = np.arange(1, 20) / 20
LIGHTGBM = {"num_threads": 1, "verbosity": -1, "deterministic": True, "force_row_wise": True}

Rows = tuple[np.ndarray, np.ndarray]  # x [N, C], y [N]
Draw = Callable[[np.ndarray], np.ndarray]  # x [N, C] -> [N, DRAWS]


# ---- data ----------------------------------------------------------------------------------------


def diabetes() -> Rows:
    """442 patients' 10 measures, and the disease's progress."""
    from sklearn.datasets import load_diabetes

    return load_diabetes(return_X_y=True)


def wine() -> Rows:
    """178 wines' colour intensity, and the other 12 measures."""
    from sklearn.datasets import load_wine

    found = load_wine()
    column = found.feature_names.index("color_intensity")
    return np.delete(found.data, column, 1), found.data[:, column]


def penguins() -> Rows:
    """333 penguins' mass, and species, island, sex and three measures."""
    from sklego.datasets import load_penguins

    found = load_penguins(as_frame=True).dropna()
    words = [found[name].astype("category").cat.codes for name in ("species", "island", "sex")]
    sizes = [found[f"{part}_mm"] for part in ("bill_length", "bill_depth", "flipper_length")]
    return np.column_stack([*words, *sizes]).astype(float), found["body_mass_g"].to_numpy(float)


def cars() -> Rows:
    """392 cars' miles per gallon, and 7 measures."""
    from mlxtend.data import autompg_data

    x, y = autompg_data()
    return x[:, :7].astype(float), y.astype(float)


def chicken() -> Rows:
    """578 weights of chicks, by day, diet and chick."""
    from sklego.datasets import load_chicken

    found = load_chicken(as_frame=True).astype(float)
    return found[["time", "diet", "chick"]].to_numpy(), found["weight"].to_numpy()


def abalone() -> Rows:
    """4,177 shells' rings, and sex and 7 measures."""
    from sklego.datasets import load_abalone

    found = load_abalone(as_frame=True)
    sex, rings = found.pop("sex"), found.pop("rings")
    x = np.column_stack([sex == "M", sex == "F", found.to_numpy(float)])
    return x.astype(float), rings.to_numpy(float)


def modes() -> Rows:
    """1,500 simulated rows of two modes, further apart the larger |x_0| is, of three numbers x."""
    draw = np.random.default_rng(0)
    x = draw.uniform(-2, 2, (1500, 3))
    y = np.where(draw.random(1500) < 0.5, -1, 1) * (0.5 + np.abs(x[:, 0]))
    return x, y + 0.15 * draw.standard_normal(1500)


DATA = {f.__name__: f for f in (diabetes, wine, penguins, cars, chicken, abalone, modes)}


def split(name: str, seed: int) -> tuple[Rows, Rows]:
    """Rows to train on and to test on, y with the training rows' mean 0 and sd 1."""
    x, y = DATA[name]()
    order = np.random.default_rng(seed).permutation(len(x))
    test, train = order[: len(x) // 10], order[len(x) // 10 :]
    y = (y - y[train].mean()) / y[train].std()
    return (x[train], y[train]), (x[test], y[test])


# ---- methods -------------------------------------------------------------------------------------


def hsivi(x: np.ndarray, y: np.ndarray, seed: int, calls: str, *options: str) -> Draw:
    from common import settings

    from hsivi_cli.config import BoostConfig, decided
    from hsivi_cli.tables.learner import Learner
    from hsivi_cli.tables.table import Column, Table

    chosen = settings([f"calls={calls}", *options], BoostConfig)
    config = decided(BoostConfig(threads=1, seed=seed, **chosen))
    inputs = tuple(Column(f"x{i}") for i in range(x.shape[1]))
    learner = Learner.new(Table(inputs, (Column("y"),), x, y[:, None]), config)
    learner.learn_prior()
    for k in range(config.calls, 0, -1):
        learner.learn_layer(k)
    return lambda x: np.concatenate(list(learner.model.sample(x, DRAWS, seed)))[..., 0]


def treeffuser(x: np.ndarray, y: np.ndarray, seed: int) -> Draw:
    """Treeffuser by its defaults, 50 steps."""
    from treeffuser import Treeffuser

    model = Treeffuser(seed=seed, n_jobs=1).fit(x, y)
    return lambda x: model.sample(x, n_samples=DRAWS, seed=seed).T


def quantiles(x: np.ndarray, y: np.ndarray, seed: int) -> Draw:
    """LightGBM's 100 trees for each of 19 quantiles; draws lie on the lines between them, which
    end with the slopes of the last two.
    """
    import lightgbm

    models = []
    for level in LEVELS:
        options = LIGHTGBM | {"objective": "quantile", "alpha": float(level)}
        models.append(lightgbm.train(options, lightgbm.Dataset(x, y, params=options), 100))

    def draw(x: np.ndarray) -> np.ndarray:
        found = np.sort([model.predict(x) for model in models], axis=0)
        found = np.stack([2 * found[0] - found[1], *found, 2 * found[-1] - found[-2]])
        place = np.random.default_rng(seed).random((len(x), DRAWS))
        at = np.array([0, *LEVELS, 1])
        return np.stack([np.interp(p, at, q) for p, q in zip(place, found.T, strict=True)])

    return draw


def ngboost(x: np.ndarray, y: np.ndarray, seed: int) -> Draw:
    """NGBoost by its defaults: a normal, by 500 trees of depth 3."""
    from ngboost import NGBRegressor

    model = NGBRegressor(random_state=seed, verbose=False).fit(x, y)

    def draw(x: np.ndarray) -> np.ndarray:
        told = model.pred_dist(x).params
        return told["loc"][:, None] + told["scale"][:, None] * noise(x, seed)

    return draw


def mean(x: np.ndarray, y: np.ndarray, seed: int) -> Draw:
    """A normal of the training rows' mean and sd, whatever x is."""
    return lambda x: y.mean() + y.std() * noise(x, seed)


def normal(x: np.ndarray, y: np.ndarray, seed: int) -> Draw:
    """LightGBM's 100 trees for the mean, and a normal of their errors' sd in five folds."""
    import lightgbm

    def fit(x: np.ndarray, y: np.ndarray):
        return lightgbm.train(LIGHTGBM, lightgbm.Dataset(x, y, params=LIGHTGBM), 100)

    fold = np.random.default_rng(seed).permutation(len(x)) % 5
    errors = [y[fold == i] - fit(x[fold != i], y[fold != i]).predict(x[fold == i])
              for i in range(5)]  # fmt: skip
    model, sd = fit(x, y), np.concatenate(errors).std()
    return lambda x: model.predict(x)[:, None] + sd * noise(x, seed)


def noise(x: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((len(x), DRAWS))


FITS = {f.__name__: f for f in (hsivi, treeffuser, quantiles, ngboost, mean, normal)}


def measure(data: str, seed: int, method: str) -> dict:
    """A row: one method on one split."""
    name, _, options = method.partition("-")
    train, (x, y) = split(data, seed)
    began = time.process_time()
    draw = FITS[name](*train, seed, *(options.split(",") if options else ()))
    fitted = time.process_time()
    drawn = draw(x)
    spent = {"fit": fitted - began, "draw": time.process_time() - fitted}
    return {"data": data, "split": seed, "method": method} | of_numbers(drawn, y) | spent


# ---- what was measured ---------------------------------------------------------------------------


def averages(rows: Iterable[dict]) -> dict[tuple[str, str], dict[str, float]]:
    """By data set and method, the means over the splits that were measured, and their `splits`."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["method"]), []).append(row)
    return {
        key: {m: float(np.mean([row[m] for row in group])) for m in MEASURES}
        | {"splits": len(group)}
        for key, group in groups.items()
    }


def in_common(rows: list[dict]) -> list[dict]:
    """The rows of splits that every method of a data set was measured on."""
    seen: dict[str, dict[str, set[int]]] = {}
    for row in rows:
        seen.setdefault(row["data"], {}).setdefault(row["method"], set()).add(row["split"])
    shared = {data: set.intersection(*methods.values()) for data, methods in seen.items()}
    return [row for row in rows if row["split"] in shared[row["data"]]]


def over_normal(rows: list[dict]) -> dict[tuple[str, str], float]:
    """By data set and method, CRPS over that of the normal on the same splits."""
    normal = {(row["data"], row["split"]): row for row in rows if row["method"] == "normal"}
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        if unit := normal.get((row["data"], row["split"])):
            pair = (row["crps"], unit["crps"])
            groups.setdefault((row["data"], row["method"]), []).append(pair)
    return {key: float(np.divide(*np.mean(pairs, axis=0))) for key, pairs in groups.items()}


def differences(
    rows: Iterable[dict], method: str
) -> dict[tuple[str, str], tuple[float, float, int]]:
    """By data set and other method, how much larger its CRPS is than `method`'s on the same splits:
    the mean, its standard error over splits (NaN of one), and how many they are. Splits share most
    of their rows, so it is not that over data sets.
    """
    own = {(row["data"], row["split"]): row["crps"] for row in rows if row["method"] == method}
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        at = (row["data"], row["split"])
        if at in own and row["method"] != method:
            found.setdefault((row["data"], row["method"]), []).append(row["crps"] - own[at])
    return {
        key: (
            float(np.mean(each)),
            float(np.std(each, ddof=1) / np.sqrt(len(each))) if len(each) > 1 else np.nan,
            len(each),
        )
        for key, each in found.items()
    }


def show_differences(rows: list[dict], method: str) -> None:
    """A table in Markdown of `differences`, a line a data set: in brackets the standard errors."""
    found = differences(rows, method)
    others = list(dict.fromkeys(name for _, name in found))
    print(f"| data | splits | {' | '.join(others)} |\n|{'---|' * (len(others) + 2)}")
    for data in dict.fromkeys(data for data, _ in found):
        own = {name: found[data, name] for name in others if (data, name) in found}
        cells = [f"{own[n][0]:.4f} ({own[n][1]:.4f})" if n in own else "" for n in others]
        cells = [cell.replace(" (nan)", "") for cell in cells]  # of one split
        print(f"| {data} | {max(each[2] for each in own.values())} | {' | '.join(cells)} |")


def show(rows: list[dict]) -> None:
    """A table in Markdown."""
    print(f"| data | method | splits | {' | '.join(MEASURES)} |\n|{'---|' * (len(MEASURES) + 3)}")
    for (data, method), found in averages(rows).items():
        told = " | ".join(f"{found[m]:.3g}" for m in MEASURES)
        print(f"| {data} | {method} | {found['splits']} | {told} |")


def show_briefly(rows: list[dict]) -> None:
    """A table in Markdown of means over data sets, a line a method: CRPS and NLL beside those of
    the normal, the geometric mean of ratios and the mean of differences.
    """
    found, ratio = averages(rows), over_normal(rows)
    print("| method | sets | CRPS / normal | NLL - normal | qice | picp | fit | draw |")
    print("|---|---|---|---|---|---|---|---|")
    for method in dict.fromkeys(row["method"] for row in rows):
        sets = [data for data, name in found if name == method]
        own = [found[data, method] for data in sets]
        nll = np.mean([found[data, method]["nll"] - found[data, "normal"]["nll"] for data in sets])
        crps = np.exp(np.mean([np.log(ratio[data, method]) for data in sets]))
        rest = [np.mean([each[m] for each in own]) for m in ("qice", "picp", "fit", "draw")]
        told = " | ".join(f"{value:.3g}" for value in (crps, nll, *rest))
        print(f"| {method} | {len(sets)} | {told} |")


def plot(rows: list[dict], file: str) -> None:
    """CRPS by the number of calls, over that of the normal; Treeffuser at its 50."""
    from matplotlib.figure import Figure

    found = over_normal(rows)
    figure = Figure(figsize=(7, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for data in dict.fromkeys(row["data"] for row in rows):
        own = {method: ratio for (name, method), ratio in found.items() if name == data}
        calls = sorted(int(m[6:]) for m in own if m[:6] == "hsivi-" and m[6:].isdecimal())
        (line,) = axes.plot(calls, [own[f"hsivi-{k}"] for k in calls], "o-", label=data)
        if "treeffuser" in own:
            axes.plot([50], [own["treeffuser"]], "x", color=line.get_color())
    axes.axhline(1, color="black", linewidth=0.6)
    axes.set(xscale="log", xlabel="calls (crosses: Treeffuser's 50 steps)")
    axes.set(ylabel="CRPS over the normal's")
    axes.legend(bbox_to_anchor=(1, 1), loc="upper left")
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure predictive distributions on tables.")
    parser.add_argument("data", nargs="*", choices=[*DATA, []])
    parser.add_argument("--splits", default="0-19", help="A-B, seeds of splits")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--json", help="append one JSON line a row to this file")
    parser.add_argument("--read", nargs="+", help="show these files' rows in place of measuring")
    parser.add_argument("--common", action="store_true", help="of splits that all methods have")
    parser.add_argument("--brief", action="store_true", help="a line a method, over data sets")
    parser.add_argument("--against", help="show how much larger CRPS is than this method's")
    parser.add_argument("--plot", help="with --read, quality by calls into this PNG file")
    args = parser.parse_args()
    first, last = map(int, args.splits.split("-"))
    if args.read:
        texts = [Path(file).read_text() for file in args.read]
        found = [json.loads(line) for text in texts for line in text.splitlines()]
        rows = [row for row in found if first <= row["split"] <= last]
        shown = in_common(rows) if args.common else rows
        if args.against:
            show_differences(shown, args.against)
        else:
            (show_briefly if args.brief else show)(shown)
        if args.plot:
            plot(rows, args.plot)
        return
    warnings.simplefilter("ignore")  # of others' packages
    for seed in range(first, last + 1):
        for data in args.data or DATA:
            for method in args.methods:
                row = measure(data, seed, method)
                print(json.dumps(row), flush=True)
                append_rows(args.json, [row])


if __name__ == "__main__":
    main()
