"""Which sessions a store has: keys, lists, deletes, what is old, and the servers that own them."""

from __future__ import annotations

import asyncio

import pytest

from statestream_server.stores.base import Key, Mode, Peer, Record, Store
from tests.server.stores.compliance.asking import (
    KEY,
    A,
    claim,
    claim_of,
    create,
    created_and_saved,
    epochs_of,
    load,
    loaded,
    replace,
)


class Keys:
    """Tests for a fixture `store`, started and empty."""

    async def test_delete_spares_later_epochs(self, store: Store) -> None:
        saved = await created_and_saved(store)
        keys = [KEY, Key("tenant", "model", "nobody")]
        assert await store.delete(keys, [saved.epoch - 1, 1], [saved.incarnation, 1]) == [False, False]
        assert await load(store) is not None
        assert await store.delete(keys, [saved.epoch + 5, 1], [saved.incarnation, 1]) == [True, False]
        assert await load(store) is None
        assert await store.delete(keys, [saved.epoch + 5, 1], [saved.incarnation, 1]) == [False, False]

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

    async def test_epochs_of_records_tombstones_and_nothing(self, store: Store) -> None:
        live, dead, nobody = (Key("tenant", "model", id_) for id_ in ("live", "dead", "nobody"))
        await create(store, live, seen_epoch=16)
        await create(store, dead, seen_epoch=18)
        assert await store.delete([dead], [19], [10]) == [True]
        assert epochs_of(await store.heads([dead, nobody, live, live])) == [19, 0, 17, 17]
        assert await store.load([nobody]) == [None]

    async def test_empty_batches(self, store: Store) -> None:
        assert await store.claim([]) == []
        assert await store.save([]) == []
        assert await store.load([]) == []
        assert await store.heads([]) == []
        assert await store.delete([], [], []) == []

    async def test_list_pages_in_order(self, store: Store) -> None:
        keys = [Key("t", model, f"{number:03}") for model in ("a", "ab", "b") for number in range(40)]
        answers = await store.claim([claim_of(key, Mode.CREATE) for key in [*keys[::-1], Key("u", "a", "000")]])
        saves = [replace(answer.record, position=1, blob=b"x") for answer in answers if answer.record is not None]
        assert all(await store.save(saves))
        assert await store.delete([keys[3], keys[50]], [10, 10], [10, 10]) == [True, True]
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
        assert await store.delete([gone], [10], [10]) == [True]
        assert await store.expire(at - 60, ephemeral_before=at - 60) == 0
        assert await store.expire(at - 60, ephemeral_before=at + 60, tombs_before=at - 60) == 1
        assert [record.key for record in await store.list("t", "", ("", ""), 10)] == [kept]
        # The tombstone of `gone` and the record of `kept` are as old as each other.
        assert await store.expire(at + 60, ephemeral_before=at - 60) == 2
        assert await store.list("t", "", ("", ""), 10) == []
        assert (await create(store, gone, incarnation=1)).epoch == 1
        assert (await create(store, kept, incarnation=1)).epoch == 1

    async def test_models_have_times_of_their_own(self, store: Store) -> None:
        for model in ("m", "n", "mn"):
            at = (await create(store, Key("t", model, "a"))).saved_at
        assert await store.expire(at - 60, ephemeral_before=at - 60, by_model={"n": at + 60}) == 1
        assert [record.key.model for record in await store.list("t", "", ("", ""), 10)] == ["m", "mn"]
        assert await store.expire(at + 60, ephemeral_before=at - 60, by_model={"m": at - 60}) == 1
        assert [record.key.model for record in await store.list("t", "", ("", ""), 10)] == ["m"]

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

    async def test_who_lives_is_told_with_what_it_has(self, store: Store) -> None:
        assert await store.peers() == []
        await store.beat("two", "two:8001", 60.0, 7)
        await store.beat("one", "one:8001", 60.0)
        assert await store.peers() == [Peer("one", "one:8001", 0), Peer("two", "two:8001", 7)]
        await store.beat("two", "two:9001", 60.0, 5)
        await store.beat("three", "three:8001", 0.001, 1)
        await store.leave("one")
        async with asyncio.timeout(20):
            while len(found := await store.peers()) > 1:
                pass
        assert found == [Peer("two", "two:9001", 5)]

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

    async def test_the_generation_stands(self, store: Store) -> None:
        first = await store.generation()
        assert first
        await created_and_saved(store)
        assert await store.generation() == first
