"""Aliases of versions: what their files say is taken while the server runs, and operators set one by a call."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from statestream.contract import errors
from statestream.contract.aliases import MOST_ALIAS, is_alias
from statestream_server.models.files import aliases, repository
from statestream_server.registry import Registry
from statestream_server.selection import Selection

log = logging.getLogger(__name__)

_STILL: Final = 2.0
"""Seconds for which a file must have said the same before it is taken: who writes it slowly is waited for."""

_Lying: TypeAlias = Mapping[str, set[int]]
"""By model name the versions that lie there."""


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
        self._turns = defaultdict[str, asyncio.Lock](asyncio.Lock)
        """By model name: what a file says is read and taken in one turn, so none takes what another saw before."""

    async def look(self, now: float) -> None:
        """One look at the files; versions load beside it. `now` is seconds on a clock that nobody sets."""
        told, lying = await asyncio.to_thread(self._looked)
        for name in {*told.names, *told.wrong}:
            wrong = told.wrong.get(name)
            said = wrong or (told.names[name], self._wanting(name, told.names[name], lying))
            if name not in self._seen or self._seen[name][0] != said:
                self._seen[name] = said, now
            if name in self._taking or self._taken.get(name) == said or now - self._seen[name][1] < _STILL:
                continue
            self._taken[name] = said
            self._misread(name, told)
            if wrong:
                log.error("%s; the aliases of %s stay as they are", wrong, name)
            elif (names := told.names[name]) != self._registry.aliases(name):
                self._taking[name] = asyncio.create_task(self._take_aside(name, names), name="aliases")

    def close(self) -> None:
        """Waits for no load any more."""
        for task in self._taking.values():
            task.cancel()

    async def reread(self, name: str = "") -> Mapping[str, str]:
        """Takes what the file of a model says now, or of all; what is wrong with one is told in the log.

        Why aliases of the model do not name what the file said, by alias; by "" where it cannot be taken.
        """
        told, failures = await asyncio.to_thread(self._told), dict[str, str]()
        for model in sorted({*told.names, *told.wrong}):
            if name in ("", model):
                failures = await self._take_now(model)
        return failures if name else {}

    async def _take_now(self, name: str, expected: Mapping[str, int] | None = None) -> dict[str, str]:
        """Takes what the file of a model says in this turn, where that was expected; what failed, as `reread`."""
        async with self._turns[name]:
            told = await asyncio.to_thread(self._told)
            self._misread(name, told)
            if name in told.wrong:
                log.error("%s; the aliases of %s stay as they are", told.wrong[name], name)
                return {"": told.wrong[name]}
            if name in told.names and expected in (None, told.names[name]):
                return await self.take(name, told.names[name])
            return {}

    def _misread(self, name: str, told: aliases.Told) -> None:
        """Has callers who name what a model is not called hear why, where that is its file's fault."""
        if name in told.wrong:
            self._registry.misread[name] = told.wrong[name]
        else:
            self._registry.misread.pop(name, None)

    def _wanting(self, name: str, names: Mapping[str, int], lying: _Lying) -> frozenset[object]:
        """Of the versions that aliases are to name, and do not, those that came since: they are tried anew."""
        have = self._registry.aliases(name)
        wanted = {number for alias, number in names.items() if have.get(alias) != number}
        return frozenset(
            (number, self._registry.is_loaded(name, number)) for number in wanted & lying.get(name, set[int]())
        )

    async def take(self, name: str, names: Mapping[str, int]) -> dict[str, str]:
        """Has aliases name versions, which are loaded first. One whose version does not load names what it did before.

        Why they do not load, by alias. Sessions, and calls under way, stay with the version that they have.
        """
        failures = dict[int, errors.StatestreamError]()
        while missing := [
            number
            for number in sorted(set(names.values()))
            if number not in failures and not self._registry.is_loaded(name, number)
        ]:  # One may be unloaded while another loads.
            try:
                await self._selection.load(name, missing[0])
            except errors.StatestreamError as error:
                failures[missing[0]] = error
        known, taken = self._registry.aliases(name), dict[str, int]()
        for alias, number in names.items():
            failure = failures.get(number)
            if failure is None:
                taken[alias] = number
            else:
                stays = f"goes on naming version {known[alias]}" if alias in known else "names none"
                log.error("%s of %s is to name version %d, and %s: %s", alias, name, number, stays, failure.message)
                self._registry.misread[name] = f"{alias} = {number}: {failure.message}"
                if alias in known:
                    taken[alias] = known[alias]
        for alias in sorted({*known, *taken}):
            old, new = known.get(alias), taken.get(alias)
            if old != new:
                log.info("%s of %s names %s%s", alias, name, _version(new), f", no more {_version(old)}" if old else "")
        self._registry.call(name, taken)
        return {alias: failures[number].message for alias, number in names.items() if number in failures}

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
                where = f"{error.filename}: " if error.filename else ""
                raise errors.Unsupported(
                    f"the aliases of {name!r} cannot be written: {where}{error.strerror or error};"
                    f" write {alias} = {version or '…'} into {repository.ALIASES} where the models folder may be"
                    " written, and servers that watch it follow"
                ) from error
            except aliases.AliasesError as error:
                raise errors.Unsupported(f"{error}; mend the file first") from error
            failures = [await self.reread(name)]
        if self._selection.together is not None:
            failures += await self._selection.together("aliases", name, 0)
        for why in filter(None, (one.get(alias, one.get("")) for one in failures)):
            raise errors.Unsupported(
                f"{alias} of {name!r} stands in the file, and names what it did before: {why}; mend that"
            )
        return self._registry.aliases(name)

    def _write(self, name: str, alias: str, version: int | None) -> None:
        """Edits the files that have the alias already, all or none, else the one beside the newest version."""
        folders = list[Path]()
        for found in repository.scan(self._places).found:
            if found.name == name and (folder := repository.folder_of(found.path)) not in folders:
                folders.append(folder)
        aliases.finish(folders)
        having = [folder for folder in folders if alias in aliases.read(folder / repository.ALIASES)]
        if not folders:
            raise errors.ModelNotFound(f"model {name!r} does not lie there any more; its aliases stay as they are")
        aliases.edit(having or folders[-1:], alias, version)

    def _told(self) -> aliases.Told:
        return self._looked()[0]

    def _looked(self) -> tuple[aliases.Told, _Lying]:
        """What the files say, and which versions of each model lie there."""
        scan, lying = repository.scan(self._places), dict[str, set[int]]()
        for found in scan.found:
            lying.setdefault(found.name, set()).add(found.version)
        return aliases.told(scan), lying

    async def _take_aside(self, name: str, names: Mapping[str, int]) -> None:
        try:
            await self._take_now(name, names)
        except Exception:
            log.exception("the aliases of %s could not be taken", name)
        finally:
            del self._taking[name]


def _version(number: int | None) -> str:
    return "no version" if number is None else f"version {number}"
