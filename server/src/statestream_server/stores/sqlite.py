"""The sqlite store: records in one file, shared by the processes of one machine. The default."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from statestream.contract.errors import StoreUnavailable
from statestream_server.stores import sqlite_batches, sqlite_servers, sqlite_tables
from statestream_server.stores.base import Claim, Claimed, Key, Peer, Record, Survival
from statestream_server.stores.batches import Batch
from statestream_server.stores.gathered import Call, Gathered
from statestream_server.stores.rules import check_batch, check_claims, check_deletes, check_records, tombs_time
from statestream_server.stores.sqlite_upkeep import SqliteUpkeep

P = ParamSpec("P")
T = TypeVar("T")

_RESTS = 9
"""How long an expiry rests after each piece, in times that the piece took: it has a tenth of a processor."""
_ADVICE = {
    "SQLITE_BUSY": "another process keeps it locked; stop that process, or raise busy_timeout",
    "SQLITE_CANTOPEN": "give a file that this user may create and write, in a folder",
    "SQLITE_CORRUPT": "the file is damaged; restore a copy or move it away (its sessions are lost)",
    "SQLITE_FULL": "the disk is full; free some space",
    "SQLITE_IOERR": "the disk failed or is full; see the system's log",
    "SQLITE_NOTADB": "the file is damaged or no sqlite database; restore a copy, or move it away and start again",
    "SQLITE_PERM": "give this user the right to write the file and its folder",
    "SQLITE_READONLY": "give this user the right to write the file and its folder, or another path",
}


class SqliteStore:
    """Records in one sqlite file, written by one thread a process.

    Every call is one transaction, and returns after it is on the disk (WAL, synchronous=FULL): records
    survive a killed process and a power cut. Processes share the file through sqlite's locks; a
    call waits up to `busy_timeout` seconds for another process' transaction. A cancelled call may still be done.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: bool = True,
        busy_timeout: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Names the file; `start` opens it.

        Args:
            path: The file; it and its folders are made where they are missing, for this user only.
            synchronous: Whether a call waits until the disk has its transaction. Without it a power
                cut can take the last transactions, a killed process cannot.
            busy_timeout: Seconds to wait for other processes.
            clock: Gives Unix time.
        """
        self.path = Path(path).expanduser().absolute()
        self._synchronous = synchronous
        self._busy_timeout = busy_timeout
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="statestream-sqlite")
        self._database: sqlite3.Connection | None = None
        self._inode = (0, 0)
        self._claims = Gathered[Claim, Claimed]()
        self._closed = False

    @property
    def kind(self) -> str:
        """Which store it is: "sqlite"."""
        return "sqlite"

    @property
    def survives(self) -> Survival:
        """A killed process; a power cut where `synchronous`; not the loss of the machine."""
        return Survival(process_kill=True, power_loss=self._synchronous, failover=False)

    async def start(self) -> None:
        """Opens the file, makes what is missing, and checks that it can be written.

        Raises:
            StoreUnavailable: It cannot be opened or written, is damaged, is another program's or a
                newer release's; the message names the path and what to do.
        """
        await self._run(sqlite_tables.check_writable)

    async def close(self) -> None:
        """Closes the file after the pending calls."""
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown(wait=False)

    async def generation(self) -> str:
        """Stands for the file's contents: random, drawn when it was made.

        Raises:
            StoreUnavailable: The file cannot be read.
        """
        return await self._run(sqlite_tables.generation)

    async def claim(self, claims: Sequence[Claim]) -> list[Claimed]:
        """Decides every claim in one transaction, with those of other calls that wait; see `base.Store.claim`.

        Raises:
            StoreUnavailable: The file cannot be written; no claim was done.
            ValueError: A number or writer that no store could keep.
        """
        check_claims(claims)
        if not claims:
            return []
        call = self._claims.put(claims)
        try:
            return await self._run(self._claim, call)
        finally:
            self._claims.forget(call)

    def _claim(self, database: sqlite3.Connection, call: Call[Claim, Claimed]) -> list[Claimed]:
        def decide(claims: Sequence[Claim]) -> Sequence[Claimed]:
            with database:
                return sqlite_tables.claim(database, claims, self._clock)

        return [*self._claims.done(call, decide)]

    async def save(self, records: Sequence[Record]) -> list[bool]:
        """Writes the records that are not fenced in one transaction; see `base.Store.save`.

        Raises:
            StoreUnavailable: The file cannot be written; no record was, or all that are not fenced.
            ValueError: A number or writer that no store could keep.
        """
        if isinstance(records, Batch):
            check_batch(records)
            if sqlite_batches.is_usual(records):
                return await self._run(sqlite_batches.save, records, self._clock)
        check_records(records)
        return await self._run(sqlite_tables.save, list(records), self._clock) if records else []

    async def load(self, keys: Sequence[Key]) -> list[Record | None]:
        """Reads live records, blobs included.

        Raises:
            StoreUnavailable: The file cannot be read.
        """
        return await self._run(sqlite_tables.load, list(keys))

    async def heads(self, keys: Sequence[Key]) -> list[Record | None]:
        """Records without blobs, tombstones too; None where nothing is stored.

        Raises:
            StoreUnavailable: The file cannot be read.
        """
        return await self._run(sqlite_tables.heads, list(keys)) if keys else []

    async def touch(self, keys: Sequence[Key], epochs: Sequence[int]) -> None:
        """Takes live records for used now where their fence is not above the given epochs.

        Raises:
            StoreUnavailable: The file cannot be written; no record was.
        """
        if keys:
            await self._run(sqlite_tables.touch, list(keys), list(epochs), self._clock)

    async def delete(self, keys: Sequence[Key], epochs: Sequence[int], incarnations: Sequence[int]) -> list[bool]:
        """Replaces records by tombstones in one transaction; see `base.Store.delete`.

        Raises:
            StoreUnavailable: The file cannot be written; nothing was deleted.
            ValueError: There is not one epoch and one incarnation for each key, or one that no store could keep.
        """
        check_deletes(keys, epochs, incarnations)
        asked = list(zip(keys, epochs, incarnations, strict=True))
        return await self._run(sqlite_tables.delete, asked, self._clock) if asked else []

    async def list(self, tenant: str, model: str, after: tuple[str, str], limit: int) -> list[Record]:
        """Live records without blobs, by (model, id), by the index of the keys.

        Raises:
            StoreUnavailable: The file cannot be read.
        """
        return await self._run(sqlite_tables.select, tenant, model, after, limit)

    async def expire(
        self,
        before: float,
        *,
        ephemeral_before: float,
        tombs_before: float | None = None,
        by_model: Mapping[str, float] | None = None,
    ) -> int:
        """Deletes old records and tombstones; how many.

        Reads the whole file, in pieces of one transaction each, and rests in between: other calls get their turn, and
        a large file is no load that is felt.

        Raises:
            StoreUnavailable: The file cannot be written; what was deleted until then is.
        """
        count, last = 0, await self._run(sqlite_tables.last_row)
        tombs, took = tombs_time(before, ephemeral_before, tombs_before), 0.0
        for start in range(0, last, sqlite_tables.EXPIRE_ROWS):
            await asyncio.sleep(_RESTS * took)
            began = time.perf_counter()
            count += await self._run(sqlite_tables.expire, start, before, ephemeral_before, tombs, by_model or {})
            took = time.perf_counter() - began
        return count

    async def beat(self, owner: str, address: str, ttl: float, sessions: int = 0) -> None:
        """Notes that a server process lives; see `base.Store.beat`.

        Raises:
            StoreUnavailable: The file cannot be written.
        """
        await self._run(sqlite_servers.beat, owner, address, ttl, sessions, self._clock)

    async def leave(self, owner: str) -> None:
        """Notes that a server process is gone.

        Raises:
            StoreUnavailable: The file cannot be written.
        """
        await self._run(sqlite_servers.leave, owner)

    async def address_of(self, owner: str) -> str | None:
        """Where a server process is reached; None where it is gone.

        Raises:
            StoreUnavailable: The file cannot be read.
        """
        return await self._run(sqlite_servers.address_of, owner, self._clock)

    async def peers(self) -> Sequence[Peer]:
        """The living server processes; see `base.Store.peers`.

        Raises:
            StoreUnavailable: The file cannot be read.
        """
        return await self._run(sqlite_servers.peers, self._clock)

    def upkeep(self) -> SqliteUpkeep:
        """What is done to the file beside its servers; see `base.Upkeep`."""
        return SqliteUpkeep(self.path, self._run, self._unavailable)

    async def _run(self, task: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise StoreUnavailable(f"the sqlite store {self.path} is closed; open it again")

        def work() -> T:
            try:
                database = self._connect()
                with database:  # commits, or rolls back
                    return task(database, *args, **kwargs)
            except (sqlite3.Error, OSError) as error:
                raise self._unavailable(error) from error

        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _connect(self) -> sqlite3.Connection:
        if self._database is not None:
            # sqlite would go on writing into a file that was removed, and everything would be lost silently.
            if _inode(self.path) == self._inode:
                return self._database
            self._disconnect()
            raise StoreUnavailable(
                f"the sqlite store {self.path} was removed or replaced while in use; the next call opens what is there"
            )
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # sqlite gives its side files (-wal, -shm) the mode of this one.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._inode = _inode(self.path)
        database = sqlite3.connect(self.path, timeout=self._busy_timeout, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(database)
        except BaseException:
            database.close()
            raise
        self._database = database
        return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        # Before anything of it is changed, and in one transaction: another process may be making the tables just now.
        database.execute("BEGIN")
        with database:
            sqlite_tables.check(database, self.path)
        self._use_wal(database)
        database.execute(f"PRAGMA synchronous = {'FULL' if self._synchronous else 'NORMAL'}")
        database.execute("PRAGMA journal_size_limit = 67108864")
        # Ids are random to the index: where it outgrows sqlite's 2 MB, new ones would be read in from the file.
        database.execute("PRAGMA cache_size = -32768")
        database.execute("BEGIN IMMEDIATE")
        with database:
            sqlite_tables.create(database, self.path)

    def _use_wal(self, database: sqlite3.Connection) -> None:
        # Two processes that make the file at once can both ask for WAL; sqlite then answers one of them
        # "locked" without waiting.
        deadline = time.monotonic() + self._busy_timeout
        while True:
            try:
                database.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if not _name(error).startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _disconnect(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _unavailable(self, error: sqlite3.Error | OSError) -> StoreUnavailable:
        if isinstance(error, OSError):
            what, advice = error.strerror or str(error), _ADVICE["SQLITE_CANTOPEN"]
        else:
            name = _name(error)
            what = f"{error} ({name})" if name else str(error)
            advice = next((text for start, text in _ADVICE.items() if name.startswith(start)), "see sqlite.org/rescode")
        return StoreUnavailable(f"the sqlite store {self.path} cannot be used: {what}; {advice}")


def _name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", "")


def _inode(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (status.st_dev, status.st_ino)
