"""What `hsivi train` does by default at a number of calls, and its presets: the one place where a
recipe is changed.
"""

from __future__ import annotations

from dataclasses import fields

from .options import flag_of, parse_numbers
from .training import TrainConfig

# defaults of single budgets where they differ from those above (docs/results.md). Up to three calls
# regression comes first, where solvers are poor; at one, distillation was seen to undo what it
# learns. From four up the best solver is near, and a small share at a small rate keeps what it has;
# from MANY up it follows the teacher's path, and where the teacher predicts v reverse KL would lose
# more variety than it gains. From STOCHASTIC up a solver is best that forgets its errors, by noise
# at every step; that is so near that a fast fake score would lead the student away
# From four up a student draws from a wider x_K than it learned from, where its teacher bears it
REGRESSED = {
    1: {"regress_steps": 6000, "steps": 0},
    2: {"regress_steps": 2000, "student_rate": 1e-5, "steps": 200},
    3: {"regress_steps": 2000, "student_rate": 1e-5, "steps": 200},
}
SOLVER_IS_NEAR, MANY, STOCHASTIC = 4, 5, 8  # calls
SOLVED = {
    "start": "auto", "noise_share": "0.2", "top_sd": "auto", "student_rate": 1e-5, "steps": 200,
}  # fmt: skip
MATCHED = {"objective": "auto", "a": 0.75, "weight": "output"}
NOISY = {"start": "dpm++3-auto", "noise_share": "eta:1", "fake_rate": 1e-4}
# fewer steps move a student as far: half as many take twice the rate, up to this one
HIGHEST = 4e-5
# who chooses one of these, chooses another chain, which has the defaults above (`chooses_chain`)
CHAIN_OPTIONS = {"start", "noise_share", "grid", "grid_top", "regress_steps", "levels"}
BY_NFE = {"regress_steps"}.union(SOLVED, MATCHED, NOISY)  # what differs by the number of calls
RECIPE = CHAIN_OPTIONS | BY_NFE
PLANNED = {"steps", "regress_steps"}  # what --minutes decides where nobody names it
FOLLOWS = "student_rate"  # what the steps decide where nobody names it


def is_one(share: str) -> bool:
    """Whether a --noise-share is 1 in every layer, however it is spelt."""
    try:
        return all(float(word) == 1 for word in share.split(","))
    except ValueError:  # not numbers; its own check says so
        return False


def of_nfe(chosen: dict) -> dict:
    """The defaults of the number of calls, where it is one, beside what a user chose."""
    budgets = parse_numbers(chosen.get("nfe", TrainConfig.nfe), "--nfe")
    if len(budgets) > 1:
        return {}
    if found := REGRESSED.get(budgets[0]):
        fits = is_one(chosen.get("noise_share", "1")) and chosen.get("regress_steps") != 0
        return found if fits else {}
    if budgets[0] < SOLVER_IS_NEAR or chooses_chain(chosen):
        return {}
    plain = {"start", "noise_share"} & chosen.keys() or chosen.get("fit_steps")
    return solved(budgets[0], plain=bool(plain))


def chooses_chain(chosen: dict) -> bool:
    """Whether a user chose a chain of another kind than the recipe's from SOLVER_IS_NEAR calls up,
    which is any solver's with any share below 1.
    """
    if (CHAIN_OPTIONS - {"start", "noise_share"}) & chosen.keys():
        return True
    return chosen.get("start") == "ddim" or is_one(chosen.get("noise_share", SOLVED["noise_share"]))


def solved(nfe: int, plain: bool = False) -> dict:
    """The defaults of a student of so many calls that starts from a solver.

    plain  whether that is one without noise, whatever the number of calls
    """
    found = SOLVED | (MATCHED if nfe >= MANY else {})
    return found | NOISY if nfe >= STOCHASTIC and not plain else found


def settings_of(chosen: dict, by_nfe: bool = True) -> dict:
    """Every setting of a training by name: what a user chose, over the defaults.

    by_nfe  whether defaults are those of the number of calls: not beside a preset
    """
    plain = {item.name: item.default for item in fields(TrainConfig)}
    found = plain | (of_nfe(chosen) if by_nfe else {}) | chosen
    if by_nfe and follows(chosen):
        found[FOLLOWS] = rate_of(found["steps"])
    return found


def follows(chosen: dict) -> bool:
    """Whether the student's rate is one of the number of calls, that nobody chose."""
    return FOLLOWS in of_nfe(chosen).keys() - chosen.keys()


def shown_defaults() -> dict[str, str]:
    """What --help says of defaults that differ by the number of calls: those of a training as
    typed.
    """
    default = settings_of({})
    return {name: f"{default[name]} at {default['nfe']} calls" for name in BY_NFE}


def rate_of(steps: int) -> float:
    """The student's rate that a recipe has in a training of so many steps."""
    rate, enough = SOLVED["student_rate"], SOLVED["steps"]
    return float(f"{min(HIGHEST, rate * enough / steps):.3g}") if 0 < steps < enough else rate


def choices_in(settings: dict, chosen: dict) -> dict:
    """The fewest settings of which `settings_of` makes these: the number of calls, and what
    differs from its defaults.

    chosen  what a user, or a preset, chose among them
    """
    kept = {"nfe": settings["nfe"]} | chosen
    while (found := settings_of(kept)) != settings:  # what is kept has defaults of its own
        kept |= {name: value for name, value in settings.items() if found[name] != value}
    for names in (RECIPE, *({name} for name in kept if name != "nfe")):
        fewer = {name: value for name, value in kept.items() if name not in names}
        if settings_of(fewer) == settings:
            kept = fewer
    return kept


def pinned(read: dict, typed: dict) -> list[str]:
    """The defaults that a --config file holds of another number of calls or steps than was typed,
    each with the one whose place it takes.
    """
    if "nfe" not in read:
        return []

    def defaults(chosen: dict) -> dict:  # of the calls; the rate by the steps too
        told = {name: chosen[name] for name in ("nfe", "steps") if name in chosen}
        return settings_of({"nfe": told["nfe"]}) | {FOLLOWS: settings_of(told)[FOLLOWS]}

    then, now = defaults(read), defaults(read | typed)
    return [
        f"{flag_of(name)} {read[name]} (not {now[name]})"
        for name in sorted(RECIPE & read.keys() - typed.keys())
        if read[name] == then[name] != now[name]
    ]


# score identity distillation, one call
SID = {
    "nfe": "1", "grid_top": 440, "objective": "score-matching", "a": 1.0, "weight": "sid",
    "levels": "above", "steps": 10_000, "batch_size": 256, "fake_updates": 1, "fake_warmup": 0,
    "student_rate": 1e-5, "fake_rate": 1e-5, "decay": "none", "fake_beta1": 0.0, "ema": 0.999,
    "fake_weight": "flat", "clip_x0": "off",
}  # fmt: skip
PRESETS = {
    "default": {},
    # the paper's CIFAR-10 settings; its 200,000 fake-score updates are 10,000 student updates
    "hsivi": {
        "nfe": "10", "grid": "quad", "noise_share": "eta:0.2", "log_scale": "pixel",
        "objective": "score-matching", "a": 0.5, "weight": "sigma2", "fake_weight": "sigma2",
        "levels": "own", "steps": 10_000, "batch_size": 128, "fake_updates": 20, "fake_warmup": 0,
        "student_rate": 1.6e-5, "fake_rate": 8e-5, "rate_warmup": 125, "optimizer": "amsgrad",
        "student_beta1": 0.9, "ema": 0.999, "clip_x0": "off",
    },
    "sid": SID,
    # with real images [SiDA]; its average's half-life is half a million images
    "sida": {name: value for name, value in SID.items() if name != "grid_top"} | {
        "levels": "segment", "adversarial": 0.5, "fake_warmup": 400, "adversarial_after": 100_000,
        "ema": 0.99965,
    },
}  # fmt: skip
