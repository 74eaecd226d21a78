"""The subcommands that change what a server has: models that are loaded and let go, sessions one by one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

import statestream
from statestream import unary
from statestream.command import lines, listing
from statestream.command.asking import (
    Version,
    ask,
    asks_server,
    at_server,
    console,
    model_names,
    plain,
    print_json,
    printed,
)
from statestream.command.listing import Column
from statestream.sync.calling import answer
from statestream.views import SessionInfo

_MODEL = click.argument("model", shell_complete=model_names)
_VERSION = click.argument("version", required=False, type=Version())


@click.command()
@_MODEL
@_VERSION
@at_server
def load(model: str, version: int | str | None, address: str, as_json: bool, timeout: float) -> None:
    """Load a version of a model, by number or alias; the highest in the models folder where none is named."""
    found = ask(address, timeout, lambda client: client.load_model(model, version))
    if as_json:
        print_json(plain(found))
    else:
        click.echo(f"serving {found.name} version {found.version} ({found.kind})")


@click.command()
@_MODEL
@_VERSION
@at_server
def unload(model: str, version: int | str | None, address: str, as_json: bool, timeout: float) -> None:
    """Let a version of a model go; all of them where none is named."""
    ask(address, timeout, lambda client: client.unload_model(model, version))
    if as_json:
        print_json({"unloaded": model, "version": version})
    else:
        click.echo(f"{model}{f' version {version}' if version else ''} is not served any more")


@click.command()
@_MODEL
@click.argument("alias")
@click.argument("version", required=False, type=click.IntRange(1))
@click.option("--remove", is_flag=True, help="Take the alias away.")
@at_server
def alias(
    model: str, alias: str, version: int | None, remove: bool, address: str, as_json: bool, timeout: float
) -> None:
    """Have ALIAS name a version of a model from now on, as in `alias sunspots stable 3`.

    The server writes it into aliases.toml beside the versions; it must be allowed to. Sessions that are open stay with
    their version.
    """
    if remove == (version is not None):
        raise click.UsageError("give the version that ALIAS names from now on, or --remove to take it away")
    found = ask(address, timeout, lambda client: client.set_alias(model, alias, version))
    if as_json:
        print_json({"model": model, "aliases": found})
    else:
        named = ", ".join(f"{name} = {number}" for name, number in found.items())
        click.echo(f"{model}: {named or 'no aliases any more'}")


class _Sessions(click.Group):
    """`sessions ADDRESS` is `sessions ls ADDRESS`, as it was before there were others."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not (args and (args[0] in self.commands or args[0] in ctx.help_option_names)):
            args = ["ls", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Sessions)
def sessions() -> None:
    """List the sessions of a server; show, delete, snapshot and restore single ones."""


@sessions.command("ls")
@asks_server
@click.option("--model", default=None, help="Only the sessions of this model.", shell_complete=model_names)
@click.option("--id", "prefix", default="", metavar="PREFIX", help="Only those whose id begins so.")
@click.option("--where", type=click.Choice(["resident", "stored"]), default=None, help="Only those that are there.")
@click.option("--limit", type=click.IntRange(1), default=None, help="No more than so many; tells how to go on.")
@click.option("--page", default="", metavar="TOKEN", help="Where the page before ended, as it told.")
def list_all(
    address: str,
    as_json: bool,
    timeout: float,
    model: str | None,
    prefix: str,
    where: str | None,
    limit: int | None,
    page: str,
) -> None:
    """List sessions."""

    def fits(one: SessionInfo) -> bool:
        return one.id.startswith(prefix) and where in (None, one.residence)

    def find(client: statestream.Client) -> tuple[list[SessionInfo], str]:
        found, token = list[SessionInfo](), page
        while True:
            # With a limit a page has no more than is wanted, so that its end is where the next one begins.
            size = 1000 if limit is None else min(1000, limit - len(found))
            several, token = answer(client._link, unary.list_sessions(model, token, size))
            found += filter(fits, several)
            if not token or (limit is not None and len(found) >= limit):
                return found, token

    found, token = ask(address, timeout, find)
    if as_json:
        print_json([plain(session) for session in found])
    elif found:
        _table(found)
    else:
        click.echo("no session is so" if model or prefix or where else "no sessions")
    if token:
        click.echo(f"There are more: --page {token}", err=True)


def _table(found: list[SessionInfo]) -> None:
    listing.show(
        console(),
        [
            Column("model", [one.model for one in found]),
            Column("version", [str(one.version) for one in found], whole=True, leaves=4),
            Column("session", [printed(one.id) + (" (ephemeral)" if one.ephemeral else "") for one in found]),
            Column("position", [f"{one.position:,}" for one in found], whole=True),
            Column("durable", [f"{one.durable_position:,}" for one in found], whole=True),
            Column("epoch", [str(one.epoch) for one in found], whole=True, leaves=1),
            Column("where", [one.residence for one in found], whole=True, leaves=3),
            Column(
                "last used",
                [one.last_used.strftime("%Y-%m-%d %H:%M:%S UTC") if one.last_used else "" for one in found],
                whole=True,
                leaves=2,
            ),
        ],
    )


@sessions.command()
@_MODEL
@click.argument("id")
@at_server
def show(model: str, id: str, address: str, as_json: bool, timeout: float) -> None:
    """Show one session."""
    found = ask(address, timeout, lambda client: answer(_link(client, model, id), unary.get_session(model, id)))
    if as_json:
        print_json(plain(found))
        return
    for name, value in plain(found).items():
        click.echo(f"{name.replace('_', ' ') + ':':18}{f'{value:,}' if type(value) is int else printed(str(value))}")


@sessions.command()
@_MODEL
@click.argument("ids", nargs=-1, required=True)
@at_server
def rm(model: str, ids: tuple[str, ...], address: str, as_json: bool, timeout: float) -> None:
    """Delete sessions, whoever has them open."""

    def delete(client: statestream.Client) -> None:
        for id in ids:
            answer(_link(client, model, id), unary.delete_session(model, id))
            if not as_json:
                click.echo(f"{model}/{printed(id)} is deleted")

    ask(address, timeout, delete)
    if as_json:
        print_json({"model": model, "deleted": [*ids]})


@sessions.command()
@_MODEL
@click.argument("id")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True),
    default=None,
    help="Default: ID.session; - is standard output.",
)
@at_server
def snapshot(model: str, id: str, output: str | None, address: str, as_json: bool, timeout: float) -> None:
    """Write a session into a file, which `restore` takes; it goes on meanwhile."""
    if output == lines.PIPED and (as_json or sys.stdout.isatty()):
        came = "--json came as well" if as_json else "standard output is a terminal"
        raise click.UsageError(f"--output - writes bytes to standard output, and {came}; name a file, or pipe it")
    blob = ask(address, timeout, lambda client: answer(_link(client, model, id), unary.snapshot(model, id)))
    if output == lines.PIPED:
        click.echo(blob, nl=False)
        return
    place = Path(output or f"{id.replace('/', '_')}.session")
    try:
        place.write_bytes(blob)
    except OSError as error:
        raise click.ClickException(f"{place} cannot be written: {error.strerror}; say another with --output") from error
    if as_json:
        print_json({"model": model, "id": id, "file": str(place), "bytes": len(blob)})
    else:
        click.echo(f"{model}/{printed(id)}: {len(blob):,} bytes in {printed(str(place))}")


@sessions.command()
@_MODEL
@click.argument("id")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--upgrade", is_flag=True, help="In the newest version, although it was taken of another.")
@at_server
def restore(model: str, id: str, file: str, upgrade: bool, address: str, as_json: bool, timeout: float) -> None:
    """Make a session of a FILE that `snapshot` wrote (- is standard input); one of that id is replaced."""
    blob = lines.read_bytes(file)

    def make(client: statestream.Client) -> dict[str, Any]:
        with client.restore(blob, model=model, id=id, upgrade=upgrade or None) as session:
            return {"model": model, "id": id, "version": session.version, "position": session.position}

    made = ask(address, timeout, make)
    if as_json:
        print_json(made)
    else:
        click.echo(f"{model}/{printed(id)} is at position {made['position']:,} of version {made['version']}")


def _link(client: statestream.Client, model: str, id: str) -> Any:
    return client._shards.of(model, id)
