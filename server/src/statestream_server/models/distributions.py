"""Distributions: what stands for one that outputs describe, and how likely a value is, for arrays of parameters.

Parameters and results are computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from statestream.contract.signature import Head, HeadKind
from statestream_server.arrays import Array

Floats: TypeAlias = npt.NDArray[np.float64]


def parameters(head: Head, outputs: Sequence[Array]) -> dict[str, Floats]:
    """A head's parameters of its outputs, in the order of their names: as `value_of(...).outputs` lists them."""
    return {name: np.asarray(array, np.float64) for name, array in zip(sorted(head.parameters), outputs, strict=True)}


def point(head: Head, given: Mapping[str, Floats]) -> Floats:
    """What stands for the distribution: its mean, of classes without values the likeliest, of quantiles the median."""
    if head.kind == HeadKind.HEAD_KIND_NEGATIVE_BINOMIAL:
        return mean_of(given)
    if head.kind == HeadKind.HEAD_KIND_CATEGORICAL:
        chances = chances_of(given)
        if head.values:
            return np.asarray((chances * np.asarray(head.values)).sum(-1))
        return np.asarray(chances.argmax(-1), np.float64)
    if head.kind == HeadKind.HEAD_KIND_QUANTILES:
        middle = min(range(len(head.quantiles)), key=lambda place: abs(head.quantiles[place] - 0.5))
        return given["quantiles"][..., middle]
    return given["loc"]


def log_prob(head: Head, given: Mapping[str, Floats], value: Array) -> Floats:
    """The logarithm of the density, or of the probability, of values; the parameters and they are of one shape.

    It is minus infinity for what no draw could be: a count below 0, a class that there is not. Of NaN it is NaN.

    Raises:
        ValueError: It is a head of quantiles, which say nothing of density.
    """
    x = np.asarray(value, np.float64)
    if head.kind == HeadKind.HEAD_KIND_GAUSSIAN:
        z = (x - given["loc"]) / given["scale"]
        return np.asarray(-0.5 * z * z - np.log(given["scale"]) - 0.5 * math.log(2 * math.pi))
    if head.kind == HeadKind.HEAD_KIND_STUDENT_T:
        df, z = given["df"], (x - given["loc"]) / given["scale"]
        whole = log_gamma((df + 1) / 2) - log_gamma(df / 2) - 0.5 * np.log(df * np.pi) - np.log(given["scale"])
        return np.asarray(whole - (df + 1) / 2 * np.log1p(z * z / df))
    if head.kind == HeadKind.HEAD_KIND_NEGATIVE_BINOMIAL:
        total, mean, there = total_of(given), mean_of(given), (x >= 0) & (x == np.floor(x))
        k = np.where(there, x, 0.0)
        ways = log_gamma(k + total) - log_gamma(total) - log_gamma(k + 1)
        found = ways + k * np.log(mean / (total + mean)) + total * np.log(total / (total + mean))
        return np.where(there, found, np.where(np.isnan(x), np.nan, -np.inf))
    if head.kind == HeadKind.HEAD_KIND_CATEGORICAL:
        chances = chances_of(given)
        places = x if not head.values else np.abs(x[..., None] - np.asarray(head.values)).argmin(-1)
        there = (places >= 0) & (places < chances.shape[-1]) & (places == np.floor(places))
        index = np.where(there, places, 0).astype(np.int64)
        found = np.take_along_axis(chances, index[..., None], -1)[..., 0]
        with np.errstate(divide="ignore"):
            found = np.log(found) - np.log(chances.sum(-1))
        return np.where(np.isnan(x), np.nan, np.where(there, found, -np.inf))
    raise ValueError("a head of quantiles has no density")


def log_gamma(x: Array) -> Floats:
    """The logarithm of the gamma function of positive numbers: Stirling's series, from 9 on."""
    z, shift = np.array(x, np.float64), np.zeros(np.shape(x))
    for _ in range(9):
        low = z < 9
        shift[low] -= np.log(z[low])
        z[low] += 1
    series = (1 / 12 - (1 / 360 - (1 / 1260 - 1 / (1680 * z * z)) / (z * z)) / (z * z)) / z
    return np.asarray(shift + (z - 0.5) * np.log(z) - z + 0.5 * math.log(2 * math.pi) + series)


def chances_of(given: Mapping[str, Floats]) -> Floats:
    """Of classes, as far as they go: not summed up to 1."""
    if "probs" in given:
        return given["probs"]
    logits = given["logits"]
    return np.asarray(np.exp(logits - logits.max(-1, keepdims=True)))


def total_of(given: Mapping[str, Floats]) -> Floats:
    """Of a negative binomial, how many failures end it."""
    return given["total_count"]


def mean_of(given: Mapping[str, Floats]) -> Floats:
    """Of a negative binomial, its mean."""
    if "mean" in given:
        return given["mean"]
    if "logits" in given:
        return given["total_count"] * np.exp(given["logits"])
    return given["total_count"] * given["probs"] / (1 - given["probs"])
