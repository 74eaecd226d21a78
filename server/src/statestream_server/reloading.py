"""Reloading: what appears, changes and goes where models lie while the server runs.

Files are looked at once a second, by their sizes and times, and nothing is read before they stood still: whoever copies
slowly is waited for. Of several processes each watches, and what one finds is loaded in all or in none.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from statestream.contract import errors
from statestream_server.loader import Look
from statestream_server.models.files import prints, repository
from statestream_server.models.files.repository import Found, Scan
from statestream_server.models.model import Model, ModelLoadError
from statestream_server.registry import Registry
from statestream_server.server import Server
from statestream_server.settings import Settings
from statestream_server.stores.base import TENANT

log = logging.getLogger(__name__)

_PAUSE: Final = 1.0
_STILL: Final = 2.0
"""Seconds for which a version must have looked the same before it is tried, or counts as gone."""
_ASK_SECONDS: Final = 30.0
"""Between two questions to the store whether anybody needs a version that is gone."""
_MOST_ASKED: Final = 10_000
"""Sessions of a model that are looked through for one of such a version; where there are more, it stays."""
_PAGE: Final = 1000
_REMOTE: Final = frozenset(
    "nfs nfs4 cifs smb3 smbfs 9p afs ceph lustre gpfs beegfs glusterfs ocfs2 gfs2 virtiofs vboxsf davfs".split()
)

Key = tuple[str, int]


def is_wanted(settings: Settings) -> bool:
    """Whether models are watched: where that is said, or where all of them lie on this machine and nothing is said."""
    if settings.watch is not None:
        return settings.watch
    for place in settings.models:
        kind = _file_system(place)
        if kind in _REMOTE or kind.startswith("fuse."):
            log.info("%s is on another machine (%s): it is not watched, unless --watch says so", place, kind)
            return False
    return True


def _file_system(place: Path) -> str:
    """The kind of file system that a path is on, as Linux calls it; "" where it does not say."""
    real, best, kind = os.path.realpath(place), "", ""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        fields = line.split()
        point = fields[4].encode().decode("unicode_escape")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best) and "-" in fields[6:]:
            best, kind = point, fields[fields.index("-", 6) + 1]
    return kind


async def watch(server: Server) -> None:
    """Loads what appears and lets go of what nobody needs any more, until it is cancelled."""
    reloader = Reloader(server.registry, server.settings.models, server.selection.load_found)
    asked = time.monotonic()
    try:
        while True:
            await asyncio.sleep(_PAUSE)
            try:
                now = time.monotonic()
                await reloader.look(now)
                await server.aliasing.look(now)
                if now - asked > _ASK_SECONDS:
                    asked = now
                    await _let_go(server)
            except errors.StoreUnavailable as error:
                log.debug("versions that are gone stay for now: %s", error.message)
            except Exception:
                log.exception("a look at the models failed; the next one comes")
    finally:
        reloader.close()
        server.aliasing.close()


@dataclass(slots=True)
class _Seen:
    """A version as it lies there, and since when it looks so."""

    look: Look | None
    since: float


@dataclass(slots=True)
class _Looks:
    """What one look showed."""

    told: Scan
    found: dict[Key, tuple[Found, Look]] = field(default_factory=dict)
    changed: set[Key] = field(default_factory=set)


class Reloader:
    """What was seen of the places so far, and what is loading because of it."""

    def __init__(self, registry: Registry, places: Sequence[Path], load: Callable[[Found], Awaitable[object]]) -> None:
        """Nothing is seen yet; `load` has a version served."""
        self._load_found = load
        self._registry = registry
        self._places = places
        self._seen: dict[Key, _Seen] = {}
        self._loading: dict[Key, asyncio.Task[None]] = {}
        self._blind = False
        self._clashing: dict[Key, str] = {}
        self._replacing: dict[Key, Look | None] = {}

    def close(self) -> None:
        """Waits for no load any more."""
        for task in self._loading.values():
            task.cancel()

    async def look(self, now: float) -> None:
        """One look; loads go on beside it.

        Args:
            now: Seconds on a clock that nobody sets.
        """
        loaded = [served.model for served in self._registry]
        looks = await asyncio.to_thread(self._look, loaded)
        told = looks.told
        for key in [*self._seen, *looks.found]:
            look = looks.found[key][1] if key in looks.found else None
            if key not in self._seen or self._seen[key].look != look:
                self._seen[key] = _Seen(look, now)
        self._clashes(told)
        blind = bool(told.missing) or not (told.found or told.clashes)
        if blind and loaded and not self._blind:
            why = "; ".join(told.missing) or f"nothing lies in {' and '.join(map(str, self._places))} any more"
            log.warning("%s: what is loaded goes on serving", why)
        self._blind = blind
        if not blind:
            self._forget(looks)
            for model in loaded:
                self._present(model, looks, now)
        for model in loaded:
            if (model.name, model.version) in looks.changed:
                await self._replaced(model, now)
        self._load_new(looks, now)

    def _look(self, loaded: Iterable[Model]) -> _Looks:
        """Everything that is asked of the file system, in a thread: it may be slow."""
        looks = _Looks(repository.scan(self._places))
        for found in looks.told.found:
            try:
                looks.found[found.name, found.version] = found, self._registry.loader.look(found)
            except OSError:
                continue  # It went meanwhile.
        for model in loaded:
            key = model.name, model.version
            if key in looks.found and (any(one.changed() for one in model.prints) or _unread(model)):
                looks.changed.add(key)
        return looks

    def _still(self, key: Key, now: float) -> bool:
        return key in self._seen and now - self._seen[key].since >= _STILL

    def _clashes(self, told: Scan) -> None:
        failures = self._registry.failures
        for key, text in self._clashing.items():
            if key not in told.clashes and failures.get(key) == text:
                del failures[key]
        for key, text in told.clashes.items():
            if self._clashing.get(key) != text and failures.get(key) != text:
                log.error("%s", text)
            if not self._registry.is_loaded(*key):
                failures[key] = text
        self._clashing = dict(told.clashes)

    def _forget(self, looks: _Looks) -> None:
        """What failed and does not lie there any more is no failure."""
        for key in [*self._registry.failures]:
            if key not in looks.found and key not in looks.told.clashes and not self._registry.is_loading(*key):
                del self._registry.failures[key]
        for key in [key for key, seen in self._seen.items() if seen.look is None]:
            if not self._registry.is_loaded(*key):
                del self._seen[key]

    def _present(self, model: Model, looks: _Looks, now: float) -> None:
        """Notes where a loaded version went, or came back to."""
        key = model.name, model.version
        there, gone = key in looks.found or key in looks.told.clashes, self._registry.is_gone(*key)
        if key not in self._seen:
            self._seen[key] = _Seen(None, now)  # It went before the first look.
        if there == gone and (there or self._still(key, now)):
            self._registry.lies(*key, there=there)
            if gone:
                return
            log.info(
                "%s version %d does not lie there any more: it stays loaded while sessions need it, and is no default",
                *key,
            )

    async def _replaced(self, model: Model, now: float) -> None:
        """What is served stays what was loaded: its sessions and records go by it. Whoever replaced it is told."""
        key = model.name, model.version
        look = self._seen[key].look
        if not self._still(key, now) or (key in self._replacing and self._replacing[key] == look):
            return
        try:
            fresh = await asyncio.to_thread(_taken, model)
        except (ModelLoadError, OSError):
            return
        self._replacing[key] = look
        others = [new.path for new, old in zip(fresh, model.prints, strict=True) if new.sha256 != old.sha256]
        happened = "was replaced"
        if not others:
            others, happened = _unread(model), "came"
        if not others:
            model.prints = fresh  # Touched, or copied anew.
            return
        chain = model.prints[0].path.name == repository.CHAIN
        log.error(
            "%s: %s while version %d of %s serves, which goes on as it was loaded, because sessions go by it."
            " Put the new one beside it as another version (%s), or start the server anew",
            others[0],
            happened,
            model.version,
            model.name,
            f"{model.name}/{model.version + 1}/{repository.CHAIN if chain else repository.SINGLE}",
        )

    def _load_new(self, looks: _Looks, now: float) -> None:
        """Begins to load the highest version of each model, above what serves, that was not tried as it lies there.

        One that was loaded and is not any more was unloaded on purpose, and so are those below it left alone.
        """
        versions = dict[str, list[tuple[Found, Look]]]()
        for found, look in looks.found.values():
            versions.setdefault(found.name, []).append((found, look))
        for some in versions.values():
            for found, look in reversed(some):
                key = found.name, found.version
                if key in self._loading or self._registry.is_loading(*key) or self._registry.is_loaded(*key):
                    break
                if self._registry.loader.tried(*key) == look:
                    if key not in self._registry.failures:
                        break
                elif self._still(key, now):
                    self._loading[key] = asyncio.create_task(self._load(found), name="reload")
                    break

    async def _load(self, found: Found) -> None:
        key = found.name, found.version
        try:
            await self._load_found(found)
        except errors.StatestreamError as error:
            tried = self._registry.loader.tried(*key)
            try:
                now = await asyncio.to_thread(self._registry.loader.look, found)
            except OSError:
                now = None
            if now != tried:
                self._registry.failures.pop(key, None)  # It is being written still, and tried when it stands still.
                return
            log.error("%s", error.message)
        except Exception:
            log.exception("%s version %d could not be loaded", *key)
        finally:
            del self._loading[key]


def _taken(model: Model) -> tuple[prints.Print, ...]:
    return tuple(prints.take(one.path) for one in model.prints)


def _unread(model: Model) -> list[Path]:
    """What would settle a model that was loaded without, as it came later."""
    if not model.form:
        return []  # It has a signature of its own.
    known = {one.path for one in model.prints}
    return [path for path in prints.named(model.prints[0].path) if path not in known]


async def _let_go(server: Server) -> None:
    """Unloads versions that do not lie there any more and that no session needs, in memory or in the store."""
    for served in [*server.registry]:
        name, version = served.model.name, served.model.version
        if not server.registry.is_gone(name, version) or await _needed(server, name, version):
            continue
        try:
            await server.selection.unload(name, version)
            log.info(
                "%s version %d is unloaded: it does not lie there any more, and no session needs it", name, version
            )
        except (errors.ModelInUse, errors.ModelNotFound):
            continue


async def _needed(server: Server, name: str, version: int) -> bool:
    table = server.registry.table(name, version)
    if table is None:
        return False
    if table.sessions or table.promised or table.lane.queued:
        return True
    if server.access is not None:
        return True  # Sessions of a tenant who is away are not in the list.
    after, seen = ("", ""), 0
    while seen < _MOST_ASKED:
        records = await server.store.list(TENANT, name, after, _PAGE)
        if any(record.version == version for record in records):
            return True
        if len(records) < _PAGE:
            return False
        after, seen = (records[-1].key.model, records[-1].key.id), seen + len(records)
    return True
