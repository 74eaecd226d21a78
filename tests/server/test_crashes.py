"""SIGKILL at random moments, by seed: every chunk is applied once, every output is the one of an uninterrupted run."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import statestream
from statestream import PoolStep
from statestream.v1 import inference_pb2 as pb
from tests.support import models
from tests.support.arrays import u64
from tests.support.calls import Failure, connected
from tests.support.serving import Process, process
from tests.support.speaker import Answer, Opened, Refusal, Speaker, joined

SESSIONS, CHUNKS, KILLS, AHEAD = 4, 30, 3, 6


@dataclass
class Feed:
    """One session as its caller knows it: what it wants to send, what it got, what it heard."""

    name: str
    chunks: dict[int, np.ndarray]
    answered: dict[int, Answer] = field(default_factory=dict)
    epoch: int = 0
    durable: int = 0

    @property
    def acked(self) -> int:
        """The position up to which every reply came."""
        position = 0
        while position in self.answered:
            position = self.answered[position].end
        return position

    @property
    def end(self) -> int:
        start = max(self.chunks)
        return start + len(self.chunks[start])

    def take(self, answer: Answer) -> None:
        """Notes a reply; one that came before must be the same in every bit."""
        known = self.answered.get(answer.position)
        assert known is None or known.outputs["y"].tobytes() == answer.outputs["y"].tobytes()
        assert answer.steps == len(self.chunks[answer.position])
        self.answered[answer.position] = answer
        self.durable = max(self.durable, answer.durable)


def feeds(seed: int) -> list[Feed]:
    rng, made = np.random.default_rng(seed), []
    for number in range(SESSIONS):
        chunks, start = {}, 0
        for _ in range(CHUNKS):
            chunks[start] = rng.standard_normal((int(rng.integers(1, 9)), 3)).astype(np.float32)
            start += len(chunks[start])
        made.append(Feed(f"s{number}", chunks))
    return made


class Caller:
    """Streams all feeds, several chunks ahead; kills the server once it has had enough answers."""

    def __init__(self, server: Process, made: list[Feed], seed: int, *, sync: bool) -> None:
        self.server, self.feeds, self.sync = server, made, sync
        self.random = random.Random(seed)
        self.writer = bytes(16)

    async def run(self, kill_after: int | None) -> None:
        """One connection: until the server was killed, or everything is answered."""
        async with connected(self.server.address) as channel, Speaker(channel, "lstm", self.writer) as speaker:
            following = await self._open(speaker)
            in_flight: list[set[int]] = [set() for _ in self.feeds]
            count = 0
            while any(feed.acked < feed.end for feed in self.feeds):
                await self._send(speaker, following, in_flight)
                (row,) = await speaker.rows(1)
                assert not isinstance(row, Refusal), row
                in_flight[row.handle].discard(row.position)
                self._take(row)
                count += 1
                if kill_after is not None and count >= kill_after:
                    self.server.kill()
                    return

    async def _open(self, speaker: Speaker) -> list[int]:
        """Opens every session; where each has to go on."""
        replay = [feed.acked if self.sync else feed.durable for feed in self.feeds]
        opened = await speaker.open(
            *(feed.name for feed in self.feeds),
            seen_epochs=u64(*(feed.epoch for feed in self.feeds)),
            replay_positions=u64(*replay),
            acked_positions=u64(*(feed.acked for feed in self.feeds)),
        )
        following = []
        for place, feed in enumerate(self.feeds):
            session = opened[place]
            assert isinstance(session, Opened), session
            assert session.epoch > feed.epoch
            assert session.position >= feed.durable, "what was said to be durable is there"
            assert session.position in (*feed.chunks, feed.end), "the chunk as sent is the unit"
            feed.epoch, feed.durable = session.epoch, session.durable
            following.append(min(session.position, feed.acked))
        return following

    async def _send(self, speaker: Speaker, following: list[int], in_flight: list[set[int]]) -> None:
        """One ragged frame with the next chunk of some sessions that may send more."""
        free = [
            place
            for place, feed in enumerate(self.feeds)
            if following[place] < feed.end and len(in_flight[place]) < AHEAD
        ]
        chosen = [place for place in free if self.random.random() < 0.7] or free
        if not chosen:
            return
        chunks = [{"x": self.feeds[place].chunks[following[place]]} for place in chosen]
        await speaker.send_chunk(
            chosen,
            [following[place] for place in chosen],
            chunks,
            [self.feeds[place].acked for place in chosen],
        )
        for place, chunk in zip(chosen, chunks, strict=True):
            in_flight[place].add(following[place])
            following[place] += len(chunk["x"])

    def _take(self, answer: Answer) -> None:
        if self.sync:
            assert answer.durable >= answer.end, "in sync mode a reply leaves after its record is written"
        self.feeds[answer.handle].take(answer)


@pytest.mark.parametrize(("mode", "seed"), [("sync", 1), ("sync", 2), ("interval", 3)])
async def test_every_chunk_is_applied_once_over_sigkill(tmp_path: Path, mode: str, seed: int) -> None:
    """Killed several times with chunks in flight and restarted on the same port.

    In sync mode nothing that was answered is lost. In interval mode the caller keeps its inputs from the durable
    position on and sends them again; what was answered before is answered again in the same bits.
    """
    folder = models.write(tmp_path / "models", "lstm")
    store = f"sqlite:{tmp_path / 'sessions.db'}"
    options = ("--store", store, "--durability", mode, "--checkpoint-interval", "0.02", "--log-level", "warning")
    made = feeds(seed)
    whole = models.Whole(folder / "lstm" / "1" / "model.onnx")
    with process(folder, *options) as server:
        port, caller = server.port, Caller(server, made, seed, sync=mode == "sync")
        for _ in range(KILLS):
            await caller.run(kill_after=caller.random.randint(1, 2 * SESSIONS * CHUNKS // (KILLS + 3)))
            server.start()
            assert server.port == port
        await caller.run(kill_after=None)
        async with connected(server.address) as channel, Speaker(channel, "lstm") as straight:
            for place, feed in enumerate(made):
                outputs = joined(feed.answered.values())["y"]
                assert len(outputs) == feed.end
                await straight.open_one(f"straight-{place}", place)
                inputs = np.concatenate([feed.chunks[start] for start in sorted(feed.chunks)])
                parts, start = [], 0
                while start < feed.end:
                    answer = await straight.step(place, start, {"x": inputs[start : start + 50]}, acked=start)
                    parts.append(answer.outputs["y"])
                    start = answer.end
                assert np.concatenate(parts).tobytes() == outputs.tobytes()
                np.testing.assert_allclose(outputs, whole.run({"x": inputs})["y"], rtol=1e-5, atol=1e-5)
        assert server.stop() == 0


@pytest.mark.parametrize("seed", [4, 5])
def test_a_pools_stream_goes_on_over_sigkill(tmp_path: Path, seed: int) -> None:
    """With several frames under way, some of them for some rows; outputs have the bits of an uninterrupted run."""
    folder = models.write(tmp_path / "models", "lstm")
    options = ("--checkpoint-interval", "0.02", "--log-level", "warning")
    rng = np.random.default_rng(seed)
    items = []
    for _ in range(40):
        rows = np.sort(rng.permutation(12)[: rng.integers(1, 13)])
        items.append(PoolStep(rng.standard_normal((len(rows), int(rng.integers(1, 9)), 3)).astype(np.float32), rows))
    kills = set(rng.integers(1, 39, KILLS).tolist())
    store = f"sqlite:{tmp_path / 'sessions.db'}"
    with process(folder, "--store", store, *options) as server, statestream.connect(server.address) as client:
        with client.sessions("lstm", 12) as pool, client.sessions("lstm", 12) as straight:
            outputs = []
            for number, y in enumerate(pool.stream(items, ahead=5)):
                outputs.append(y)
                if number in kills:
                    server.kill()
                    server.start()
            assert len(outputs) == len(items)
            for item, y in zip(items, outputs, strict=True):
                assert straight.step(item.x, item.rows).tobytes() == y.tobytes()
            assert pool.positions.tolist() == straight.positions.tolist()
        assert server.stop() == 0


async def test_mode_none_loses_its_sessions_and_says_so(tmp_path: Path) -> None:
    """With the memory store a lost server loses its sessions: STATE_LOST for callers that cannot start at 0."""
    folder = models.write(tmp_path / "models", "counter")
    one = {"x": np.ones((3, 1), np.float32)}
    with process(folder, "--store", "memory") as server:
        async with connected(server.address) as channel, Speaker(channel, "counter") as speaker:
            opened = await speaker.open_one("a")
            assert opened.durability == pb.DURABILITY_MODE_NONE
            assert (await speaker.step(0, 0, one)).durable == 0
        server.kill()
        server.start()
        async with connected(server.address) as channel, Speaker(channel, "counter") as speaker:
            lost = await speaker.not_opened("a", seen_epochs=u64(opened.epoch), replay_positions=u64(3))
            assert (lost.code, lost.reason, lost.metadata["position"]) == ("DATA_LOSS", "STATE_LOST", "0")
            again = (await speaker.open("a", seen_epochs=u64(opened.epoch)))[0]
            assert not isinstance(again, Failure)
            assert (again.position, again.created) == (0, True)
            assert again.epoch > opened.epoch
            assert (await speaker.step(0, 0, one)).outputs["y"].ravel().tolist() == [1, 2, 3]


async def test_replies_survive_the_crash_of_server_and_caller(tmp_path: Path) -> None:
    """Both die after the chunk was saved and before anybody read the reply: return_replies brings it."""
    folder = models.write(tmp_path / "models", "counter")
    with process(folder, "--store", f"sqlite:{tmp_path / 's.db'}", "--durability", "sync") as server:
        async with connected(server.address) as channel, Speaker(channel, "counter") as speaker:
            await speaker.open_one("a")
            await speaker.step(0, 0, {"x": np.asarray([[1], [2]], np.float32)})
            await speaker.step(0, 2, {"x": np.asarray([[3]], np.float32)}, acked=2)
        server.kill()
        server.start()
        async with connected(server.address) as channel, Speaker(channel, "counter") as speaker:
            assert (await speaker.open_one("a", 5, acked_positions=u64(2), return_replies=True)).position == 3
            (answer,) = await speaker.answers(1)
            assert (answer.handle, answer.position) == (5, 2)
            assert answer.outputs["y"].ravel().tolist() == [6]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_marks_and_cursors_survive_sigkill(tmp_path: Path, seed: int) -> None:
    """Steps, resets and cursors over kills: outputs are sums since the last reset, the cursor is the last one."""
    folder, rng = models.write(tmp_path / "models", "counter"), random.Random(seed)
    options = ("--store", f"sqlite:{tmp_path / 's.db'}", "--checkpoint-interval", "0.05")
    with process(folder, *options) as server:
        with (
            statestream.connect(server.address, retry_timeout=60) as client,
            client.session("counter", id="a") as session,
            client.sessions("counter", ids=["b", "c"]) as pool,
        ):
            total, sums, cursor, marks = 0.0, np.zeros(2, np.float32), None, 0
            for turn in range(60):
                if turn in (20, 40):
                    server.kill()
                    server.start()
                action = rng.random()
                if action < 0.25:
                    session.reset()
                    pool.reset(rows=[1], cursors=[b"reset %d" % turn])
                    total, sums[1], marks = 0.0, 0.0, marks + 1
                elif action < 0.4:
                    cursor = b"mark %d" % turn
                    session.mark(cursor)
                    marks += 1
                else:
                    cursor = b"step %d" % turn if rng.random() < 0.5 else cursor
                    total += turn
                    y = session.step([turn], cursor=cursor)
                    assert y.tolist() == [total]
                    sums += 1
                    assert pool.step(np.ones((2, 1), np.float32)).ravel().tolist() == sums.tolist()
                assert session.cursor == cursor
            position, origin = session.position, session.origin
            assert marks > 10
        server.kill()
        server.start()
        with statestream.connect(server.address) as client, client.session("counter", id="a") as session:
            assert (session.position, session.origin, session.cursor) == (position, origin, cursor)
            assert session.step([1]).tolist() == [total + 1]
            found = client.list_sessions("counter")
            assert {one.id: one.origin for one in found}["a"] == origin
            assert session.fork("fork").cursor == cursor
            with client.restore(session.snapshot(), model="counter", id="copy") as copy:
                assert (copy.origin, copy.cursor) == (origin, cursor)
