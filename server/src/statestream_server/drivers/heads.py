"""Heads: draws from the distributions that outputs describe; `models.distributions` has their points and likelihoods.

Draws take a fixed number of uniform numbers, or as many as it takes by rejection, each attempt from numbers of its own:
so that a path is a function of its counter (`randoms`). Parameters and results are computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from statestream.contract.signature import Head, HeadKind
from statestream_server.arrays import Array
from statestream_server.drivers.randoms import Draws, Floats
from statestream_server.models.distributions import (
    chances_of,
    log_gamma,
    log_prob,
    mean_of,
    parameters,
    point,
    total_of,
)

__all__ = ["is_drawn", "log_gamma", "log_prob", "parameters", "point", "sample"]

_ATTEMPTS = 64
"""Rejections of one draw, after which the last proposal is taken: more than ever come."""
_SEARCHED = 12.0
"""Poisson means up to which a draw is searched upwards from 0."""


def is_drawn(head: Head | None) -> bool:
    """Whether anything can be drawn from it."""
    return head is not None and head.kind != HeadKind.HEAD_KIND_QUANTILES


def sample(head: Head, given: Mapping[str, Floats], draws: Draws) -> Floats:
    """A draw for every path.

    Args:
        head: What can be drawn from.
        given: The parameters, each [N, P, ...].
        draws: Of N series and P paths.

    Returns:
        [N, P, ...one value].
    """
    shape = next(iter(given.values())).shape
    if head.kind == HeadKind.HEAD_KIND_CATEGORICAL:
        shape = shape[:-1]
    count = math.prod(shape[2:])
    if head.kind == HeadKind.HEAD_KIND_NEGATIVE_BINOMIAL:
        return _counts(total_of(given), mean_of(given), draws)
    if head.kind == HeadKind.HEAD_KIND_CATEGORICAL:
        bounds = np.cumsum(chances_of(given), -1)
        drawn = draws.uniforms(count).reshape(shape)[..., None] * bounds[..., -1:]
        classes = np.minimum((drawn >= bounds).sum(-1), bounds.shape[-1] - 1)
        return np.asarray(head.values)[classes] if head.values else np.asarray(classes, np.float64)
    first, second = np.moveaxis(draws.uniforms(2 * count).reshape(*shape, 2), -1, 0)
    angle = np.cos(2 * np.pi * second)
    if head.kind == HeadKind.HEAD_KIND_STUDENT_T:
        # Bailey, "Polar generation of random variates with the t-distribution", 1994.
        df = given["df"]
        return np.asarray(given["loc"] + given["scale"] * np.sqrt(df * np.expm1(-2 / df * np.log(first))) * angle)
    # Box and Muller, 1958.
    return np.asarray(given["loc"] + given["scale"] * np.sqrt(-2 * np.log(first)) * angle)


# ── counts ─────────────────────────────────────────────────────────────────────────────────────────


def _counts(total: Floats, mean: Floats, draws: Draws) -> Floats:
    """Draws of negative binomials: of Poisson, whose mean is drawn of a gamma distribution."""
    rate = _gamma(total, draws) * (mean / total)
    return _poisson(rate, draws, first=_ATTEMPTS)


def _gamma(shape: Floats, draws: Draws) -> Floats:
    """Marsaglia and Tsang, "A simple method for generating gamma variables", 2000."""
    low = shape < 1
    d = np.where(low, shape + 1, shape) - 1 / 3
    c = 1 / np.sqrt(9 * d)
    made = np.array(d)
    open_ = np.ones(shape.shape, np.bool_)
    boost = np.ones(shape.shape)
    for attempt in range(_ATTEMPTS):
        series = np.flatnonzero(open_.reshape(len(open_), -1).any(1))
        if not len(series):
            break
        one, two, three, four = _several(draws, 4, attempt, series, shape.shape)
        if not attempt:
            boost = np.where(low, four ** (1 / np.where(low, shape, 1)), 1.0)
        x = np.sqrt(-2 * np.log(one)) * np.cos(2 * np.pi * two)
        here = d[series]
        v = (1 + c[series] * x) ** 3
        with np.errstate(invalid="ignore", divide="ignore"):
            taken = (v > 0) & (np.log(three) < 0.5 * x * x + here - here * v + here * np.log(v))
        taken &= open_[series]
        made[series] = np.where(taken, here * v, made[series])
        open_[series] &= ~taken
    return made * boost


def _poisson(rate: Floats, draws: Draws, first: int) -> Floats:
    """Small means searched upwards; for large ones Hörmann's PTRS, "The transformed rejection method", 1993."""
    searched = rate < _SEARCHED
    made = np.floor(rate)
    (one,) = _several(draws, 1, first, np.arange(len(rate)), rate.shape)
    lam = np.where(searched, rate, 0.0)
    chance = np.exp(-lam)
    below, count = chance.copy(), np.zeros(rate.shape)
    for number in range(1, 128):
        above = one > below
        if not above.any():
            break
        count += above
        chance = chance * lam / number
        below = below + chance
    made = np.where(searched, count, made)
    open_ = ~searched & np.isfinite(rate)
    lam = np.where(open_, rate, 100.0)
    b = 0.931 + 2.53 * np.sqrt(lam)
    a, inverse, log_lam = -0.059 + 0.02483 * b, 1.1239 + 1.1328 / (b - 3.4), np.log(lam)
    for attempt in range(first + 1, first + _ATTEMPTS):
        series = np.flatnonzero(open_.reshape(len(open_), -1).any(1))
        if not len(series):
            break
        one, two = _several(draws, 2, attempt, series, rate.shape)
        u = one - 0.5
        us = 0.5 - np.abs(u)
        k = np.floor((2 * a[series] / us + b[series]) * u + lam[series] + 0.43)
        fits = (k >= 0) & ~((us < 0.013) & (two > us))
        left = np.log(two * inverse[series] / (a[series] / (us * us) + b[series]))
        right = k * log_lam[series] - lam[series] - log_gamma(np.maximum(k, 0) + 1)
        taken = fits & (left <= right) & open_[series]
        made[series] = np.where(taken, k, made[series])
        open_[series] &= ~taken
    return made


def _several(draws: Draws, count: int, attempt: int, series: Array, shape: tuple[int, ...]) -> list[Floats]:
    """Uniform numbers for some series: `count` arrays [n, P, ...]."""
    each = math.prod(shape[2:])
    numbers = draws.uniforms(count * each, attempt, series)
    return list(np.moveaxis(numbers.reshape(len(series), *shape[1:], count), -1, 0))
