"""Scores: how likely what a caller sent was, as they come behind a step's outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from statestream.contract.observations import LOG_LIKELIHOOD, P_VALUE, SCORE, Z
from statestream.contract.tensors import Array
from statestream.core import value_of
from statestream.core.tickets import Outputs


@dataclass(frozen=True, eq=False, slots=True)
class Scores:
    """How likely what arrived was, as the step before it expected.

    All are float32; NaN where there is no score: at a session's first step, or where nothing arrived.

    Attributes:
        log_likelihood: A number a step, [T] for several, of a model with a head: the logarithm of the density (or of
            the probability) of what arrived, summed over the values of a step.
        p_value: As many: the share of the session's past scores that were as low, this one counted: between 1 / 256
            (with 255 of them, the default) and 1.
        z: Of a forecaster without a head, as its output: the residual's robust z-score. A dict by output where several
            are fed back.
    """

    log_likelihood: Array | None = None
    p_value: Array | None = None
    z: Any = None


class Scored(NamedTuple):
    """The answer to a step that was to be scored: what `step` gives else, and the scores."""

    outputs: Any
    scores: Scores


def scored(found: Outputs) -> Scored:
    """Outputs by name, those of scores among them, as callers get them."""
    scores = {name: array for name, array in found.items() if name.startswith(SCORE)}
    z = {name.removeprefix(Z): array for name, array in scores.items() if name.startswith(Z)}
    return Scored(
        value_of({name: array for name, array in found.items() if name not in scores}),
        Scores(scores.get(LOG_LIKELIHOOD), scores.get(P_VALUE), value_of(z) if z else None),
    )


def answered(found: Outputs) -> Any:
    """Outputs by name as callers get them, scored or not."""
    return scored(found) if any(name.startswith(SCORE) for name in found) else value_of(found)


def unscored(found: Outputs, gone: Array) -> Outputs:
    """The same with NaN in the scores of those [N, T] that are `gone`."""
    return {name: _without(array, gone) if name.startswith(SCORE) else array for name, array in found.items()}


def _without(array: Array, gone: Array) -> Array:
    return np.where(gone.reshape(*gone.shape, *[1] * (array.ndim - gone.ndim)), np.float32(np.nan), array)
