"""Short ways to ask a store: one claim, one record, a session that was saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from statestream_server.stores.base import Claim, Claimed, Key, Mode, Record, Store, Verdict
from statestream_server.stores.batches import Batch, Blobs

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


def epochs_of(heads: Sequence[Record | None]) -> list[int]:
    """The epochs of heads, 0 where there is none."""
    return [0 if head is None else head.epoch for head in heads]


def batch_of(records: Sequence[Record]) -> Batch:
    """The same as columns: records of one version of a model, which have blobs."""
    keys, versions, epochs, positions, writers, incarnations, ephemeral, blobs, _, owners, *_ = zip(
        *records, strict=True
    )
    size = len(blobs[0])
    alike = size > 0 and all(len(blob) == size for blob in blobs)
    return Batch(
        [key.tenant for key in keys],
        [key.id for key in keys],
        keys[0].model,
        versions[0],
        owners[0],
        np.array(epochs, np.uint64),
        np.array(positions, np.uint64),
        np.array(incarnations, np.uint64),
        np.array([np.void(writer) for writer in writers], "V16"),
        np.array(ephemeral, np.bool_),
        Blobs(b"".join(blobs), size) if alike else list(blobs),
    )
