"""Ensembles of trees, by LightGBM: fitted to text, its own model format, and read from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config import BoostConfig
from ..density.packages import quietly
from ..errors import HsiviError

FOLDS, MOST, PATIENCE, PRIOR_RATE = 5, 500, 20, 0.1  # of the prior mean's ensembles
PRIOR_ROWS = 2  # fewest in a leaf of theirs: rows that they have not seen stop them
STEP = 0.1  # of a tree that is given its gradients


@dataclass(frozen=True)
class Trees:
    """How ensembles are grown.

    width       columns of x
    categories  which of them hold categories
    """

    config: BoostConfig
    width: int
    categories: tuple[int, ...] = ()

    def parameters(self, least: int, **more) -> dict:
        """LightGBM's, `least` the fewest rows in a leaf."""
        return {
            "num_leaves": self.config.leaves,
            "min_data_in_leaf": least,
            "min_data_per_group": least,  # of a category
            "num_threads": self.config.threads,
            "deterministic": True,  # whatever the threads
            "force_row_wise": True,
            "verbosity": -1,
        } | more

    def fit(self, inputs: np.ndarray, wanted: np.ndarray, objective: str) -> str:
        """`trees` trees for wanted [N], given inputs [N, ...] that end in x, each row of the table
        `repeats` times.
        """
        lightgbm = quietly("lightgbm", "boost")
        least = self.config.min_rows * self.config.repeats
        options = self.parameters(least, objective=objective, learning_rate=self.config.rate)
        data = self.data(inputs, wanted, options)
        return lightgbm.train(options, data, self.config.trees).model_to_string()

    def data(self, inputs: np.ndarray, wanted: np.ndarray, options: dict, **more):
        """LightGBM's data set of inputs [N, ...] that end in x."""
        columns = [inputs.shape[1] - self.width + i for i in self.categories]
        return quietly("lightgbm", "boost").Dataset(
            inputs, wanted, categorical_feature=columns, params=options, **more
        )

    def prior(
        self, x: np.ndarray, wanted: np.ndarray, fold: np.ndarray, classes: int = 0
    ) -> list[str]:
        """An ensemble for wanted [N] given x [N, C] without the rows of each fold [N], by which it
        is stopped. With classes, wanted are their numbers and the ensemble tells probabilities.
        """
        lightgbm = quietly("lightgbm", "boost")
        kind = {"objective": "multiclass", "num_class": classes} if classes else {}
        options = self.parameters(PRIOR_ROWS, learning_rate=PRIOR_RATE, **kind)
        made = []
        for number in range(fold.max() + 1):
            inside = fold != number
            data = self.data(x[inside], wanted[inside], options)
            judge = self.data(x[~inside], wanted[~inside], options, reference=data)
            stop = lightgbm.early_stopping(PATIENCE, verbose=False)
            found = lightgbm.train(options, data, MOST, valid_sets=[judge], callbacks=[stop])
            made.append(found.model_to_string(num_iteration=found.best_iteration))
        return made


class Growing:
    """An ensemble that is given its gradients tree by tree, for inputs as in Trees.fit.

    total  [N] what it says of its inputs so far
    """

    def __init__(self, trees: Trees, inputs: np.ndarray):
        options = trees.parameters(
            trees.config.min_rows * trees.config.repeats,
            objective="none",
            learning_rate=STEP,
            max_delta_step=1.0,  # before the rate: second derivatives may be next to nothing
            boost_from_average=False,
        )
        self.total = np.zeros(len(inputs))
        self.data = trees.data(inputs, self.total, options)
        self.booster = quietly("lightgbm", "boost").Booster(options, self.data)
        self.inputs, self.threads = inputs, trees.config.threads

    def add(self, gradient: np.ndarray, hessian: np.ndarray) -> None:
        """A tree down a loss, by its first two derivatives [N] by the total."""
        number = self.booster.current_iteration()
        self.booster.update(fobj=lambda *_: (gradient, hessian))
        last = {"start_iteration": number, "num_iteration": 1, "num_threads": self.threads}
        self.total = self.total + self.booster.predict(self.inputs, **last)

    def text(self) -> str:
        return self.booster.model_to_string()


def read_trees(text: str, name: str):
    """LightGBM's Booster in a text."""
    lightgbm = quietly("lightgbm", "boost")
    try:
        return lightgbm.Booster(model_str=text)
    except lightgbm.basic.LightGBMError as error:
        raise HsiviError(f"the trees {name} are damaged ({error}): copy the run again") from error


def beside(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Columns [N, ...] beside one another, one block."""
    return np.concatenate(columns, axis=1)
