"""Aliases of versions: what their files say is taken while the server runs, and operators set one by a call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from statestream.contract import errors
from statestream.contract.aliases import MOST_ALIAS, is_alias
from statestream_server.models.files import aliases, repository
from statestream_server.registry import Registry
from statestream_server.selection import Selection

log = logging.getLogger(__name__)

_STILL: Final = 2.0
"""Seconds for which a file must have said the same before it is taken: who writes it slowly is waited for."""


class Aliasing:
    """What the aliases of every model name, kept as their files say."""

    def __init__(self, registry: Registry, selection: Selection, places: Sequence[Path]) -> None:
        """Versions that are named are loaded by `selection`; models lie at `places`."""
        self._registry = registry
        self._selection = selection
        self._places = places
        self._seen: dict[str, tuple[object, float]] = {}
        self._taken: dict[str, object] = {}
        self._taking: dict[str, asyncio.Task[None]] = {}
        self._setting = asyncio.Lock()

    async def look(self, now: float) -> None:
        """One look at the files; versions load beside it. `now` is seconds on a clock that nobody sets."""
        told = await asyncio.to_thread(self._told)
        for name in {*told.names, *told.wrong}:
            said = told.wrong.get(name) or told.names[name]
            if name not in self._seen or self._seen[name][0] != said:
                self._seen[name] = said, now
            if name in self._taking or self._taken.get(name) == said or now - self._seen[name][1] < _STILL:
                continue
            self._taken[name] = said
            if isinstance(said, str):
                log.error("%s; the aliases of %s stay as they are", said, name)
            elif said != self._registry.aliases(name):
                self._taking[name] = asyncio.create_task(self._take_aside(name, said), name="aliases")

    def close(self) -> None:
        """Waits for no load any more."""
        for task in self._taking.values():
            task.cancel()

    async def reread(self, name: str = "") -> None:
        """Takes what the file of a model says now, or of all; what is wrong with one is told in the log."""
        told = await asyncio.to_thread(self._told)
        for model, text in told.wrong.items():
            if name in ("", model):
                log.error("%s; the aliases of %s stay as they are", text, model)
        for model, names in told.names.items():
            if name in ("", model):
                await self.take(model, names)

    async def take(self, name: str, names: Mapping[str, int]) -> None:
        """Has aliases name versions, which are loaded first. One whose version does not load names what it did before.

        Sessions, and calls under way, stay with the version that they have.
        """
        known, taken = self._registry.aliases(name), dict[str, int]()
        for alias, number in names.items():
            try:
                if not self._registry.is_loaded(name, number):
                    await self._selection.load(name, number)
                taken[alias] = number
            except errors.StatestreamError as error:
                stays = f"goes on naming version {known[alias]}" if alias in known else "names none"
                log.error("%s of %s is to name version %d, and %s: %s", alias, name, number, stays, error.message)
                if alias in known:
                    taken[alias] = known[alias]
        for alias in sorted({*known, *taken}):
            old, new = known.get(alias), taken.get(alias)
            if old != new:
                log.info("%s of %s names %s%s", alias, name, _version(new), f", no more {_version(old)}" if old else "")
        self._registry.call(name, taken)

    async def set(self, name: str, alias: str, version: int) -> Mapping[str, int]:
        """Has an alias name a version, which is loaded first, or with 0 takes the alias away; the model's aliases then.

        It is written into the file beside the versions, whole or not at all; begun, that ends, whoever is cancelled.

        Raises:
            BadFrame: It is no alias.
            ModelNotFound: There is no such model, version or alias.
            Unsupported: The version does not load, or the file cannot be written.
        """
        if not is_alias(alias):
            raise errors.BadFrame(
                f"alias is {errors.quoted(alias)}; expected 1 to {MOST_ALIAS} letters, digits, '-', '_' and '.', the"
                " first a letter",
                metadata={"field": "alias"},
            )
        if version < 0:
            raise errors.BadFrame(
                f"version is {version}; expected 1 or more, or 0 for none", metadata={"field": "version"}
            )
        if version:
            await self._selection.load(name, version)
        elif alias not in self._registry.aliases(name):
            self._registry.number(name, 0, alias or "-")
            raise errors.ModelNotFound(f"model {name!r} has no alias {alias!r}", metadata={"field": "alias"})
        return await asyncio.shield(asyncio.create_task(self._set(name, alias, version), name="alias"))

    async def _set(self, name: str, alias: str, version: int) -> Mapping[str, int]:
        async with self._setting:
            try:
                await asyncio.to_thread(self._write, name, alias, version or None)
            except OSError as error:
                raise errors.Unsupported(
                    f"the aliases of {name!r} cannot be written: {error.filename or ''} {error.strerror or error};"
                    f" write {alias} = {version or '…'} into {repository.ALIASES} where the models folder may be"
                    " written, and servers that watch it follow"
                ) from error
            except aliases.AliasesError as error:
                raise errors.Unsupported(f"{error}; mend the file first") from error
            await self.reread(name)
        if self._selection.together is not None:
            await self._selection.together("aliases", name, 0)
        return self._registry.aliases(name)

    def _write(self, name: str, alias: str, version: int | None) -> None:
        """Edits the file that has the alias already, else the one beside the newest version."""
        folders = list[Path]()
        for found in repository.scan(self._places).found:
            if found.name == name and (folder := repository.folder_of(found.path)) not in folders:
                folders.append(folder)
        having = [folder for folder in folders if alias in aliases.read(folder / repository.ALIASES)]
        if not folders:
            raise errors.ModelNotFound(f"model {name!r} does not lie there any more; its aliases stay as they are")
        for folder in having or folders[-1:]:
            aliases.edit(folder, alias, version)

    def _told(self) -> aliases.Told:
        return aliases.told(repository.scan(self._places))

    async def _take_aside(self, name: str, names: Mapping[str, int]) -> None:
        try:
            await self.take(name, names)
        except Exception:
            log.exception("the aliases of %s could not be taken", name)
        finally:
            del self._taking[name]


def _version(number: int | None) -> str:
    return "no version" if number is None else f"version {number}"
