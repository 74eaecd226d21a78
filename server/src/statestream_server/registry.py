"""Versions come into service and leave it: what lies there, what loads, what failed. How one is read is loader.py's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from statestream.contract import errors
from statestream_server.catalog import Catalog, Served
from statestream_server.engine.engine import Engine
from statestream_server.engine.table import Table
from statestream_server.loader import Loader
from statestream_server.models.files import aliases, modelfile, repository
from statestream_server.models.graphs import runtime
from statestream_server.models.model import Model, ModelLoadError
from statestream_server.models.rows import Column

log = logging.getLogger(__name__)


class TableSaver(Protocol):
    """What saves the sessions of tables."""

    def add(self, table: Table, fingerprint: str) -> None:
        """Saves a table's from now on; `fingerprint` says what its model runs on."""

    def remove(self, table: Table) -> None:
        """Saves them no longer."""


class Registry(Catalog):
    """The catalog whose versions come from files: loads them, and takes them out of service."""

    def __init__(
        self,
        places: Sequence[Path],
        engine: Engine,
        checkpointer: TableSaver,
        loader: Loader,
        *,
        max_sessions: int,
    ) -> None:
        """An empty registry over the places where models lie.

        Args:
            places: Files, and folders of them.
            engine: Runs the tables.
            checkpointer: Saves them.
            loader: Makes models of files.
            max_sessions: The most sessions of one version.
        """
        super().__init__()
        self._places = places
        self._engine = engine
        self._checkpointer = checkpointer
        self.loader = loader
        """What reads the versions."""
        self._max_sessions = max_sessions
        self._loads: dict[tuple[str, int], asyncio.Task[Served]] = {}
        self._prepared: dict[tuple[str, int], Model] = {}
        self._withdrawn: dict[tuple[str, int], Served] = {}

    def newest(self) -> list[tuple[str, int]]:
        """The highest version of every model that lies there."""
        return sorted({found.name: found.version for found in repository.scan(self._places).found}.items())

    def find(self, name: str, version: int = 0) -> int:
        """The version that `load` would load.

        Raises:
            ModelNotFound: There is no such file.
            Unsupported: Two files claim to be it.
        """
        found = self._find(name, version)
        return found.model.version if isinstance(found, Served) else found.version

    async def prepare(self, name: str, version: int) -> None:
        """Makes a version ready to serve, which it does from the next `load` on, or gives it up with `give_up`.

        Raises:
            ModelNotFound, Unsupported: It cannot be loaded.
        """
        found = self._find(name, version)
        key = name, version
        if isinstance(found, Served) or key in self._prepared or key in self._withdrawn or key in self._loads:
            await self.load(name, version)
            return
        model = await self.loader.read(found)
        if isinstance(model, ModelLoadError):
            self.failures[key] = str(model)
            raise errors.Unsupported(str(model)) from model
        self._prepared[key] = model

    def give_up(self, name: str, version: int) -> None:
        """Forgets what was prepared."""
        self._prepared.pop((name, version), None)

    async def load_all(self) -> None:
        """Loads the highest version of every model that loads; what fails is kept in `failures`.

        Older versions load when a session that is pinned to one, or a caller, asks for them.
        """
        told = repository.scan(self._places)
        for text in repository.shown(told):
            log.warning("%s", text)
        for key, text in told.clashes.items():
            log.error("%s", text)
            self.failures[key] = text
        versions = dict[str, list[repository.Found]]()
        for found in told.found:  # In ascending order.
            versions.setdefault(found.name, []).append(found)
        await asyncio.gather(*(self._load_newest(found) for found in versions.values()))
        await self.load_aliases(told)

    async def load_aliases(self, told: repository.Scan | None = None) -> None:
        """Loads the versions that aliases name, and has these name them; what is wrong with one is told in the log."""
        told = told if told is not None else repository.scan(self._places)
        said = await asyncio.to_thread(aliases.told, told)
        for name, text in said.wrong.items():
            self.misread[name] = text
            log.error("%s", text)
        for name, names in said.names.items():
            for number in sorted(set(names.values())):
                try:
                    await self.load(name, number)
                    self.choose(name, number)
                except errors.StatestreamError as error:
                    called = " and ".join(alias for alias, version in names.items() if version == number)
                    log.error("%s of %s names version %d, and so no version: %s", called, name, number, error.message)
                    self.misread[name] = f"{called} = {number}: {error.message}"
            self.call(name, {alias: number for alias, number in names.items() if self.is_loaded(name, number)})

    async def _load_newest(self, versions: Sequence[repository.Found]) -> None:
        """Loads the highest version that loads: a broken new one keeps no older one from serving."""
        for found in reversed(versions):
            try:
                await self.load_found(found)
                self.choose(found.name, found.version)
                return
            except errors.StatestreamError as error:
                log.error("%s", error.message)

    async def load(self, name: str, version: int = 0) -> Served:
        """Loads a version, 0 for the highest that lies there; loading a loaded one reads nothing anew.

        Versions load beside each other, each once however many ask for it, while the loop runs on. A load that has
        begun ends, whoever is cancelled: another caller may wait for it.

        Raises:
            ModelNotFound: There is no such file.
            Unsupported: The file cannot be served; the message says why.
        """
        # Every claim of a session asks for its version: only an unknown one is worth a task and a look at the folder.
        loaded = self._served.get(name, {}).get(version)
        if loaded is not None:
            return loaded
        found = self._find(name, version)
        return found if isinstance(found, Served) else await self.load_found(found)

    async def load_found(self, found: repository.Found) -> Served:
        """Loads a version that is not loaded; see `load`.

        Raises:
            Unsupported: The file cannot be served; the message says why.
        """
        return await asyncio.shield(self._begin(found))

    def is_loading(self, name: str, version: int) -> bool:
        """Whether a version is being loaded."""
        return (name, version) in self._loads

    async def settled(self, name: str) -> None:
        """Waits until the loads of a model that were asked for so far have ended."""
        if tasks := [task for (model, _), task in self._loads.items() if model == name]:
            await asyncio.wait(tasks)

    def _begin(self, found: repository.Found) -> asyncio.Task[Served]:
        """The task that loads a version, one for all who ask."""
        key = found.name, found.version
        task = self._loads.get(key)
        if task is None:
            task = self._loads[key] = asyncio.create_task(self._load_aside(found), name="load")
            task.add_done_callback(lambda task: self._ended(key, task))
        return task

    async def _load_aside(self, found: repository.Found) -> Served:
        key = found.name, found.version
        if key in self._withdrawn:
            return self.restore(*key)
        if (prepared := self._prepared.pop(key, None)) is not None:
            return self._serve(found, prepared)
        loaded = await self.loader.read(found)
        return self._serve(found, loaded)

    def _ended(self, key: tuple[str, int], task: asyncio.Task[Served]) -> None:
        del self._loads[key]
        if not task.cancelled():
            task.exception()  # Its callers have heard; without any left, nobody needs to.

    def _find(self, name: str, version: int) -> Served | repository.Found:
        """A loaded version, or where it lies."""
        told = repository.scan(self._places)
        found = {one.version: one for one in told.found if one.name == name}
        clashes = {number: text for (model, number), text in told.clashes.items() if model == name}
        wanted = version or max([*found, *clashes], default=0)
        loaded = self._served.get(name, {}).get(wanted)
        if loaded is not None:
            return loaded
        if wanted in clashes:
            self.failures[name, wanted] = clashes[wanted]
            raise errors.Unsupported(clashes[wanted])
        if wanted not in found:
            error = self._unknown(name, version)
            if not told.missing:
                raise error
            raise errors.ModelNotFound(f"{error.message}; models cannot be looked for: {'; '.join(told.missing)}")
        return found[wanted]

    def _serve(self, found: repository.Found, model: Model | ModelLoadError) -> Served:
        name, version = found.name, found.version
        if isinstance(model, ModelLoadError):
            self.failures[name, version] = str(model)
            raise errors.Unsupported(str(model)) from model
        self.failures.pop((name, version), None)
        served = Served(model, self._table(model))
        self._served.setdefault(name, {})[version] = served
        self._gone.discard((name, version))
        self._choose(name)
        log.info("serving %s version %d (%s), digest %s", name, version, model.kind, model.digest[:12])
        return served

    def idle(self, name: str, version: int = 0) -> list[int]:
        """A version, 0 for every one, of which no session is in memory.

        Raises:
            ModelNotFound: It is not loaded.
            ModelInUse: It has sessions in memory, or an alias of its own.
        """
        if version and (aliases := self.aliases_of(name, version)):
            raise errors.ModelInUse(
                f"{name!r} version {version} is what {' and '.join(aliases)} names; have it name another version first,"
                " or take it away (statestream alias)",
                metadata={"aliases": ",".join(aliases)},
            )
        versions = [self.get(name, version).model.version] if version else list(self._versions(name))
        for number in versions:
            table = self._served[name][number].table
            if table is not None and (table.sessions or table.promised or table.lane.queued):
                count = table.sessions + table.promised
                raise errors.ModelInUse(
                    f"{name!r} version {number} has {count} sessions in memory; close them first",
                    metadata={"sessions": str(count)},
                )
        return versions

    def withdraw(self, name: str, version: int = 0) -> list[int]:
        """Takes a version, 0 for every one, out of service; which these are. They stay in memory.

        `restore` and `load` put them back, at once; `forget` ends them.

        Raises:
            ModelNotFound: It is not loaded.
            ModelInUse: It has sessions in memory.
        """
        versions = self.idle(name, version)
        for number in versions:
            self._withdrawn[name, number] = self._served[name].pop(number)
        if not self._served[name]:
            del self._served[name]
        self._choose(name)
        return versions

    def restore(self, name: str, version: int) -> Served:
        """Puts a version that was withdrawn back into service."""
        served = self._served.setdefault(name, {})
        if (name, version) in self._withdrawn:
            served[version] = self._withdrawn.pop((name, version))
        self._choose(name)
        return served[version]

    def forget(self, name: str, version: int) -> Table | None:
        """Ends a version that was withdrawn, and is not in service again; its table, which is gone."""
        self._chosen.discard((name, version))
        self._choose(name)
        served = self._withdrawn.pop((name, version), None)
        if served is None:
            return None
        self._gone.discard((name, version))
        for graph in (served.model.graph, served.model.encoder):
            if graph is not None:
                self._engine.forget(graph, name, version)
        if served.table is not None:
            self._engine.remove(served.table)
            self._checkpointer.remove(served.table)
        return served.table

    def columns(self, name: str, version: int) -> Sequence[Column] | None:
        """The columns of a version's rows, as its file says where it is not loaded; None where it does not say."""
        served = self._served.get(name, {}).get(version)
        if served is not None:
            return served.model.rows.columns if served.model.rows is not None else None
        found = repository.scan(self._places).found
        path = next((one.path for one in found if (one.name, one.version) == (name, version)), None)
        return modelfile.columns(path) if path is not None else None

    def lies(self, name: str, version: int, *, there: bool) -> None:
        """Notes whether a loaded version still lies where it was; one that does not serves nobody who names none.

        It stays loaded for those who have it, or name it. Where none lies there any more, the highest serves.
        """
        change = self._gone.discard if there else self._gone.add
        change((name, version))
        if not there:
            self.loader.gone(name, version)
        self._choose(name)

    def _table(self, model: Model) -> Table | None:
        if model.rows is None:
            return None
        table = Table(model, model.rows, max_rows=self._max_sessions)
        self._engine.add(table)
        self._checkpointer.add(table, runtime.fingerprint(self.loader.device))
        return table
