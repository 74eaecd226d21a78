"""Random claims, saves and deletes against a small model of the rules, the same for every store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from statestream_server.stores.base import Claim, Key, Mode, Record, Store, Verdict
from statestream_server.stores.batches import joined
from statestream_server.stores.memory import MemoryStore
from statestream_server.stores.redis import RedisStore
from statestream_server.stores.sqlite import SqliteStore
from tests.server.stores.compliance.asking import batch_of
from tests.server.stores.redis_server import Server, redis_server

KEYS = [Key("t", "m", "a"), Key("t", "m", "b"), Key("t", "n", "a")]
SMALL = st.integers(0, 4)


@dataclass
class Entry:
    """What the model knows of a key that has a session or a tombstone."""

    record: Record
    dead: bool = False


CLAIMS = st.builds(
    Claim,
    key=st.sampled_from(KEYS),
    mode=st.sampled_from(Mode),
    writer=st.sampled_from([b"1" * 16, b"2" * 16]),
    incarnation=st.integers(1, 3),
    seen_epoch=SMALL,
    replay_position=st.sampled_from([0, 0, 1, 3]),
    held_epoch=SMALL,
    held_position=SMALL,
    version=st.integers(1, 2),
    ephemeral=st.booleans(),
    owner=st.sampled_from(["", "one", "two"]),
    exact=st.booleans(),
    position=SMALL,
    base=st.sampled_from([0, 0, 0, 1, 2, 3, 4]),
    blob=st.one_of(st.none(), st.binary(max_size=3)),
)
RECORDS = st.builds(
    Record,
    key=st.sampled_from(KEYS),
    version=st.integers(1, 2),
    epoch=st.integers(1, 5),
    position=SMALL,
    writer=st.sampled_from([b"1" * 16, b"2" * 16]),
    incarnation=st.integers(1, 3),
    ephemeral=st.booleans(),
    blob=st.one_of(st.none(), st.binary(max_size=3)),
    owner=st.sampled_from(["", "one", "two"]),
    saved_at=st.just(0.0),
    fence=st.just(0),
    live=st.just(True),
)


class StoreMachine(RuleBasedStateMachine):
    """Applies each batch to the store and to the model, and compares answers and contents."""

    def __init__(self, make: Callable[[], Store]) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = make()
        self.entries: dict[Key, Entry] = {}

    @initialize()
    def start(self) -> None:
        self.runner.run(self.store.start())

    @rule(claims=st.lists(CLAIMS, max_size=4), relative=st.booleans())
    def claim(self, claims: list[Claim], relative: bool) -> None:
        if relative:  # claims that know the epoch, as those of owners do
            claims = [claim._replace(held_epoch=self.epoch(claim.key)) for claim in claims]
        claims = [claim._replace(base=(claim.base and claim.held_epoch) or claim.base) for claim in claims]
        answers = self.runner.run(self.store.claim(claims))
        expected = [self.expected(claim) for claim in claims]
        assert [(answer.verdict, _plain(answer.record)) for answer in answers] == expected

    @rule(records=st.lists(RECORDS, max_size=4), relative=st.booleans())
    def save(self, records: list[Record], relative: bool) -> None:
        if relative:
            records = [record._replace(epoch=max(1, self.epoch(record.key))) for record in records]
        expected = self.saved(records)
        assert self.runner.run(self.store.save(records)) == expected

    @rule(
        records=st.lists(RECORDS, min_size=1, max_size=2, unique_by=lambda record: record.key.id),
        blobs=st.lists(st.binary(min_size=1, max_size=2), min_size=2, max_size=2),
        relative=st.booleans(),
        alike=st.booleans(),
    )
    def save_batch(self, records: list[Record], blobs: list[bytes], relative: bool, alike: bool) -> None:
        first = records[0]
        records = [
            record._replace(
                key=Key("t", "m", record.key.id),
                blob=blob,
                version=first.version,
                owner=first.owner,
                ephemeral=first.ephemeral if alike else record.ephemeral,
            )
            for record, blob in zip(records, blobs, strict=False)
        ]
        if relative:
            records = [record._replace(epoch=max(1, self.epoch(record.key))) for record in records]
        batch = joined([batch_of([record]) for record in records])
        assert [record._replace(fence=0) for record in batch] == records
        assert self.runner.run(self.store.save(batch)) == self.saved(records)

    def saved(self, records: list[Record]) -> list[bool]:
        """What a save answers, as the model has it."""
        expected = []
        for record in records:
            entry, new = self.entries.get(record.key), record._replace(fence=record.epoch)
            if entry is None:
                written = True
            elif entry.dead:
                written = entry.record.epoch < record.epoch
            elif entry.record.epoch > record.epoch:  # a claim that its owner did not hear of, or a fence
                old = entry.record
                written = old.fence <= record.epoch and old.position <= record.position
                new = old._replace(
                    version=record.version, position=record.position, ephemeral=record.ephemeral, blob=record.blob
                )
            else:
                written = (entry.record.epoch, entry.record.position) <= (record.epoch, record.position)
                if entry.record.epoch == record.epoch:
                    new = new._replace(fence=entry.record.fence)
            if written:
                self.entries[record.key] = Entry(new)
            expected.append(written)
        return expected

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=2), epoch=st.integers(0, 6), incarnation=st.integers(0, 3))
    def delete(self, keys: list[Key], epoch: int, incarnation: int) -> None:
        expected = []
        for key in keys:
            entry = self.entries.get(key) or Entry(Record(key, 0, 0, 0, bytes(16), 0), dead=True)
            spared = not entry.dead and entry.record.fence > epoch
            expected.append(not entry.dead and not spared)
            if not spared:
                highest = max(entry.record.epoch, epoch), max(entry.record.incarnation, incarnation)
                record = entry.record._replace(
                    epoch=highest[0], incarnation=highest[1], ephemeral=False, blob=None, fence=highest[0], live=False
                )
                self.entries[key] = Entry(record, dead=True)
        columns = [epoch] * len(keys), [incarnation] * len(keys)
        assert self.runner.run(self.store.delete(keys, *columns)) == expected

    @invariant()
    def contents_are_equal(self) -> None:
        assert list(map(_plain, self.runner.run(self.store.load(KEYS)))) == [self.live(key) for key in KEYS]
        heads = [self.entries[key].record._replace(blob=None) if key in self.entries else None for key in KEYS]
        assert list(map(_plain, self.runner.run(self.store.heads(KEYS)))) == heads

    def teardown(self) -> None:
        listed = self.runner.run(self.store.list("t", "", ("", ""), 10))
        assert list(map(_plain, listed)) == [
            record._replace(blob=None) for record in map(self.live, KEYS) if record is not None
        ]
        self.runner.run(self.store.close())
        self.runner.close()

    def epoch(self, key: Key) -> int:
        return self.entries[key].record.epoch if key in self.entries else 0

    def live(self, key: Key) -> Record | None:
        entry = self.entries.get(key)
        return None if entry is None or entry.dead else entry.record

    def expected(self, claim: Claim) -> tuple[Verdict, Record | None]:
        entry, live = self.entries.get(claim.key), self.live(claim.key)
        if entry is not None and (
            entry.record.incarnation > claim.incarnation
            or (
                not entry.dead
                and entry.record.writer != claim.writer
                and (
                    entry.record.incarnation == claim.incarnation
                    or (claim.mode in (Mode.RESUME, Mode.EITHER) and 0 < claim.seen_epoch < entry.record.epoch)
                )
            )
        ):
            return Verdict.REFUSED, entry.record._replace(blob=None)
        if claim.held_epoch < max(1, claim.seen_epoch) or (entry is not None and entry.dead):
            held = False
        else:
            held = live is None or live.fence <= claim.held_epoch
        if live is not None and live.epoch < max(claim.held_epoch, claim.seen_epoch):
            live = None
        bare = None if live is None else live._replace(blob=None)
        match claim.mode:
            case Mode.CREATE if live is not None or held:
                return Verdict.EXISTS, bare
            case Mode.RESUME if live is None and not held:
                return Verdict.MISSING, None
        anew = claim.mode is Mode.REPLACE
        moved = live is not None and live.version != claim.version
        if not (held or anew):
            if claim.base and (live is None or (live.epoch, live.position) != (claim.base, claim.position)):
                return Verdict.OTHER, bare
            if claim.exact and moved and not claim.base:
                return Verdict.OTHER, bare
        left = claim.held_position if held else 0 if live is None else live.position
        if not anew and left < claim.replay_position:
            return Verdict.LOST, bare
        epoch = max(1 + max(self.epoch(claim.key), claim.held_epoch, claim.seen_epoch), claim.incarnation)
        goes_on = not anew and (held or live is not None)
        record = Record(
            claim.key,
            claim.version,
            epoch,
            0,
            claim.writer,
            claim.incarnation,
            claim.ephemeral,
            owner=claim.owner,
            fence=epoch,
        )
        if goes_on and live is not None:
            record = live._replace(
                epoch=epoch, writer=claim.writer, incarnation=claim.incarnation, owner=claim.owner, fence=epoch
            )
        if goes_on and held:
            record = record._replace(fence=live.fence if live is not None else claim.held_epoch)
        elif goes_on and live is not None and live.owner == claim.owner != "":
            record = record._replace(fence=live.fence)
        if bool(claim.base) == goes_on:
            record = record._replace(version=claim.version, position=claim.position, blob=claim.blob)
        verdict = Verdict.CREATED if not goes_on else Verdict.HELD if held else Verdict.TAKEN
        self.entries[claim.key] = Entry(record)
        return verdict, record if verdict is Verdict.TAKEN else record._replace(blob=None)


def _plain(record: Record | None) -> Record | None:
    """Without the time, which the model does not know."""
    return None if record is None else record._replace(saved_at=0.0)


def _check(make: Callable[[], Store], examples: int) -> None:
    class Machine(StoreMachine):
        def __init__(self) -> None:
            super().__init__(make)

    run_state_machine_as_test(Machine, settings=settings(max_examples=examples, stateful_step_count=30))


def long(quick: int, whole: int) -> pytest.MarkDecorator:
    """How many histories a test looks at, and how many where there is time."""
    return pytest.mark.parametrize("examples", [quick, pytest.param(whole, marks=pytest.mark.slow)])


@long(50, 150)
def test_memory_follows_the_rules(examples: int) -> None:
    _check(MemoryStore, examples)


@long(20, 60)
def test_sqlite_follows_the_rules(tmp_path: Path, examples: int) -> None:
    files = (tmp_path / f"{number}.db" for number in range(100_000))
    _check(lambda: SqliteStore(next(files), synchronous=False), examples)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.mark.service
@long(10, 25)
def test_redis_follows_the_rules(server: Server, examples: int) -> None:
    def make() -> Store:
        server.client.flushall()
        return RedisStore(server.patient)

    _check(make, examples)
