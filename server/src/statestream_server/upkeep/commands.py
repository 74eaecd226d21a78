"""`statestream store`: backup, restore, check and erasure of the store in which sessions survive."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from statestream.contract.errors import StoreUnavailable
from statestream_server.stores import open_store
from statestream_server.stores.base import Lasting, Scanned, Told
from statestream_server.stores.memory import MemoryStore
from statestream_server.stores.sqlite import SqliteStore
from statestream_server.upkeep import checking, copying, erasing
from statestream_server.upkeep.archive import Archive
from statestream_server.upkeep.problems import UpkeepError

T = TypeVar("T")

_STORE = click.option(
    "--store",
    "url",
    default="sqlite",
    envvar="STATESTREAM_STORE",
    show_envvar=True,
    show_default=True,
    help="As the servers have it: sqlite, sqlite:PATH or redis://HOST:PORT.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
_FILE = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))


@click.group()
def store() -> None:
    """Back up, restore, check or erase what a store keeps of sessions."""


@store.command()
@_FILE
@_STORE
@_JSON
def backup(file: Path, url: str, as_json: bool) -> None:
    """Write all that the store has into FILE. Servers may serve meanwhile."""
    with _progress("backup") as told:
        count = _run(url, lambda kept: copying.backup(kept, file, told))
    size = file.stat().st_size
    _tell(
        as_json,
        {**count._asdict(), "bytes": size},
        f"{file}: {count.sessions:,} sessions, {count.tombstones:,} tombstones, {size:,} bytes",
    )


@store.command()
@_FILE
@_STORE
@click.option(
    "--newer",
    type=click.Choice([choice.value for choice in copying.Newer]),
    default=copying.Newer.REFUSE.value,
    show_default=True,
    help="What becomes of sessions that the store has in a newer state: nothing is restored at all (refuse), they stay"
    " (keep), or they are set back (overwrite).",
)
@click.option("--while-serving", is_flag=True, help="Restore although servers use the store.")
@_JSON
def restore(file: Path, url: str, newer: str, while_serving: bool, as_json: bool) -> None:
    """Write what a backup has into the store."""

    async def work(kept: Lasting) -> copying.Restored:
        archive = Archive(file)
        return await copying.restore(kept, archive, copying.Newer(newer), while_serving=while_serving, told=told)

    with _progress("restore") as told:
        done = _run(url, work, anew=True)
    _tell(
        as_json,
        done._asdict(),
        f"{done.sessions:,} sessions restored, {done.overwritten:,} of them over newer ones;"
        f" {done.tombstones:,} tombstones; {done.kept:,} left as the store has them",
    )


@store.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@_STORE
@click.option(
    "--models",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The models folder: sessions that none of its versions could go on with are told.",
)
@_JSON
def check(file: Path | None, url: str, models: Path | None, as_json: bool) -> None:
    """Read every record of the store, or of the backup FILE, and tell what is wrong. Exit code 1 where anything is."""
    folder = checking.Models(models)
    with _progress("check") as told:
        if file is None:
            report = _run(url, lambda kept: checking.check(kept, folder, told))
        else:
            report = _guarded(_check_file(file, folder, told))
    if as_json:
        click.echo(json.dumps(checking.plain(report), indent=2))
    else:
        _print(report)
    sys.exit(1 if report.count else 0)


@store.command()
@_STORE
@click.option("--tenant", help="Only this tenant's sessions.")
@click.option("--model", help="Only the sessions of this model, of all its versions.")
@click.option("--prefix", help="Only sessions whose ids begin so.")
@click.option("--everything", is_flag=True, help="All sessions, where nothing else is said.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_JSON
def erase(
    url: str, tenant: str | None, model: str | None, prefix: str | None, everything: bool, yes: bool, as_json: bool
) -> None:
    """Delete sessions for good, with their replies, forks and ids."""
    wanted = erasing.Wanted(tenant, model, prefix)
    if everything == any(one is not None for one in wanted):
        raise click.UsageError("say which sessions: --tenant, --model or --prefix, several for all that fit each; or"
                               " --everything")  # fmt: skip
    if not yes:
        what = ", ".join(f"{name} {value!r}" for name, value in wanted._asdict().items() if value is not None)
        click.confirm(f"Erase for good {f'the sessions of {what}' if what else 'all sessions'}?", abort=True, err=True)
    with _progress("erase") as told:
        done = _run(url, lambda kept: erasing.erase(kept, wanted, told))
    left = (
        f"; {done.remembered:,} ids are remembered until their tombstones expire, since servers live:"
        f" {', '.join(done.servers)}"
        if done.remembered
        else ""
    )
    _tell(as_json, done._asdict(), f"{done.sessions:,} sessions erased, {done.tombstones:,} ids forgotten{left}")


async def _check_file(file: Path, models: checking.Models, told: Told) -> checking.Report:
    archive = Archive(file)

    async def pieces() -> AsyncIterator[Sequence[Scanned]]:
        for piece in archive.records():
            yield [Scanned(f"session {record.key.id!r} of model {record.key.model!r}", record) for record in piece]

    return await checking.read(pieces(), models, sum(archive.count), told)


@asynccontextmanager
async def _opened(url: str, *, anew: bool) -> AsyncIterator[Lasting]:
    try:
        found = open_store(url)
    except (ValueError, ImportError) as error:
        raise click.UsageError(str(error)) from error
    if isinstance(found, SqliteStore) and not anew and not found.path.exists():
        raise click.UsageError(f"there is no sqlite store {found.path}; give its path, as the servers have it")
    if isinstance(found, MemoryStore):
        raise click.UsageError("the memory store ends with its server: there is nothing of it beside that")
    kept = cast(Lasting, found)
    try:
        await kept.start()
        yield kept
    finally:
        await kept.close()


def _run(url: str, work: Callable[[Lasting], Awaitable[T]], *, anew: bool = False) -> T:
    """Does something with a store; one that is not there is made only where it may be new."""

    async def run() -> T:
        async with _opened(url, anew=anew) as kept:
            return await work(kept)

    return _guarded(run())


def _guarded(work: Coroutine[Any, Any, T]) -> T:
    """What some work comes to; an error is one line that begins with its reason, and exit code 1."""
    try:
        return asyncio.run(work)
    except UpkeepError as error:
        raise click.ClickException(f"{error.reason}: {error}") from error
    except StoreUnavailable as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or 'the file'}: {error.strerror or error}") from error


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Told]:
    """A bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _tell(as_json: bool, facts: dict[str, Any], text: str) -> None:
    click.echo(json.dumps(facts, indent=2) if as_json else text)


def _print(report: checking.Report) -> None:
    console = Console()
    console = console if console.is_terminal else Console(width=200)
    table = Table()
    for name in ("tenant", "model", "version", "sessions", "tombstones", "replies", "bytes", "damaged"):
        table.add_column(name, justify="left" if name in ("tenant", "model") else "right")
    for (tenant, model, version), tally in sorted(report.tallies.items()):
        numbers = (tally.sessions, tally.tombstones, tally.replies, tally.nbytes, tally.damaged)
        table.add_row(tenant, model, str(version), *(f"{number:,}" for number in numbers))
    console.print(table)
    for text in report.findings:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if report.count > len(report.findings):
        console.print(f"… and {report.count - len(report.findings):,} more")
    console.print(f"{report.count:,} faults" if report.count else "no faults")
