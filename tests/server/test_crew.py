"""A change of the models in all workers: whoever ends between any two steps, all or none of those left have it."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable
from typing import Any

import pytest

from statestream.contract import errors
from statestream_server.channel import Channel, Gone
from statestream_server.workers.crew import Crew, Member

M = "m"


class Fake:
    """A worker without a process: what it serves and what it has ready, and after how many questions it ends."""

    def __init__(self, index: int, crew: Crew, ends: float = float("inf")) -> None:
        self.index, self._crew, self._ends = index, crew, ends
        self.serves = set[int]()
        self.ready = set[int]()
        self.out = set[int]()
        self.broken: set[int] = set()
        self.used: set[int] = set()
        self.asked = list[str]()

    async def join(self) -> Fake:
        """Comes up with what the others serve."""
        found: Any = await self._crew.answer(self, "join", {})
        self.serves = {version for _, version in found["models"]}
        return self

    async def ask(self, what: str, **fields: Any) -> Any:
        """See `Member`. It may end before it does anything, or before its answer leaves."""
        await asyncio.sleep(0)
        self._ends -= 1
        if self._ends < 0:
            self._crew.left(self)
            raise Gone
        self.asked.append(what)
        answer = getattr(self, f"_{what}")(fields["version"])
        self._ends -= 1
        if self._ends < 0:
            self._crew.left(self)
            raise Gone
        return answer

    def _prepare(self, version: int) -> None:
        if version in self.broken:
            raise errors.Unsupported("it is broken")
        self.ready.add(version)

    def _give_up(self, version: int) -> None:
        self.ready.discard(version)

    def _serve(self, version: int) -> None:
        self.serves.add(version)
        self.ready.discard(version)

    def _idle(self, version: int) -> list[int]:
        if version and version not in self.serves:
            raise errors.ModelNotFound("no such version")
        if self.used & ({version} if version else self.serves):
            raise errors.ModelInUse("it is in use", metadata={"sessions": "3"})
        return sorted({version} if version else self.serves)

    def _withdraw(self, version: int) -> list[int]:
        found = self._idle(version)
        self.serves -= {*found}
        self.out |= {*found}
        return found

    def _restore(self, version: int) -> None:
        self.out.discard(version)
        self.serves.add(version)

    def _forget(self, version: int) -> None:
        self.out.discard(version)
        self.serves.discard(version)


async def crew_of(*ends: float, models: tuple[int, ...] = (1,)) -> tuple[Crew, list[Fake]]:
    crew = Crew(lambda: None)
    crew.models = {(M, version) for version in models}
    return crew, [await Fake(index, crew, end).join() for index, end in enumerate(ends)]


def same(crew: Crew) -> set[int]:
    """What all that are left serve, which is the same, with nothing half done."""
    left = [one for one in crew.joined if isinstance(one, Fake)]
    assert all((one.serves, one.ready, one.out) == (left[0].serves, set(), set()) for one in left)
    decided = {version for _, version in crew.models or ()}
    assert all(one.serves == decided for one in left)
    return decided


@pytest.mark.parametrize(("one", "other"), [*itertools.product(range(5), range(5))])
async def test_a_load_is_in_all_that_are_left_or_in_none(one: int, other: int) -> None:
    """Workers end before or after they did what they were asked, in each step; one stays."""
    crew, _ = await crew_of(one, other, float("inf"))
    await crew.load(M, 2)
    assert same(crew) == {1, 2}
    late = await Fake(7, crew).join()
    assert late.serves == {1, 2}


@pytest.mark.parametrize("ends", range(5))
async def test_a_load_that_fails_is_given_up_by_all(ends: int) -> None:
    crew, (_, other, broken) = await crew_of(ends, float("inf"), float("inf"))
    broken.broken.add(2)
    with pytest.raises(errors.Unsupported, match=r"it is broken \(in worker 2 of 3; none serves it\)"):
        await crew.load(M, 2)
    assert same(crew) == {1}
    assert other.asked == ["prepare", "give_up"]


async def test_a_load_that_ends_every_worker_is_not_decided() -> None:
    crew, _ = await crew_of(0, 1)
    with pytest.raises(errors.Unavailable):
        await crew.load(M, 2)
    assert same(crew) == {1}


@pytest.mark.parametrize(("one", "other"), [*itertools.product(range(7), range(7))])
async def test_an_unload_is_in_all_that_are_left_or_in_none(one: int, other: int) -> None:
    crew, _ = await crew_of(one, other, float("inf"), models=(1, 2))
    await crew.unload(M, 1)
    assert same(crew) == {2}


@pytest.mark.parametrize("ends", range(7))
async def test_what_comes_into_use_between_the_steps_is_restored_everywhere(ends: int) -> None:
    crew, (_, other, used) = await crew_of(ends, float("inf"), float("inf"), models=(1, 2))
    idle = used._idle

    def once(version: int) -> list[int]:
        used._idle = idle  # type: ignore[method-assign]
        found = idle(version)
        used.used.add(1)
        return found

    used._idle = once  # type: ignore[method-assign]
    with pytest.raises(errors.ModelInUse) as refused:
        await crew.unload(M, 1)
    assert refused.value.metadata == {"sessions": "3", "workers": "2"}
    assert same(crew) == {1, 2}
    assert other.asked == ["idle", "withdraw", "restore"]


async def test_who_joins_between_the_steps_hears_of_the_decision() -> None:
    """It came up with what was served before."""
    crew, (first,) = await crew_of(float("inf"))
    late = Fake(1, crew)
    prepare: Callable[[int], None] = first._prepare

    def joining(version: int) -> None:
        prepare(version)
        late.serves = {1}
        crew._members.append(late)

    first._prepare = joining  # type: ignore[method-assign]
    await crew.load(M, 2)
    assert late.asked == ["serve"]
    assert same(crew) == {1, 2}


async def test_changes_of_one_model_come_one_after_the_other() -> None:
    crew, members = await crew_of(float("inf"), float("inf"))
    await asyncio.gather(crew.load(M, 2), crew.unload(M, 1), crew.load(M, 3), crew.load(M, 2))
    assert same(crew) == {2, 3}
    assert members[0].asked[:2] == ["prepare", "serve"]


def test_a_fake_is_a_member() -> None:
    member: Member = Fake(0, Crew(lambda: None))
    assert member.index == 0


async def test_a_channel_carries_answers_and_errors_and_ends() -> None:
    """Both ways at once; who waits when the other end goes hears that it is gone."""
    ours, theirs = socket.socketpair()
    hold = asyncio.Event()

    async def answer(what: str, fields: Any) -> object:
        if what == "error":
            raise errors.ModelInUse("in use", metadata={"sessions": "3"})
        if what == "hold":
            await hold.wait()
        return {"what": what, **fields}

    one, other = Channel(answer), Channel(answer)
    running = [asyncio.create_task(one.run(ours)), asyncio.create_task(other.run(theirs))]
    assert [*await asyncio.gather(one.ask("a", x=[1, None, "ü"]), other.ask("b"))] == [
        {"what": "a", "x": [1, None, "ü"]},
        {"what": "b"},
    ]
    with pytest.raises(errors.ModelInUse) as caught:
        await one.ask("error")
    assert caught.value.metadata == {"sessions": "3"}
    held = asyncio.create_task(one.ask("hold"))
    assert await one.ask("behind") == {"what": "behind"}
    other.close()
    with pytest.raises(Gone):
        await held
    await asyncio.gather(*running)
    with pytest.raises(Gone):
        await one.ask("late")
    hold.set()
