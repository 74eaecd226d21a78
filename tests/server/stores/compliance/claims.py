"""What a claim decides: who may have a session, from which record, and with which epoch."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from statestream_server.stores.base import Claimed, Key, Mode, Record, Store, Verdict
from statestream_server.stores.rules import CLAIM_LIMIT
from tests.server.stores.compliance.asking import (
    KEY,
    A,
    B,
    claim,
    claim_of,
    create,
    created_and_saved,
    load,
    loaded,
    replace,
)


class Claims:
    """Tests for a fixture `store`, started and empty."""

    async def test_a_new_session_starts_at_zero_with_the_claims_fields(self, store: Store) -> None:
        answer = await claim(store, version=3, ephemeral=True)
        assert answer.verdict is Verdict.CREATED
        record = answer.record
        assert record is not None
        assert record.saved_at > 0
        assert replace(record, saved_at=0.0) == Record(KEY, 3, 10, 0, A, 10, ephemeral=True, fence=10)
        assert await loaded(store) == record

    async def test_create_refuses_what_exists(self, store: Store) -> None:
        saved = await created_and_saved(store)
        answer = await claim(store, mode=Mode.CREATE, incarnation=11, writer=B)
        assert answer.verdict is Verdict.EXISTS
        assert answer.record is not None
        assert (answer.record.epoch, answer.record.position, answer.record.writer) == (saved.epoch, 5, A)
        assert answer.record.blob is None
        assert (await loaded(store)).writer == A

    async def test_create_refuses_a_row_held_over_a_flush(self, store: Store) -> None:
        """It is there, though the store has yet to hear of it again: a fork would be written over it."""
        assert await claim(store, mode=Mode.CREATE, held_epoch=17, held_position=9) == Claimed(Verdict.EXISTS, None)
        assert await load(store) is None

    async def test_resume_needs_a_session(self, store: Store) -> None:
        assert await claim(store, mode=Mode.RESUME) == Claimed(Verdict.MISSING, None)
        assert await load(store) is None

    async def test_taken_has_the_blob_and_keeps_it(self, store: Store) -> None:
        saved = await created_and_saved(store, blob=b"\x00\xff" * 700)
        answer = await claim(store, mode=Mode.RESUME, writer=B, incarnation=11, version=9, ephemeral=True)
        assert answer.verdict is Verdict.TAKEN
        record = answer.record
        assert record is not None
        # Version and ephemeral are the session's, not the claim's: it goes on.
        assert replace(record, saved_at=0.0) == replace(
            saved, epoch=saved.epoch + 1, writer=B, incarnation=11, saved_at=0.0, fence=saved.epoch + 1
        )
        assert await loaded(store) == record

    async def test_held_keeps_what_is_stored_and_raises_the_epoch(self, store: Store) -> None:
        saved = await created_and_saved(store)
        answer = await claim(
            store, writer=B, incarnation=11, held_epoch=saved.epoch, held_position=9, replay_position=9
        )
        assert answer.verdict is Verdict.HELD
        assert answer.record is not None
        assert answer.record.blob is None
        assert (answer.record.epoch, answer.record.position) == (saved.epoch + 1, 5)
        stored = await loaded(store)
        assert (stored.blob, stored.position, stored.writer) == (b"state", 5, B)

    async def test_a_row_of_an_older_epoch_is_stale(self, store: Store) -> None:
        saved = await created_and_saved(store)
        await claim(store, writer=B, incarnation=11)
        answer = await claim(store, incarnation=12, held_epoch=saved.epoch, held_position=9)
        assert answer.verdict is Verdict.TAKEN
        assert answer.record is not None
        assert answer.record.position == 5
        assert answer.record.epoch == saved.epoch + 2

    async def test_a_row_held_over_a_flush_is_current(self, store: Store) -> None:
        answer = await claim(store, mode=Mode.RESUME, held_epoch=17, held_position=100, replay_position=95, version=2)
        assert answer.verdict is Verdict.HELD
        stored = await loaded(store)
        # The store has no state yet, and says so: whoever takes over now finds position 0.
        assert (stored.epoch, stored.position, stored.blob, stored.version) == (18, 0, None, 2)
        assert (await claim(store, incarnation=11, replay_position=95)).verdict is Verdict.LOST

    async def test_a_row_held_over_a_delete_is_not_current(self, store: Store) -> None:
        saved = await created_and_saved(store)
        assert await store.delete([KEY], [saved.epoch], [saved.incarnation]) == [True]
        epoch = saved.epoch
        answer = await claim(store, mode=Mode.RESUME, held_epoch=epoch, held_position=5)
        assert answer == Claimed(Verdict.MISSING, None)
        answer = await claim(store, replay_position=5, held_epoch=epoch, held_position=5)
        assert answer == Claimed(Verdict.LOST, None)
        answer = await claim(store, held_epoch=epoch, held_position=5)
        assert answer.verdict is Verdict.CREATED
        assert answer.record is not None
        assert answer.record.epoch == saved.epoch + 1

    async def test_a_row_above_what_is_stored_is_current_and_the_old_blob_goes(self, store: Store) -> None:
        saved = await created_and_saved(store)
        held = await claim(store, incarnation=11, held_epoch=saved.epoch + 2, held_position=9, replay_position=9)
        assert held.verdict is Verdict.HELD
        stored = await loaded(store)
        assert (stored.epoch, stored.position, stored.blob) == (saved.epoch + 3, 0, None)

    async def test_a_row_below_the_epoch_that_was_seen_is_stale(self, store: Store) -> None:
        assert (await claim(store, held_epoch=1, held_position=5, seen_epoch=2)).verdict is Verdict.CREATED

    async def test_a_record_below_the_epoch_that_was_seen_is_none(self, store: Store) -> None:
        # The store forgot: between this record and what the caller saw, the session may have started anew.
        saved = await created_and_saved(store)
        lost = await claim(store, incarnation=11, seen_epoch=saved.epoch + 1, replay_position=1)
        assert lost == Claimed(Verdict.LOST, None)
        created = await claim(store, incarnation=11, seen_epoch=saved.epoch + 1)
        assert created.verdict is Verdict.CREATED
        assert (await loaded(store)).blob is None

    async def test_a_lower_incarnation_is_refused(self, store: Store) -> None:
        saved = await created_and_saved(store)
        answer = await claim(store, mode=Mode.REPLACE, incarnation=9, held_epoch=saved.epoch, held_position=5)
        assert answer.verdict is Verdict.REFUSED
        assert answer.record is not None
        assert answer.record.blob is None
        assert (answer.record.epoch, answer.record.incarnation) == (saved.epoch, 10)
        assert (await loaded(store)).epoch == saved.epoch

    async def test_an_equal_incarnation_is_not_refused(self, store: Store) -> None:
        await created_and_saved(store)
        assert (await claim(store)).verdict is Verdict.TAKEN

    async def test_of_two_writers_with_one_incarnation_the_first_stays(self, store: Store) -> None:
        saved = await created_and_saved(store)
        answer = await claim(store, writer=B, seen_epoch=saved.epoch)
        assert answer.verdict is Verdict.REFUSED
        assert answer.record is not None
        assert (answer.record.epoch, answer.record.writer) == (saved.epoch, saved.writer)

    @pytest.mark.parametrize("mode", [Mode.RESUME, Mode.EITHER])
    async def test_who_opens_again_by_itself_takes_nothing_from_another_writer(self, store: Store, mode: Mode) -> None:
        """It lost two streams before it was answered: its number is above that of who took the session meanwhile."""
        saved = await created_and_saved(store)
        taken = await claim(store, writer=B, incarnation=11)
        assert taken.record is not None
        for incarnation in (12, 13):
            answer = await claim(store, mode=mode, incarnation=incarnation, seen_epoch=saved.epoch)
            assert answer.verdict is Verdict.REFUSED
            assert answer.record is not None
            assert (answer.record.epoch, answer.record.writer) == (taken.record.epoch, B)
        own = await claim(store, mode=mode, writer=B, incarnation=14, seen_epoch=saved.epoch)
        assert own.verdict is Verdict.TAKEN
        assert own.record is not None
        for incarnation, seen in ((15, 0), (16, own.record.epoch + 1)):
            back = await claim(store, mode=mode, incarnation=incarnation, seen_epoch=seen)
            assert back.verdict is Verdict.TAKEN  # A caller wants it, whoever has it.

    async def test_a_tombstone_refuses_a_lower_incarnation_and_raises_the_epoch(self, store: Store) -> None:
        saved = await created_and_saved(store)
        assert await store.delete([KEY], [saved.epoch], [saved.incarnation]) == [True]
        refused = await claim(store, incarnation=9)
        assert refused.verdict is Verdict.REFUSED
        assert refused.record is not None
        assert (refused.record.incarnation, refused.record.blob) == (10, None)
        record = await create(store, version=4)
        assert (record.epoch, record.position, record.blob, record.version) == (saved.epoch + 1, 0, None, 4)

    async def test_lost_below_the_replay_position(self, store: Store) -> None:
        saved = await created_and_saved(store)
        answer = await claim(store, mode=Mode.RESUME, replay_position=6)
        assert answer.verdict is Verdict.LOST
        assert answer.record is not None
        assert (answer.record.position, answer.record.blob) == (5, None)
        assert (await loaded(store)).epoch == saved.epoch
        assert (await claim(store, mode=Mode.RESUME, replay_position=5)).verdict is Verdict.TAKEN

    async def test_lost_without_any_record(self, store: Store) -> None:
        assert await claim(store, replay_position=1) == Claimed(Verdict.LOST, None)
        assert await load(store) is None

    async def test_lost_where_the_row_held_is_below(self, store: Store) -> None:
        saved = await created_and_saved(store)
        answer = await claim(store, held_epoch=saved.epoch, held_position=7, replay_position=8)
        assert answer.verdict is Verdict.LOST

    async def test_an_exact_claim_takes_its_own_version_only(self, store: Store) -> None:
        """One that is refused so changes nothing; a row that is held knows its version better than the record."""
        saved = await created_and_saved(store)
        answer = await claim(store, version=2, exact=True, incarnation=99)
        assert answer.verdict is Verdict.OTHER
        assert answer.record is not None
        assert (answer.record.version, answer.record.blob) == (1, None)
        assert (await loaded(store)).epoch == saved.epoch
        assert (await loaded(store)).incarnation == saved.incarnation
        assert (await claim(store, version=1, exact=True)).verdict is Verdict.TAKEN
        held = await claim(store, version=2, exact=True, held_epoch=saved.epoch + 1, held_position=7)
        assert held.verdict is Verdict.HELD
        assert (await claim(store, Key("t", "m", "new"), version=2, exact=True)).verdict is Verdict.CREATED
        assert (await claim(store, mode=Mode.REPLACE, version=2, exact=True)).verdict is Verdict.CREATED
        assert (await loaded(store)).version == 2

    async def test_a_new_session_and_its_state_are_one_write(self, store: Store) -> None:
        answer = await claim(store, position=4, blob=b"start")
        assert answer.verdict is Verdict.CREATED
        stored = await loaded(store)
        assert (stored.position, stored.blob) == (4, b"start")
        assert answer.record == replace(stored, blob=None)
        again = await claim(store, incarnation=11, position=9, blob=b"other")
        assert again.verdict is Verdict.TAKEN
        assert again.record is not None
        assert (again.record.position, again.record.blob) == (4, b"start")

    async def test_replace_and_the_new_state_are_one_write(self, store: Store) -> None:
        saved = await created_and_saved(store)
        answer = await claim(store, mode=Mode.REPLACE, incarnation=11, position=7, blob=b"", held_epoch=saved.epoch)
        assert answer.verdict is Verdict.CREATED
        stored = await loaded(store)
        assert (stored.position, stored.blob, stored.fence) == (7, b"", stored.epoch)

    async def test_a_move_to_another_version_is_one_write(self, store: Store) -> None:
        """Of a stored session it is made only of what was read; a row that is held is what moves."""
        saved = await created_and_saved(store)
        move: dict[str, Any] = {"version": 2, "exact": True, "blob": b"moved"}
        changed = await claim(store, incarnation=11, base=saved.epoch, position=4, **move)
        assert changed.verdict is Verdict.OTHER
        assert (await loaded(store)).version == 1
        moved = await claim(store, incarnation=11, base=saved.epoch, position=5, **move)
        assert moved.verdict is Verdict.TAKEN
        stored = await loaded(store)
        assert moved.record == stored
        assert (stored.version, stored.position, stored.blob) == (2, 5, b"moved")
        held: dict[str, Any] = {"base": stored.epoch, "held_epoch": stored.epoch, "held_position": 8, "position": 8}
        again = await claim(store, incarnation=12, version=3, blob=b"again", **held)
        assert again.verdict is Verdict.HELD
        stored = await loaded(store)
        assert (stored.version, stored.position, stored.blob) == (3, 8, b"again")
        gone = await claim(store, Key("t", "m", "gone"), base=3, position=5, **move)
        assert gone == Claimed(Verdict.OTHER, None)

    async def test_thousands_of_states_are_claimed_at_once(self, store: Store) -> None:
        keys = [Key("t", "m", f"s{number}") for number in range(2000)]
        asked = [claim_of(key, blob=bytes([number % 7]) * (number % 5), position=1) for number, key in enumerate(keys)]
        answers = await store.claim(asked)
        assert {answer.verdict for answer in answers} == {Verdict.CREATED}
        stored = await store.load(keys)
        assert [record and record.blob for record in stored] == [each.blob for each in asked]

    async def test_replace_starts_anew_whatever_there_is(self, store: Store) -> None:
        saved = await created_and_saved(store)
        answer = await claim(store, mode=Mode.REPLACE, replay_position=99, version=8, held_epoch=saved.epoch)
        assert answer.verdict is Verdict.CREATED
        stored = await loaded(store)
        assert (stored.epoch, stored.position, stored.blob, stored.version) == (saved.epoch + 1, 0, None, 8)
        assert (await claim(store, Key("tenant", "model", "other"), Mode.REPLACE)).verdict is Verdict.CREATED

    async def test_the_new_epoch_is_above_all_that_were_seen(self, store: Store) -> None:
        assert (await create(store, seen_epoch=41)).epoch == 42
        answer = await claim(store, incarnation=11, seen_epoch=7, held_epoch=60)
        assert answer.record is not None
        assert answer.record.epoch == 61

    async def test_epochs_go_on_rising_over_a_flush(self, store: Store) -> None:
        """A later incarnation has a later epoch, whatever the store forgot between the two."""
        first = (await created_and_saved(store)).epoch
        assert await store.expire(1e12, ephemeral_before=1e12) == 1
        later = await create(store, incarnation=1000)
        assert later.epoch > first
        assert await store.save([replace(later, epoch=first, position=50, blob=b"late")]) == [False]
        assert (await claim(store, incarnation=1000)).verdict is Verdict.TAKEN

    async def test_claims_of_one_batch_are_decided_in_order(self, store: Store) -> None:
        answers = await store.claim([claim_of(mode=mode) for mode in (Mode.RESUME, Mode.CREATE, Mode.CREATE)])
        assert [answer.verdict for answer in answers] == [Verdict.MISSING, Verdict.CREATED, Verdict.EXISTS]

    async def test_concurrent_claims_have_one_order(self, store: Store) -> None:
        answers = await asyncio.gather(*(claim(store, mode=Mode.CREATE) for _ in range(20)))
        verdicts = [answer.verdict for answer in answers]
        assert verdicts.count(Verdict.CREATED) == 1
        assert verdicts.count(Verdict.EXISTS) == 19
        taken = await asyncio.gather(*(claim(store) for _ in range(20)))
        assert sorted(answer.record.epoch for answer in taken if answer.record) == list(range(11, 31))

    @pytest.mark.parametrize("name", ["incarnation", "seen_epoch", "held_epoch", "held_position", "replay_position"])
    async def test_numbers_beyond_the_limit_are_refused(self, store: Store, name: str) -> None:
        for number in (CLAIM_LIMIT, -1):
            with pytest.raises(ValueError, match=f"{name} {number}"):
                await store.claim([claim_of(KEY, Mode.EITHER, **{name: number})])
        assert await load(store) is None
