"""What every store must do: the rules of `statestream_server.stores.base`, one test each."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from statestream_server.stores.base import Claim, Claimed, Key, Mode, Record, Store, Verdict
from statestream_server.stores.rules import CLAIM_LIMIT, NUMBER_LIMIT

A, B = b"a" * 16, b"b" * 16
KEY = Key("tenant", "model", "station-7")


def replace(record: Record, **fields: Any) -> Record:
    return record._replace(**fields)


def claim_of(key: Key = KEY, mode: Mode = Mode.EITHER, **fields: int | bool | bytes | str) -> Claim:
    values: dict[str, Any] = {"writer": A, "incarnation": 10, **fields}
    return Claim(key, mode, **values)


async def claim(store: Store, key: Key = KEY, mode: Mode = Mode.EITHER, **fields: int | bool | bytes | str) -> Claimed:
    (answer,) = await store.claim([claim_of(key, mode, **fields)])
    return answer


async def create(store: Store, key: Key = KEY, **fields: int | bool | bytes | str) -> Record:
    answer = await claim(store, key, Mode.CREATE, **fields)
    assert answer.verdict is Verdict.CREATED
    assert answer.record is not None
    return answer.record


async def created_and_saved(store: Store, key: Key = KEY, position: int = 5, blob: bytes = b"state") -> Record:
    record = replace(await create(store, key), position=position, blob=blob)
    assert await store.save([record]) == [True]
    return record


async def load(store: Store, key: Key = KEY) -> Record | None:
    (record,) = await store.load([key])
    return record


async def loaded(store: Store, key: Key = KEY) -> Record:
    record = await load(store, key)
    assert record is not None
    return record


class StoreCompliance:
    """Every store's test class inherits these; its module offers a fixture `store`, started and empty."""

    async def test_a_new_session_starts_at_zero_with_the_claims_fields(self, store: Store) -> None:
        answer = await claim(store, version=3, ephemeral=True)
        assert answer.verdict is Verdict.CREATED
        record = answer.record
        assert record is not None
        assert record.saved_at > 0
        assert replace(record, saved_at=0.0) == Record(KEY, 3, 10, 0, A, 10, ephemeral=True)
        assert await loaded(store) == record

    async def test_create_refuses_what_exists(self, store: Store) -> None:
        saved = await created_and_saved(store)
        answer = await claim(store, mode=Mode.CREATE, incarnation=11, writer=B)
        assert answer.verdict is Verdict.EXISTS
        assert answer.record is not None
        assert (answer.record.epoch, answer.record.position, answer.record.writer) == (saved.epoch, 5, A)
        assert answer.record.blob is None
        assert (await loaded(store)).writer == A

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
            saved, epoch=saved.epoch + 1, writer=B, incarnation=11, saved_at=0.0
        )
        assert await loaded(store) == record

    async def test_held_keeps_what_is_stored_and_raises_the_epoch(self, store: Store) -> None:
        saved = await created_and_saved(store)
        answer = await claim(store, writer=B, held_epoch=saved.epoch, held_position=9, replay_position=9)
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
        assert await store.delete([KEY], [saved.epoch]) == [True]
        epoch = saved.epoch
        answer = await claim(store, mode=Mode.RESUME, held_epoch=epoch, held_position=5)
        assert answer == Claimed(Verdict.MISSING, None)
        answer = await claim(store, replay_position=5, held_epoch=epoch, held_position=5)
        assert answer == Claimed(Verdict.LOST, None)
        answer = await claim(store, held_epoch=epoch, held_position=5)
        assert answer.verdict is Verdict.CREATED
        assert answer.record is not None
        assert answer.record.epoch == saved.epoch + 1

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

    async def test_a_tombstone_refuses_a_lower_incarnation_and_raises_the_epoch(self, store: Store) -> None:
        saved = await created_and_saved(store)
        assert await store.delete([KEY], [saved.epoch]) == [True]
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

    async def test_a_record_below_the_epoch_that_was_seen_is_none(self, store: Store) -> None:
        # The store forgot: between this record and what the caller saw, the session may have started anew.
        saved = await created_and_saved(store)
        lost = await claim(store, incarnation=11, seen_epoch=saved.epoch + 1, replay_position=1)
        assert lost == Claimed(Verdict.LOST, None)
        created = await claim(store, incarnation=11, seen_epoch=saved.epoch + 1)
        assert created.verdict is Verdict.CREATED
        assert (await loaded(store)).blob is None

    async def test_a_row_above_what_is_stored_is_current_and_the_old_blob_goes(self, store: Store) -> None:
        saved = await created_and_saved(store)
        held = await claim(store, incarnation=11, held_epoch=saved.epoch + 2, held_position=9, replay_position=9)
        assert held.verdict is Verdict.HELD
        stored = await loaded(store)
        assert (stored.epoch, stored.position, stored.blob) == (saved.epoch + 3, 0, None)

    async def test_a_row_below_the_epoch_that_was_seen_is_stale(self, store: Store) -> None:
        assert (await claim(store, held_epoch=1, held_position=5, seen_epoch=2)).verdict is Verdict.CREATED

    async def test_a_save_is_fenced_by_a_claim(self, store: Store) -> None:
        saved = await created_and_saved(store)
        await claim(store, writer=B, incarnation=11)
        assert await store.save([replace(saved, position=50)]) == [False]
        assert (await loaded(store)).position == 5

    async def test_a_save_into_an_empty_store_is_written(self, store: Store) -> None:
        record = Record(KEY, 2, 7, 100, A, 10, ephemeral=True, blob=b"x")
        assert await store.save([record]) == [True]
        assert replace(await loaded(store), saved_at=0.0) == record

    async def test_a_late_save_does_not_undo_a_delete(self, store: Store) -> None:
        saved = await created_and_saved(store)
        assert await store.delete([KEY], [saved.epoch]) == [True]
        assert await store.save([replace(saved, position=6), replace(saved, epoch=saved.epoch - 1)]) == [False, False]
        assert await load(store) is None

    async def test_a_save_of_a_later_epoch_is_written_over_a_tombstone(self, store: Store) -> None:
        # Its claim came after the delete, and was lost by a failover that kept the tombstone.
        saved = await created_and_saved(store)
        await store.delete([KEY], [saved.epoch])
        assert await store.save([replace(saved, epoch=saved.epoch + 1)]) == [True]
        assert (await loaded(store)).epoch == saved.epoch + 1
        assert [record.key for record in await store.list("tenant", "", ("", ""), 10)] == [KEY]

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

    async def test_delete_spares_later_epochs(self, store: Store) -> None:
        saved = await created_and_saved(store)
        keys = [KEY, Key("tenant", "model", "nobody")]
        assert await store.delete(keys, [saved.epoch - 1, 1]) == [False, False]
        assert await load(store) is not None
        assert await store.delete(keys, [1 << 60, 1]) == [True, False]
        assert await load(store) is None
        assert await store.delete(keys, [1 << 60, 1]) == [False, False]

    async def test_sessions_of_other_tenants_and_models_are_others(self, store: Store) -> None:
        keys = [Key("", "m", "a"), Key("t", "m", "a"), Key("t", "n", "a"), Key("tm", "", "a"), Key("t", "m", "")]
        for key in keys:
            await created_and_saved(store, key, blob=repr(key).encode())
        assert [record and record.blob for record in await store.load(keys)] == [repr(key).encode() for key in keys]

    async def test_ids_of_every_kind(self, store: Store) -> None:
        ids = ["", " ", "a/b:c{d}", "ü—🙂", "x" * 500, "nul\0inside", "'\"--;", "%_*?["]
        keys = [Key("tenant", "model", id_) for id_ in ids]
        for key in keys:
            await created_and_saved(store, key, blob=key.id.encode())
        assert [record and record.blob for record in await store.load(keys)] == [id_.encode() for id_ in ids]
        listed = await store.list("tenant", "model", ("", ""), 100)
        assert [record.key.id for record in listed] == sorted(ids)

    async def test_numbers_up_to_the_limit_keep_every_bit(self, store: Store) -> None:
        record = Record(KEY, NUMBER_LIMIT - 2, NUMBER_LIMIT - 2, NUMBER_LIMIT - 2, A, NUMBER_LIMIT - 2, blob=b"x")
        assert await store.save([record]) == [True]
        assert await store.save([replace(record, epoch=NUMBER_LIMIT - 3)]) == [False]
        assert await store.save([replace(record, position=NUMBER_LIMIT - 3)]) == [False]
        assert await store.save([replace(record, position=NUMBER_LIMIT - 1)]) == [True]
        assert (await claim(store, incarnation=1_800_000_000_000_001)).verdict is Verdict.REFUSED
        stored = await loaded(store)
        assert replace(stored, saved_at=0.0) == replace(record, position=NUMBER_LIMIT - 1)

    @pytest.mark.parametrize("name", ["incarnation", "seen_epoch", "held_epoch", "held_position", "replay_position"])
    async def test_numbers_beyond_the_limit_are_refused(self, store: Store, name: str) -> None:
        for number in (CLAIM_LIMIT, -1):
            with pytest.raises(ValueError, match=f"{name} {number}"):
                await store.claim([claim_of(KEY, Mode.EITHER, **{name: number})])
        assert await load(store) is None

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
            await store.delete([KEY], [])

    async def test_a_claim_names_the_owner_and_a_save_tells_it_again(self, store: Store) -> None:
        record = await create(store, owner="0123456789abcdef")
        assert record.owner == "0123456789abcdef"
        assert await store.save([replace(record, position=1, blob=b"x")]) == [True]
        assert (await loaded(store)).owner == "0123456789abcdef"
        taken = (await claim(store, incarnation=11, owner="b")).record
        assert taken is not None
        assert (taken.owner, (await loaded(store)).owner) == ("b", "b")
        held = (await claim(store, incarnation=12, held_epoch=taken.epoch, held_position=1, owner="c")).record
        assert held is not None
        assert (held.owner, (await loaded(store)).owner) == ("c", "c")
        (listed,) = await store.list("tenant", "model", ("", ""), 1)
        assert listed.owner == "c"

    @pytest.mark.parametrize("owner", ["0123456789abcdef0", "ö", "a\0"])
    async def test_an_owner_that_no_store_could_keep_is_refused(self, store: Store, owner: str) -> None:
        with pytest.raises(ValueError, match="at most 16 ASCII"):
            await store.claim([claim_of(owner=owner)])
        with pytest.raises(ValueError, match="at most 16 ASCII"):
            await store.save([Record(KEY, 1, 1, 1, A, 1, owner=owner)])

    async def test_epochs_of_records_tombstones_and_nothing(self, store: Store) -> None:
        live, dead, nobody = (Key("tenant", "model", id_) for id_ in ("live", "dead", "nobody"))
        await create(store, live, seen_epoch=16)
        await create(store, dead, seen_epoch=18)
        assert await store.delete([dead], [19]) == [True]
        assert await store.epochs([dead, nobody, live, live]) == [19, 0, 17, 17]
        assert await store.load([nobody]) == [None]

    async def test_a_server_lives_until_its_last_beat_is_over_or_it_leaves(self, store: Store) -> None:
        assert await store.address_of("one") is None
        await store.beat("one", "one:8001", 60.0)
        await store.beat("two", "two:8001", 60.0)
        assert await store.address_of("one") == "one:8001"
        await store.beat("one", "one:9001", 60.0)
        assert await store.address_of("one") == "one:9001"
        await store.leave("one")
        await store.leave("nobody")
        assert await store.address_of("one") is None
        assert await store.address_of("two") == "two:8001"
        await store.beat("two", "two:8001", 0.001)
        async with asyncio.timeout(20):
            while await store.address_of("two") is not None:
                pass
        assert await store.load([KEY]) == [None]

    async def test_empty_batches(self, store: Store) -> None:
        assert await store.claim([]) == []
        assert await store.save([]) == []
        assert await store.load([]) == []
        assert await store.epochs([]) == []
        assert await store.delete([], []) == []

    async def test_list_pages_in_order(self, store: Store) -> None:
        keys = [Key("t", model, f"{number:03}") for model in ("a", "ab", "b") for number in range(40)]
        answers = await store.claim([claim_of(key, Mode.CREATE) for key in [*keys[::-1], Key("u", "a", "000")]])
        saves = [replace(answer.record, position=1, blob=b"x") for answer in answers if answer.record is not None]
        assert all(await store.save(saves))
        assert await store.delete([keys[3], keys[50]], [10, 10]) == [True, True]
        living = [key for key in keys if key not in (keys[3], keys[50])]
        for limit in (30, 1000):
            found: list[Key] = []
            after = ("", "")
            while page := await store.list("t", "", after, limit):
                assert len(page) <= limit
                assert all(record.blob is None and record.position == 1 for record in page)
                found += [record.key for record in page]
                after = (page[-1].key.model, page[-1].key.id)
            assert found == living
        ab = await store.list("t", "ab", ("ab", "037"), 10)
        assert [record.key.id for record in ab] == ["038", "039"]
        assert [record.key.model for record in await store.list("t", "ab", ("a", "039"), 1)] == ["ab"]
        assert await store.list("t", "a", ("ab", ""), 10) == []
        assert await store.list("nobody", "", ("", ""), 10) == []
        assert await store.list("t", "", ("", ""), 0) == []

    async def test_expire_deletes_what_is_old(self, store: Store) -> None:
        ephemeral, kept, gone = (Key("t", "m", id_) for id_ in ("ephemeral", "kept", "gone"))
        await create(store, ephemeral, ephemeral=True)
        at = (await create(store, gone)).saved_at
        await created_and_saved(store, kept)
        assert await store.delete([gone], [10]) == [True]
        assert await store.expire(at - 60, ephemeral_before=at - 60) == 0
        assert await store.expire(at - 60, ephemeral_before=at + 60) == 1
        assert [record.key for record in await store.list("t", "", ("", ""), 10)] == [kept]
        # The tombstone of `gone` and the record of `kept` are as old as each other.
        assert await store.expire(at + 60, ephemeral_before=at - 60) == 2
        assert await store.list("t", "", ("", ""), 10) == []
        assert (await create(store, gone, incarnation=1)).epoch == 1
        assert (await create(store, kept, incarnation=1)).epoch == 1

    async def test_a_claim_and_a_save_make_young_again(self, store: Store) -> None:
        first = await created_and_saved(store)
        stored = await loaded(store)
        assert stored.saved_at >= first.saved_at
        answer = await claim(store)
        assert answer.record is not None
        assert answer.record.saved_at >= stored.saved_at
        assert (await loaded(store)).saved_at == answer.record.saved_at

    async def test_concurrent_claims_have_one_order(self, store: Store) -> None:
        answers = await asyncio.gather(*(claim(store, mode=Mode.CREATE) for _ in range(20)))
        verdicts = [answer.verdict for answer in answers]
        assert verdicts.count(Verdict.CREATED) == 1
        assert verdicts.count(Verdict.EXISTS) == 19
        taken = await asyncio.gather(*(claim(store) for _ in range(20)))
        assert sorted(answer.record.epoch for answer in taken if answer.record) == list(range(11, 31))

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
        assert await store.delete(keys, [10] * 1000) == [True] * 1000

    async def test_the_generation_stands(self, store: Store) -> None:
        first = await store.generation()
        assert first
        await created_and_saved(store)
        assert await store.generation() == first
