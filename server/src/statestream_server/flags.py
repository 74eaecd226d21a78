"""Flags: what the command's may be, and that they come from a file or the environment too."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click


def read_config(context: click.Context, _parameter: click.Parameter, path: Path | None) -> Path | None:
    """Makes a TOML file's values the defaults; environment and flags go before them."""
    if path is None:
        return None
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise click.BadParameter(f"{path}: {error}") from error
    several = {each.name for each in context.command.params if getattr(each, "multiple", False) or each.nargs < 0}
    names = {key.replace("-", "_"): value for key, value in values.items()}
    names |= {name: [names[name]] for name in several & names.keys() if not isinstance(names[name], list)}
    unknown = sorted(names.keys() - {each.name for each in context.command.params})
    if unknown:
        raise click.BadParameter(f"{path}: unknown setting {unknown[0]!r}; `statestream serve --help` lists them")
    context.default_map = {**(context.default_map or {}), **names}
    return path


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
