"""`statestream token`: makes, lists and revokes the tokens of a file."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, Final

import click

from statestream_server.access import tokens
from statestream_server.access.tokens import RIGHTS, STEP, TokensError

_FILE: Final = click.option(
    "--tokens",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="STATESTREAM_TOKENS",
    show_envvar=True,
    required=True,
    help="The file of tokens, as the server has it.",
)


@click.group()
def token() -> None:
    """Make, list and revoke the tokens that callers show a server."""


@token.command()
@_FILE
@click.option("--tenant", required=True, help='Whose sessions it is about; "" is who called before there were tokens.')
@click.option(
    "--rights", default=STEP, show_default=True, help=f"What it may, with commas: {', '.join(sorted(RIGHTS))}."
)
@click.option(
    "--days", type=click.FloatRange(0, 36_500, min_open=True), default=90.0, show_default=True, help="How long."
)
@click.option("--note", default="", help="A word for people.")
def new(path: Path, tenant: str, rights: str, days: float, note: str) -> None:
    """Make a token, and print it: this once. The file has its hash alone."""
    wanted = frozenset(each.strip() for each in rights.split(",") if each.strip())
    if not wanted or not wanted <= RIGHTS:
        raise click.UsageError(f"--rights is {rights!r}; expected some of {', '.join(sorted(RIGHTS))}, with commas")
    if not math.isfinite(days):
        raise click.UsageError("--days is no number of days")
    secret, made = _done(tokens.new, path, tenant, wanted, time.time() + days * 86_400, note)
    click.echo(f"token {made.id} of tenant {tenant!r}, for {days:g} days; it is shown this once:", err=True)
    click.echo(secret)


@token.command("ls")
@_FILE
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def list_(path: Path, as_json: bool) -> None:
    """List the tokens and certificates of a file."""
    said = _done(lambda: tokens.parse(tokens.read(path), str(path)))
    rows = [
        {
            "id": each.id,
            "kind": "certificate" if each.is_certificate else "token",
            "known_by": each.hash if each.is_certificate else "",
            "tenant": each.tenant,
            "rights": sorted(each.rights),
            "expires": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(each.expires)),
            "expired": each.expires <= time.time(),
            "note": each.note,
        }
        for each in said.tokens.values()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for row in rows:
        state = "expired" if row["expired"] else "until"
        click.echo(
            f"{row['id']}  {row['tenant']!r}  {','.join(row['rights'])}  {state} {row['expires']}  {row['note']}"
            + (f"  certificate {row['known_by']}" if row["known_by"] else "")
        )


@token.command()
@_FILE
@click.argument("id")
def revoke(path: Path, id: str) -> None:
    """Take a token or a certificate out of the file; servers end what runs under it within a second."""
    gone = _done(tokens.revoke, path, id)
    click.echo(f"{gone} of tenant {gone.tenant!r} is revoked")


def _done(action: Any, *args: Any) -> Any:
    try:
        return action(*args)
    except TokensError as error:
        raise click.ClickException(str(error)) from error
