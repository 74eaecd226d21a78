"""What callers ask forecasts, backtests and texts with, checked for both twins before anything is sent.

A wrong type is a TypeError, a wrong value a ValueError; both say what came and what was expected.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from statestream.arguments import MOST_SEED, MOST_STEPS, came, check_flag, check_model, check_whole, is_real


def check_forecast(
    h: object,
    quantiles: object,
    level: object,
    num_samples: object,
    seed: object,
    samples: object,
    bands: object,
    until: object,
) -> None:
    """What a forecast is asked with.

    Raises:
        TypeError: One is of another type.
        ValueError: One has a value that it cannot have, or two do not go together.
    """
    check_whole("h", h)
    if quantiles is not None and level is not None:
        raise ValueError("both quantiles and level are given; expected one of them: level=[80] is quantiles=[0.1, 0.9]")
    for name, given, most in (("quantiles", quantiles, 1), ("level", level, 100)):
        if given is None:
            continue
        several = isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping)
        listed: list[Any] = list(given) if several else [given] if name == "level" else [None]  # type: ignore[call-overload]
        numbers = [float(one) for one in listed if is_real(one)]
        if len(numbers) < len(listed):
            raise TypeError(f"{name} is {came(given)}; expected numbers, as in {'[0.1, 0.9]' if most == 1 else '[80]'}")
        if not numbers:
            raise ValueError(f"{name} is empty; expected one number at least, or None")
        wrong = [one for one in numbers if not 0 < one < most]
        if wrong:
            raise ValueError(f"{name} has {wrong[0]:g}; expected numbers between 0 and {most}, neither of them")
        if most == 100 and min(numbers) < 1:
            share = min(numbers)
            raise ValueError(f"level is {share:g}, less than one per cent; expected per cent, as in [{100 * share:g}]")
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"{name} has a number twice; expected each once")
    if num_samples is not None:
        check_whole("num_samples", num_samples, hint=", or None")
    if seed is not None:
        check_whole("seed", seed, 0, MOST_SEED, ", or None")
    check_flag("samples", samples)
    _check_bands(bands, quantiles, level, num_samples, samples)
    _check_until(until)


def check_windows(step: object, n_windows: object) -> None:
    """How a backtest rolls."""
    if step is not None:
        check_whole("step", step, hint=", or None for h")
    if n_windows is not None:
        check_whole("n_windows", n_windows, hint=", or None for as many as there are")


def _check_bands(bands: object, quantiles: object, level: object, num_samples: object, samples: object) -> None:
    if bands is None:
        return
    if bands != "conformal":
        raise ValueError(f"bands is {bands!r}; expected 'conformal', or None for those of the model's own head")
    if quantiles is None and level is None:
        raise ValueError("bands are asked for without quantiles or level; expected one of them, as in level=[80]")
    if num_samples is not None or samples:
        raise ValueError("conformal bands are made of past errors, not of paths; leave out num_samples and samples")


def _check_until(until: object) -> None:
    if until is None:
        return
    fits = (
        isinstance(until, tuple) and len(until) == 3 and isinstance(until[0], str) and until[1] in ("<=", ">=")
    ) and is_real(until[2])
    if not fits or np.isnan(until[2]):  # type: ignore[index]
        raise ValueError(f"until is {came(until)}; expected an output, '<=' or '>=', and a number: ('y', '<=', 0.0)")


@dataclass(frozen=True, slots=True)
class Ways:
    """How tokens are chosen: by beam search, drawn, or greedily where nothing is said."""

    num_beams: Any = None
    n_best: Any = None
    length_penalty: Any = None
    early_stopping: Any = False
    num_samples: Any = None
    temperature: Any = None
    top_k: Any = None
    top_p: Any = None
    seed: Any = None

    @property
    def draws(self) -> bool:
        """Whether they are drawn."""
        return any(each is not None for each in (self.num_samples, self.temperature, self.top_k, self.top_p))


MOST_PENALTY = 16
"""Of a length penalty, up and down."""


def check_generate(model: object, version: object, ways: Ways, max_tokens: object, attention: object) -> None:
    """What texts are asked with.

    Raises:
        TypeError: One is of another type.
        ValueError: One has a value that it cannot have, or two do not go together.
    """
    check_model(model, version)
    if max_tokens is not None:
        check_whole("max_tokens", max_tokens, hint=", or None")
    check_flag("attention", attention)
    check_flag("early_stopping", ways.early_stopping)
    for name, least, most in (
        ("num_beams", 1, MOST_STEPS),
        ("n_best", 1, MOST_STEPS),
        ("num_samples", 1, MOST_STEPS),
        ("top_k", 1, MOST_STEPS),
        ("seed", 0, MOST_SEED),
    ):
        if getattr(ways, name) is not None:
            check_whole(name, getattr(ways, name), least, most, ", or None")
    for name, low, high, said in (
        ("temperature", 0, np.inf, "more than 0"),
        ("top_p", 0, 1, "more than 0, and 1 at most"),
        ("length_penalty", -MOST_PENALTY, MOST_PENALTY, f"-{MOST_PENALTY} to {MOST_PENALTY}"),
    ):
        value = getattr(ways, name)
        if value is None:
            continue
        if not is_real(value):
            raise TypeError(f"{name} is {came(value)}; expected a number, {said}, or None")
        above = low <= value if name == "length_penalty" else low < value
        if not (above and value <= high and np.isfinite(value)):
            raise ValueError(f"{name} is {value:g}; expected {said}")
    _check_ways(ways)


def _check_ways(ways: Ways) -> None:
    """What goes together of beams and draws."""
    if ways.draws and ways.num_beams is not None:
        drawn = next(
            name for name in ("num_samples", "temperature", "top_k", "top_p") if getattr(ways, name) is not None
        )
        raise ValueError(f"both num_beams and {drawn} are given; texts are searched or drawn: expected one of them")
    if ways.num_beams is None:
        for name in ("n_best", "length_penalty", "early_stopping"):
            if getattr(ways, name) not in (None, False):
                raise ValueError(f"{name} goes with num_beams, which is not given; expected both or neither")
    elif ways.n_best is not None and ways.n_best > ways.num_beams:
        raise ValueError(f"n_best is {ways.n_best}; there are {ways.num_beams} beams, expected so many at most")
    if ways.seed is not None and not ways.draws:
        raise ValueError(
            "seed is given, and nothing is drawn; expected one of temperature, top_k, top_p and num_samples with it"
        )
