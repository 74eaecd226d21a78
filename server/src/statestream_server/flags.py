"""Flags: what the command's may be, each with its variable of the environment."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

_Decorated = TypeVar("_Decorated", bound=Callable[..., object])


def option(name: str, **more: Any) -> Callable[[_Decorated], _Decorated]:
    """A flag that can also come from STATESTREAM_<NAME>."""
    variable = "STATESTREAM_" + name.partition("/")[0].removeprefix("--").upper().replace("-", "_")
    return click.option(name, envvar=variable, show_envvar=True, show_default=more.get("default") is not None, **more)


class Seconds(click.FloatRange):
    """Finite seconds in a range; the base class lets NaN through, which no comparison refuses."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; a usage error where it is out of range or not finite."""
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a finite number of seconds", param, ctx)
        return seconds


class Retention(click.ParamType):  # type: ignore[type-arg]  # It is generic only since click 8.5.
    """Seconds, or a model's name and seconds; of a model "" these are all that are not named."""

    name = "[model=]seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """The model's name, "" for all, and seconds; a usage error where it is no such thing."""
        if isinstance(value, tuple):
            return value
        model, equals, seconds = str(value).rpartition("=")
        if equals and not model:
            self.fail(f"{value!r} names no model; expected MODEL=SECONDS", param, ctx)
        return model, Seconds(0).convert(seconds, param, ctx)
