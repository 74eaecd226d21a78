"""What a save writes and what it may not: fenced by epochs, never backwards, every byte and number kept."""

from __future__ import annotations

import pytest

from statestream_server.stores.base import Key, Mode, Record, Store, Verdict
from statestream_server.stores.rules import NUMBER_LIMIT
from tests.server.stores.compliance.asking import (
    KEY,
    A,
    B,
    batch_of,
    claim,
    claim_of,
    create,
    created_and_saved,
    epochs_of,
    load,
    loaded,
    replace,
)


class Saves:
    """Tests for a fixture `store`, started and empty."""

    async def test_a_save_needs_the_epoch_and_never_goes_back(self, store: Store) -> None:
        saved = await created_and_saved(store)
        assert await store.save([replace(saved, position=4, blob=b"older")]) == [False]
        assert await store.save([replace(saved, epoch=saved.epoch - 1, position=9)]) == [False]
        assert (await loaded(store)).blob == b"state"
        assert await store.save([replace(saved, blob=b"same position")]) == [True]
        assert await store.save([replace(saved, position=6, blob=b"next")]) == [True]
        stored = await loaded(store)
        assert (stored.position, stored.blob) == (6, b"next")

    async def test_a_save_of_a_later_epoch_is_written(self, store: Store) -> None:
        # After a flush an owner whose session moved registered its row again, before the true owner did.
        saved = await created_and_saved(store)
        assert await store.save([replace(saved, epoch=saved.epoch + 1, position=1, blob=b"true")]) == [True]
        assert await store.save([replace(saved, position=50)]) == [False]
        assert (await loaded(store)).blob == b"true"

    async def test_a_save_is_fenced_by_a_claim(self, store: Store) -> None:
        saved = await created_and_saved(store)
        await claim(store, writer=B, incarnation=11)
        assert await store.save([replace(saved, position=50)]) == [False]
        assert (await loaded(store)).position == 5

    async def test_a_save_into_an_empty_store_is_written(self, store: Store) -> None:
        record = Record(KEY, 2, 7, 100, A, 10, ephemeral=True, blob=b"x")
        assert await store.save([record]) == [True]
        assert replace(await loaded(store), saved_at=0.0) == replace(record, fence=7)

    async def test_a_row_goes_on_under_a_claim_that_its_process_did_not_hear_of(self, store: Store) -> None:
        """The answer to a claim was lost: the row that it went on from is as new as ever, and its saves count."""
        saved = await created_and_saved(store)
        held = await claim(store, writer=B, incarnation=11, held_epoch=saved.epoch, held_position=6)
        assert held.verdict is Verdict.HELD
        assert held.record is not None
        assert (held.record.epoch, held.record.fence) == (saved.epoch + 1, saved.epoch)
        assert await store.save([replace(saved, position=4)]) == [False]
        assert await store.save([replace(saved, position=8, blob=b"on")]) == [True]
        stored = await loaded(store)
        assert (stored.epoch, stored.position, stored.blob, stored.writer) == (saved.epoch + 1, 8, b"on", B)
        again = await claim(store, incarnation=12, held_epoch=saved.epoch, held_position=9, replay_position=9)
        assert again.verdict is Verdict.HELD
        assert await store.delete([KEY], [saved.epoch], [saved.incarnation]) == [True]

    async def test_a_row_from_which_others_went_on_is_fenced(self, store: Store) -> None:
        """Each take-over raises the fence, whoever held the session before, and whatever it is asked for."""
        saved = await created_and_saved(store)
        taken = await claim(store, writer=B, incarnation=11)
        assert taken.record is not None
        assert taken.record.fence == taken.record.epoch == saved.epoch + 1
        assert await store.save([replace(saved, position=8)]) == [False]
        assert await store.delete([KEY], [saved.epoch], [saved.incarnation]) == [False]
        anew = await claim(store, mode=Mode.REPLACE, incarnation=12, held_epoch=saved.epoch + 1, held_position=5)
        assert anew.record is not None
        assert await store.save([replace(taken.record, position=8)]) == [False]
        assert (await loaded(store)).position == 0

    async def test_a_touch_takes_a_record_for_used(self, store: Store) -> None:
        saved = await created_and_saved(store)
        before = await loaded(store)
        await store.touch([KEY, Key("t", "m", "nobody")], [saved.epoch, 1])
        after = await loaded(store)
        assert after.saved_at >= before.saved_at
        assert replace(after, saved_at=0.0) == replace(before, saved_at=0.0)
        await store.touch([KEY], [saved.epoch - 1])
        assert await loaded(store) == after

    async def test_a_late_save_does_not_undo_a_delete(self, store: Store) -> None:
        saved = await created_and_saved(store)
        assert await store.delete([KEY], [saved.epoch], [saved.incarnation]) == [True]
        assert await store.save([replace(saved, position=6), replace(saved, epoch=saved.epoch - 1)]) == [False, False]
        assert await load(store) is None

    async def test_a_late_save_does_not_undo_a_delete_of_what_the_store_forgot(self, store: Store) -> None:
        # It was flushed, and the session deleted before its row was written again.
        late = Record(KEY, 1, 6, 5, A, 10, blob=b"state")
        assert await store.delete([KEY], [7], [11]) == [False]
        assert await store.save([late, replace(late, epoch=7, position=9)]) == [False, False]
        assert await load(store) is None
        assert await store.list("tenant", "", ("", ""), 10) == []
        assert epochs_of(await store.heads([KEY])) == [7]
        assert (await claim(store, incarnation=10)).verdict is Verdict.REFUSED
        assert (await claim(store, writer=B, incarnation=11)).verdict is Verdict.CREATED

    async def test_a_late_save_does_not_undo_a_delete_of_what_the_store_brought_back(self, store: Store) -> None:
        # It was flushed, and got a record of an older owner before the session was deleted by the newest.
        older = Record(KEY, 1, 5, 3, A, 10, blob=b"older")
        assert await store.save([older]) == [True]
        assert await store.delete([KEY], [8], [12]) == [True]
        assert await store.save([replace(older, epoch=8, position=9)]) == [False]
        # What it knows of the newest delete, an earlier one does not take back.
        assert await store.delete([KEY], [6], [11]) == [False]
        assert epochs_of(await store.heads([KEY])) == [8]
        assert (await claim(store, incarnation=11)).verdict is Verdict.REFUSED

    async def test_a_tombstone_over_nothing_grows_old(self, store: Store) -> None:
        at = (await create(store)).saved_at
        nobody = Key("tenant", "model", "nobody")
        assert await store.delete([nobody], [7], [11]) == [False]
        assert await store.expire(at - 60, ephemeral_before=at - 60) == 0
        assert await store.expire(at + 60, ephemeral_before=at + 60) == 2
        assert epochs_of(await store.heads([nobody])) == [0]

    async def test_a_save_of_a_later_epoch_is_written_over_a_tombstone(self, store: Store) -> None:
        # Its claim came after the delete, and was lost by a failover that kept the tombstone.
        saved = await created_and_saved(store)
        await store.delete([KEY], [saved.epoch], [saved.incarnation])
        assert await store.save([replace(saved, epoch=saved.epoch + 1)]) == [True]
        assert (await loaded(store)).epoch == saved.epoch + 1
        assert [record.key for record in await store.list("tenant", "", ("", ""), 10)] == [KEY]

    @pytest.mark.parametrize("odd", ["", "id", "kind", "length", "tenant"])
    async def test_a_batch_of_columns_is_saved_as_its_records_are(self, store: Store, odd: str) -> None:
        """All but those that are fenced or deleted; whatever keeps a store from writing all of it at once."""
        ids = ["a", "b", "c", "\0" if odd == "id" else "d"]
        keys = [Key("other" if odd == "tenant" and name == "d" else "tenant", "model", name) for name in ids]
        saved = [await created_and_saved(store, key) for key in keys[:2]] + [await create(store, keys[2])]
        await claim(store, keys[0], writer=B, incarnation=11)
        await store.delete([keys[1]], [saved[1].epoch], [saved[1].incarnation])
        records = [
            *[replace(record, position=9, blob=b"state") for record in saved],
            Record(keys[3], 1, 3, 9, A, 10, odd == "kind", b"st" if odd == "length" else b"STATE"),
        ]
        assert await store.save(batch_of(records)) == [False, False, True, True]
        assert [record and record.blob for record in await store.load(keys)] == [
            b"state",
            None,
            b"state",
            records[3].blob,
        ]
        stored = await loaded(store, keys[3])
        assert replace(stored, saved_at=0.0, fence=0) == records[3]

    @pytest.mark.parametrize("what", ["epoch", "position", "incarnation", "version", "owner"])
    async def test_a_batch_that_no_store_could_keep_is_refused(self, store: Store, what: str) -> None:
        given = {what: "o" * 17 if what == "owner" else NUMBER_LIMIT}
        with pytest.raises(ValueError, match=what):
            await store.save(batch_of([replace(Record(KEY, 1, 3, 9, A, 10, blob=b"state"), **given)]))
        assert await load(store) is None

    async def test_saves_of_one_batch_are_decided_in_order(self, store: Store) -> None:
        saved = await created_and_saved(store)
        other = Record(Key("tenant", "model", "x"), 1, 3, 3, A, 10, blob=b"")
        batch = [replace(saved, position=8, blob=b"8"), other, replace(saved, position=7), replace(saved, position=9)]
        assert await store.save(batch) == [True, True, False, True]
        assert (await loaded(store)).position == 9

    async def test_an_empty_blob_is_not_no_blob(self, store: Store) -> None:
        saved = await created_and_saved(store, blob=b"")
        assert (await loaded(store)).blob == b""
        answer = await claim(store)
        assert answer.record is not None
        assert answer.record.blob == b""
        assert await store.save([replace(saved, epoch=saved.epoch + 1, blob=None)]) == [True]
        assert (await loaded(store)).blob is None

    async def test_a_large_blob(self, store: Store) -> None:
        blob = bytes(range(256)) * 16_384
        await created_and_saved(store, blob=blob)
        assert (await loaded(store)).blob == blob

    async def test_numbers_up_to_the_limit_keep_every_bit(self, store: Store) -> None:
        record = Record(KEY, NUMBER_LIMIT - 2, NUMBER_LIMIT - 2, NUMBER_LIMIT - 2, A, NUMBER_LIMIT - 2, blob=b"x")
        assert await store.save([record]) == [True]
        assert await store.save([replace(record, epoch=NUMBER_LIMIT - 3)]) == [False]
        assert await store.save([replace(record, position=NUMBER_LIMIT - 3)]) == [False]
        assert await store.save([replace(record, position=NUMBER_LIMIT - 1)]) == [True]
        assert (await claim(store, incarnation=1_800_000_000_000_001)).verdict is Verdict.REFUSED
        stored = await loaded(store)
        assert replace(stored, saved_at=0.0) == replace(record, position=NUMBER_LIMIT - 1, fence=NUMBER_LIMIT - 2)

    async def test_records_beyond_the_limit_are_refused(self, store: Store) -> None:
        record = Record(KEY, 1, 1, 1, A, 1)
        for unfit in (
            replace(record, position=NUMBER_LIMIT),
            replace(record, epoch=NUMBER_LIMIT),
            replace(record, incarnation=-1),
            replace(record, writer=b"short"),
        ):
            with pytest.raises(ValueError, match="expected"):
                await store.save([unfit])
        with pytest.raises(ValueError, match="one epoch for each key"):
            await store.delete([KEY], [], [1])
        with pytest.raises(ValueError, match="one incarnation for each key"):
            await store.delete([KEY], [1], [])
        for epoch, incarnation in ((NUMBER_LIMIT, 1), (1, NUMBER_LIMIT), (-1, 1)):
            with pytest.raises(ValueError, match="expected 0 to"):
                await store.delete([KEY], [epoch], [incarnation])

    async def test_a_claim_and_a_save_make_young_again(self, store: Store) -> None:
        first = await created_and_saved(store)
        stored = await loaded(store)
        assert stored.saved_at >= first.saved_at
        answer = await claim(store)
        assert answer.record is not None
        assert answer.record.saved_at >= stored.saved_at
        assert (await loaded(store)).saved_at == answer.record.saved_at

    async def test_a_thousand_sessions_at_once(self, store: Store) -> None:
        keys = [Key("t", "m", f"{number}") for number in range(1000)]
        answers = await store.claim([claim_of(key) for key in keys])
        records = [answer.record for answer in answers if answer.record is not None]
        assert [record.key for record in records] == keys
        saves = [replace(record, position=index, blob=b"%d" % index) for index, record in enumerate(records)]
        assert await store.save(saves[:500]) == [True] * 500
        fenced = [replace(record, epoch=0) for record in saves[:500:2]]
        assert await store.save([*fenced, *saves[500:]]) == [False] * 250 + [True] * 500
        assert [record and record.blob for record in await store.load(keys)] == [b"%d" % i for i in range(1000)]
        assert await store.delete(keys, [10] * 1000, [10] * 1000) == [True] * 1000
