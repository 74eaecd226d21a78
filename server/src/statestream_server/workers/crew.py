"""The workers as one: the models that all of them serve, and how that changes: in all of them, or in none.

A change is asked for in steps. First every worker makes it ready, or says why it cannot; nobody who calls sees
anything of that. Then it is decided, here, and every worker carries it out. One that ends in between comes up again
with what was decided; one that cannot carry it out ends, and does the same. This process alone decides, and where it
ends all of them do, so nothing is left undecided.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from statestream.contract import errors
from statestream_server.channel import Gone

log = logging.getLogger(__name__)


class Member(Protocol):
    """A worker that runs."""

    index: int

    async def ask(self, what: str, **fields: Any) -> Any:
        """Asks it; raises `Gone` where it ended, and the StatestreamError that it answered with."""


class Crew:
    """Which models the workers serve.

    Attributes:
        models: Their names and versions; None until the first worker has loaded them.
        failures: Why other versions do not serve, by name and version.
    """

    def __init__(self, on_loaded: Callable[[], None]) -> None:
        """Nobody serves; `on_loaded` hears when the first worker has loaded its models."""
        self.models: set[tuple[str, int]] | None = None
        self.failures: dict[tuple[str, int], str] = {}
        self._on_loaded = on_loaded
        self._members = list[Member]()
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def joined(self) -> Sequence[Member]:
        """The workers that know what is served, and hear of changes."""
        return self._members

    def left(self, member: Member) -> None:
        """A worker ended."""
        if member in self._members:
            self._members.remove(member)

    async def answer(self, member: Member, what: str, fields: Mapping[str, Any]) -> object:
        """Does what a worker asks for."""
        if what == "join":
            # From here on it hears of every change behind this answer, in their order.
            if self.models is not None:
                self._members.append(member)
            failures = [[*key, text] for key, text in self.failures.items()]
            return {"models": None if self.models is None else sorted(self.models), "failures": failures}
        if what == "loaded":
            self.models = {(name, version) for name, version in fields["models"]}
            self.failures = {(name, version): text for name, version, text in fields["failures"]}
            self._members.append(member)
            self._on_loaded()
            return None
        if what == "load":
            return await asyncio.shield(asyncio.create_task(self.load(fields["name"], fields["version"])))
        if what == "unload":
            return await asyncio.shield(asyncio.create_task(self.unload(fields["name"], fields["version"])))
        if what == "aliases":
            return await asyncio.shield(asyncio.create_task(self.reread_aliases(fields["name"])))
        raise ValueError(f"nothing is called {what!r}")

    async def load(self, name: str, version: int) -> None:
        """Has every worker serve a version, or none.

        Raises:
            StatestreamError: A worker cannot load it; none serves it.
        """
        async with self._turns[name]:
            if self.models is None:
                raise errors.Unavailable("this server is starting", retry_after=1.0)
            if (name, version) not in self.models:
                asked = list(self._members)
                answers = await self._all(asked, "prepare", name, version)
                failed = [(one, answer) for one, answer in answers if isinstance(answer, errors.StatestreamError)]
                if failed or not answers:
                    await self._all([one for one, _ in answers], "give_up", name, version)
                    if not failed:
                        raise errors.Unavailable(
                            f"every worker ended while {name!r} {version} was loaded", retry_after=1.0
                        )
                    raise _told(failed, asked, "none serves it")
                self.models.add((name, version))
                self.failures.pop((name, version), None)
            await self._all(self._members, "serve", name, version)

    async def unload(self, name: str, version: int) -> None:
        """Has every worker unload a version, 0 for all that it has, or none.

        Raises:
            StatestreamError: It is in use in a worker, or in none; it stays in all.
        """
        async with self._turns[name]:
            asked = list(self._members)
            for step in ("idle", "withdraw"):
                answers = await self._all(asked, step, name, version)
                numbers = {number for _, answer in answers if isinstance(answer, list) for number in answer}
                failed = [(one, answer) for one, answer in answers if isinstance(answer, errors.StatestreamError)]
                used = [(one, answer) for one, answer in failed if not isinstance(answer, errors.ModelNotFound)]
                if used or not numbers:
                    if step == "withdraw":
                        for one, answer in answers:
                            for number in answer if isinstance(answer, list) else ():
                                await self._all([one], "restore", name, number)
                    if used or failed:
                        raise _told(used or failed, asked, "all go on serving it" if used else "")
                    raise errors.Unavailable("every worker ended meanwhile", retry_after=1.0)
            if self.models is not None:
                self.models -= {(name, number) for number in numbers}
            for number in sorted(numbers):
                await self._all(self._members, "forget", name, number)

    async def reload(self) -> None:
        """Has every worker serve the newest version of every model in the folder; what fails is told in the log."""
        for member in list(self._members):
            try:
                newest = await member.ask("newest")
                break
            except Gone:
                continue
        else:
            return
        for name, version in newest:
            try:
                await self.load(name, version)
            except errors.StatestreamError as error:
                log.error("%s", error.message)
        try:
            await self.reread_aliases()
        except errors.StatestreamError as error:
            log.error("%s", error.message)

    async def reread_aliases(self, name: str = "") -> list[dict[str, str]]:
        """Has every worker take what the file of a model's aliases says, or of all; what failed in each.

        Raises:
            StatestreamError: A worker did not.
        """
        answers = [answer for _, answer in await self._all(self._members, "aliases", name, 0)]
        for answer in answers:
            if isinstance(answer, errors.StatestreamError):
                raise answer
        return answers

    async def _all(self, members: Sequence[Member], what: str, name: str, version: int) -> list[tuple[Member, Any]]:
        """Asks workers at once; the answers, or errors, of those that did not end."""
        members = list(members)
        asks = [one.ask(what, name=name, version=version) for one in members]
        answers = await asyncio.gather(*asks, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, (Gone, errors.StatestreamError)):
                raise answer
        return [(one, answer) for one, answer in zip(members, answers, strict=True) if not isinstance(answer, Gone)]


def _told(
    failed: Sequence[tuple[Member, errors.StatestreamError]], asked: Sequence[Member], then: str
) -> errors.StatestreamError:
    """What the caller is told where workers failed."""
    failed = sorted(failed, key=lambda one: one[0].index)
    _, error = failed[0]
    which = ", ".join(str(one.index) for one, _ in failed)
    metadata = {**error.metadata, "workers": which}
    counts = [int(one.metadata["sessions"]) for _, one in failed if "sessions" in one.metadata]
    if counts:
        metadata["sessions"] = str(sum(counts))
    text = f" (in worker {which} of {len(asked)}; {then})" if then else ""
    return type(error)(f"{error.message}{text}", metadata=metadata, retry_after=error.retry_after)
