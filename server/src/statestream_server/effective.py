"""What `statestream config` prints: the settings that a server would have, and where each comes from."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import click

from statestream_server import configuration
from statestream_server.cli import serve, settings_of
from statestream_server.settings import Settings


def _parameters() -> list[click.Parameter]:
    """Those of `serve`; models need not be named to look at the rest."""
    models, *others = serve.params
    models = copy.copy(models)
    models.required = False
    return [models, *others, click.Option(["--json", "as_json"], is_flag=True, help="Print JSON: by name an object.")]


def _config(context: click.Context, as_json: bool, **flags: Any) -> None:
    settings, _, _ = settings_of(**flags)
    told = [
        (configuration.key(one), _effective(settings, str(one.name), flags[str(one.name)]), *_origin(context, one))
        for one in configuration.settings(context.command)
    ]
    if as_json:
        made = {name: {"value": value, "source": kind, "from": where} for name, value, kind, where in told}
        click.echo(json.dumps(made, indent=2, ensure_ascii=False))
        return
    shown = [(name, _text(value), where or kind) for name, value, kind, where in told]
    widths = [max(len(row[column]) for row in shown) for column in (0, 1)]
    for name, value, where in shown:
        click.echo(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {where}")


config = configuration.Configured(
    "config",
    callback=click.pass_context(_config),
    params=_parameters(),
    help="""Print the settings that `serve` would have, and where each comes from.

    It takes what `serve` takes: the same flags, environment and file. Each line has a setting, its value, and the
    flag, the variable or FILE:KEY that said so, or default. Passwords in the address of a store are not shown.
    """,
)


def _origin(context: click.Context, parameter: click.Parameter) -> tuple[str, str]:
    return configuration.origin(context, parameter)


def _effective(settings: Settings, name: str, said: Any) -> Any:
    """What the server makes of what was said, as JSON has it; None where it decides when it starts."""
    if name == "durability":
        return settings.durability.name.lower()
    if name == "threads":
        return settings.threads
    if name == "quarantine":
        return str(settings.quarantine) if settings.quarantine is not None else "none"
    if name == "store":
        return configuration.masked(settings.store)
    if name == "retention":
        return [f"{seconds:g}" if not model else f"{model}={seconds:g}" for model, seconds in said]
    if isinstance(said, tuple | list):
        return [str(one) for one in said]
    return str(said) if isinstance(said, Path) else said


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return " ".join(value) or "-"
    return "-" if value is None or value == "" else str(value)
