"""The command as a whole: which subcommands there are, and what each is for. One is imported when it is called."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any, Final, NamedTuple

import click

import statestream

GROUP: Final = "statestream.commands"
"""The entry points of installed distributions that add subcommands: each names a click command."""

OWN: Final[Mapping[str, str]] = {
    "alias": "Have ALIAS name a version of a model from now on, as in `alias sunspots stable 3`.",
    "bench": "Measure a server: throughput by batch, and how long single calls take.",
    "completion": "Print what has SHELL complete commands, options, models of the server and recipes.",
    "forecast": "Forecast what comes after the past in FILE: CSV with a header, or - for standard input.",
    "generate": "Answer each TEXT with a text; - stands for the lines of standard input.",
    "health": "Ask a server for its health, by the standard gRPC protocol.",
    "info": "Show version, durability, device and limits of a server.",
    "load": "Load a version of a model, by number or alias; the highest in the models folder where none is named.",
    "models": "List the models of a server.",
    "move": "Ask a server's clients to take a share of their sessions to other servers.",
    "predict": "Run a model without memory on FILE: a line an item (CSV, JSON or text), a .npy with a batch, or -.",
    "quarantine": "Show the work that was running when servers died, and whether it is refused since.",
    "run": "Type inputs, see answers: a session where MODEL has memory.",
    "sessions": "List the sessions of a server; show, delete, snapshot and restore single ones.",
    "stats": "Show what a server's engine did: its batches by size and wait, and why they were not larger.",
    "unload": "Let a version of a model go; all of them where none is named.",
}
"""What the client's own subcommands are for."""

_ROOMS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("forecast", "generate", "predict", "run"), "using"),
    **dict.fromkeys(("alias", "load", "sessions", "unload"), "managing"),
    "completion": "completing",
}
"""The modules of subcommands; `remote` has the others."""


class Elsewhere(NamedTuple):
    """A subcommand of our other distributions: what it is for, and what to install."""

    help: str
    package: str


ELSEWHERE: Final[Mapping[str, Elsewhere]] = {
    "config": Elsewhere(
        "Print the settings that `serve` would have, and where each comes from.", "statestream-server[cpu]"
    ),
    "data": Elsewhere(
        "List the published data sets of recipes: where each was found, its checksums, and how to get it.",
        "statestream-export",
    ),
    "inspect": Elsewhere("Tells what the server would make of an ONNX file, and why.", "statestream-server[cpu]"),
    "recipes": Elsewhere(
        "List the recipes: task, data, cell, kind, mode and the figure each must reach.", "statestream-export"
    ),
    "serve": Elsewhere("Serves models over gRPC.", "statestream-server[cpu]"),
    "store": Elsewhere("Back up, restore, check or erase what a store keeps of sessions.", "statestream-server[cpu]"),
    "token": Elsewhere("Make, list and revoke the tokens that callers show a server.", "statestream-server[cpu]"),
    "sign": Elsewhere(
        "Writes a copy of an ONNX file that says what of it is memory, in the form in which it is served.",
        "statestream-server[cpu]",
    ),
    "train": Elsewhere("Train RECIPE (a name, or ./my_recipe.py) and export it into MODELS_DIR.", "statestream-export"),
}


_IN_PYTHON: Final[Mapping[str, str]] = {
    "local": "that is in Python, as in `with statestream.local('models/') as client`; `statestream serve` starts a"
    " server that others call too",
    "connect": "that is in Python, as in `client = statestream.connect('localhost:8001')`; the subcommands take"
    " -a HOST:PORT",
}
"""What is no subcommand, and what is told whoever takes it for one."""


class Deferred(click.Command):
    """Stands for a subcommand until it is called, or asked for its own help: then it is imported.

    The list of all waits for none of them, so what each is for has to be known before.
    """

    def __init__(self, name: str, help: str, load: Callable[[], click.Command]) -> None:
        """`load` imports the subcommand."""
        super().__init__(name, help=help)
        self.load = load

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context of the subcommand itself, which runs in it."""
        return self.load().make_context(info_name, args, parent, **extra)


class Commands(click.Group):
    """Our own subcommands and those of installed distributions; a broken one costs nobody else anything."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in order."""
        return sorted({*OWN, *_added(ctx).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One subcommand, not imported yet; None where there is none of that name."""
        if cmd_name in OWN:
            return Deferred(cmd_name, OWN[cmd_name], lambda: _own(cmd_name))
        point = next(iter(_added(ctx).select(name=cmd_name)), None)
        if point is None:
            return None
        known = ELSEWHERE.get(cmd_name)
        text = known.help if known else f"Comes with {point.dist.name if point.dist else point.module}."
        return Deferred(cmd_name, text, lambda: _load(point))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The subcommand that the first argument names; of one that another distribution has, which that is."""
        name = args[0]
        if name in ELSEWHERE and name not in _added(ctx).names:
            raise click.UsageError(
                f"`statestream {name}` comes with another package, which is not installed here:"
                f" pip install '{ELSEWHERE[name].package}'"
            )
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            close = difflib.get_close_matches(name, [*self.list_commands(ctx), *ELSEWHERE], n=1)
            hint = f"did you mean `statestream {close[0]}`?" if close else "`statestream --help` lists all"
            hint = _IN_PYTHON.get(name, hint)
            raise click.UsageError(f"No such command {name!r}: {hint}")
        return super().resolve_command(ctx, args)


def _own(name: str) -> click.Command:
    room = import_module(f"statestream.command.{_ROOMS.get(name, 'remote')}")
    command: click.Command = getattr(room, name)
    return command


def _added(ctx: click.Context) -> EntryPoints:
    """What other distributions add. All installed ones are looked through for it, once a run."""
    if GROUP not in ctx.meta:
        ctx.meta[GROUP] = entry_points(group=GROUP)
    found: EntryPoints = ctx.meta[GROUP]
    return found


def _load(point: EntryPoint) -> click.Command:
    try:
        command = point.load()
    except Exception as error:
        # Whatever a plugin does on import, it is told in a line.
        raise click.UsageError(f"{point.name} cannot be loaded from {point.value}: {error}") from error
    if not isinstance(command, click.Command):
        raise click.UsageError(f"{point.name} cannot be loaded: {point.value} is no click command")
    return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(statestream.__version__, prog_name="statestream")
def main() -> None:
    """Statestream serves models with memory."""
