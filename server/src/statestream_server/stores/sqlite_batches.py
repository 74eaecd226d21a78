"""How the sqlite store saves a batch: its columns as they are, in one statement that is a transaction of its own.

Each call of sqlite lets the interpreter's lock go and has to get it back from the loop, which may keep it for
milliseconds: so there is one, and no object is made for a record.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final

import numpy as np

from statestream_server.stores.base import Key
from statestream_server.stores.batches import Batch, Blobs
from statestream_server.stores.sqlite_tables import HEAD, MOST_BYTES, SAVE, are_refused, find, names_of

_HEADS: Final = np.dtype(
    [(name, ">u8") for name in ("epoch", "position", "incarnation", "version")]
    + [("writer", "V16"), ("owner", "S16"), ("fence", ">u8")]
)
"""`HEAD` of many records."""
assert _HEADS.itemsize == HEAD.size


def is_usual(batch: Batch) -> bool:
    """Whether one statement can be about all of it: of one tenant and kind, with states of one length."""
    count, tenants, ephemeral = len(batch), batch.tenants, batch.ephemeral.tobytes()
    return (
        count > 0
        and isinstance(batch.blobs, Blobs)
        and batch.nbytes <= MOST_BYTES
        and ephemeral.count(ephemeral[:1]) == count
        and tenants.count(tenants[0]) == count
        and "\0" not in "".join(batch.ids)
    )


def save(database: sqlite3.Connection, batch: Batch, clock: Callable[[], float]) -> list[bool]:
    """Writes the records of a usual batch that are not fenced; see `base.Store.save`."""
    assert isinstance(batch.blobs, Blobs)
    count, tenant, model, blobs = len(batch), batch.tenants[0], batch.model, batch.blobs
    heads = np.empty(count, _HEADS)
    heads["epoch"] = heads["fence"] = batch.epochs
    heads["position"], heads["incarnation"] = batch.positions, batch.incarnations
    heads["version"], heads["writer"], heads["owner"] = batch.version, batch.writers, batch.owner.encode()
    given = (*names_of(tenant, model, batch.ids), bool(batch.ephemeral[0]), clock(), heads.tobytes())
    if database.execute(SAVE, (*given, blobs.data, blobs.size)).rowcount == count:
        return [True] * count
    # Where other processes go on meanwhile, what was written may seem refused: whoever is told so asks again.
    found = find(database, [Key(tenant, model, session) for session in batch.ids])
    refused = are_refused(found, batch.epochs.tolist(), batch.positions.tolist())
    return [place not in refused for place in range(count)]
