"""Descriptions: a session as others see it, of its row or of its record."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import NamedTuple

from statestream.contract import errors
from statestream_server.engine.table import Table
from statestream_server.sessions import records
from statestream_server.stores.base import Key, Record


class Description(NamedTuple):
    """A session as others see it.

    Attributes:
        key: Which one.
        version: The version to which it is pinned.
        position: Steps applied.
        durable: Steps that survive a crash.
        epoch: The claim under which it is.
        resident: Whether it is a row here.
        ephemeral: Whether it ends with its caller.
        used: Unix time of its last use.
        origin: The position behind its last reset.
        cursor: The caller's, b"" for none.
        owner: Of a session that is not in memory here: the process that the store says has it, "" for none.
    """

    key: Key
    version: int
    position: int
    durable: int
    epoch: int
    resident: bool
    ephemeral: bool
    used: float
    origin: int = 0
    cursor: bytes = b""
    owner: str = ""


def of_row(table: Table, row: int, unix: Callable[[float], float]) -> Description:
    """A session in memory; `unix` is what Unix time it was at a time of the rows' clock.

    Raises:
        SessionNotFound: The row is nobody's any more.
    """
    key = table.key(row)
    if key is None:
        raise errors.SessionNotFound("the session was closed meanwhile")
    return Description(
        key,
        table.model.version,
        int(table.position[row]),
        int(table.durable[row]),
        int(table.epoch[row]),
        True,
        bool(table.ephemeral[row]),
        unix(float(table.used[row])),
        int(table.origin[row]),
        table.cursors.get(row, b""),
    )


def of_record(record: Record) -> Description:
    """A session as it is stored."""
    return Description(
        record.key,
        record.version,
        record.position,
        record.position,
        record.epoch,
        False,
        record.ephemeral,
        record.saved_at,
        *(records.tail(record.blob) if record.blob is not None else (0, b"")),
        record.owner,
    )


def page_token(last: Description) -> str:
    """What names the page behind a session, for whoever lists them."""
    return base64.urlsafe_b64encode(json.dumps([last.key.model, last.key.id]).encode()).decode()


def page_behind(token: str) -> tuple[str, str]:
    """Model and id behind which a page begins, both "" for the first.

    Raises:
        ValueError: `page_token` made no such text.
    """
    if not token:
        return "", ""
    try:
        model, session = json.loads(base64.urlsafe_b64decode(token))
        if not isinstance(model, str) or not isinstance(session, str):
            raise TypeError(token)
        (model + session).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError("no page token") from error
    return model, session
