"""What callers pass beside arrays, checked for both twins before anything is sent.

A wrong type is a TypeError, a wrong value a ValueError; both say what came and what was expected.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from statestream.contract.aliases import MOST_ALIAS, is_alias
from statestream.contract.errors import shortened
from statestream.contract.tensors import MAX_CURSOR_BYTES
from statestream.tables import is_table
from statestream.v1 import inference_pb2 as pb

Mode: TypeAlias = Literal["either", "create", "resume", "replace"]
"""How a session is opened."""

MODES: Mapping[str, pb.OpenMode] = {
    "create": pb.OPEN_MODE_CREATE,
    "resume": pb.OPEN_MODE_RESUME,
    "either": pb.OPEN_MODE_EITHER,
    "replace": pb.OPEN_MODE_REPLACE,
}

MOST_STEPS = 2**32 - 1
"""Of a forecast or a text, on the wire; a server takes fewer."""

MOST_VERSIONS = 2**63 - 1

MOST_SEED = 2**64 - 1

MOST_FRESH = 2**24
"""Sessions that a pool makes ids for: of a number that was typed wrongly the ids alone would fill the memory."""

ID_BYTES = 256

MOST_SECONDS = 2_000_000
"""Of any setting: gRPC counts milliseconds in 31 bits."""

SCHEMES = ("unix", "unix-abstract", "dns", "ipv4", "ipv6", "vsock", "xds")
"""What gRPC itself reads before an address."""


def check_text(name: str, value: object, example: str = "") -> str:
    """A text that is not empty."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {came(value)}; expected a str{f', as in {example}' if example else ''}")
    if not value:
        raise ValueError(f"{name} is empty; expected a text{f', as in {example}' if example else ''}")
    _size(name, value)
    return value


def _size(name: str, text: str) -> int:
    """The bytes that a text has on the wire."""
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is {text[:40]!r}; expected what UTF-8 can write: {error.reason}") from error


def check_whole(name: str, value: object, least: int = 1, most: int = MOST_STEPS, hint: str = "") -> int:
    """A whole number; neither a bool nor a float is one."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {came(value)}; expected a whole number, {least} or more{hint}")
    if value < least:
        raise ValueError(f"{name} is {value}; expected {least} or more{hint}")
    if value > most:
        raise ValueError(f"{name} is {value}; expected {most} or less")
    return int(value)


def check_seconds(name: str, value: object) -> float:
    """Seconds, more than 0."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} is {came(value)}; expected seconds, more than 0")
    if not 0 < value <= MOST_SECONDS:
        raise ValueError(f"{name} is {value}; expected seconds, more than 0 and at most {MOST_SECONDS:,}")
    return float(value)


def check_share(share: object) -> float:
    """A part of a whole, above 0."""
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise TypeError(f"share is {came(share)}; expected a number above 0, at most 1")
    if not 0 < share <= 1:
        raise ValueError(f"share is {share!r}; expected a number above 0, at most 1, as 0.5 for half")
    return share


def check_flag(name: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {came(value)}; expected True or False")
    return bool(value)


def check_version(version: object) -> int | str | None:
    """A version's number, an alias of one, or None."""
    if version is None:
        return None
    return _version("version", version, ", an alias such as 'stable', or None")


def check_alias(name: str, alias: object) -> str:
    """A name for a version: letters, digits, "-", "_" and ".", the first a letter.

    Raises:
        TypeError: It is no text.
        ValueError: It is no such name.
    """
    if not isinstance(alias, str):
        raise TypeError(f"{name} is {came(alias)}; expected a name such as 'stable'")
    if not is_alias(alias):
        number = "; a version's number has no quotes" if alias.isascii() and alias.isdigit() else ""
        raise ValueError(
            f"{name} is {shortened(alias)!r}; expected an alias such as 'stable': 1 to {MOST_ALIAS} letters, digits,"
            f" '-', '_' and '.', the first a letter{number}"
        )
    return alias


def number_or_alias(version: int | str | None) -> tuple[int, str]:
    """A checked version as the wire has it: its number, 0 for none, and its alias, "" for none."""
    return (0, version) if isinstance(version, str) else (version or 0, "")


def naming(version: int | str | None) -> dict[str, Any]:
    """The same as the fields of a request."""
    number, alias = number_or_alias(version)
    return {"alias": alias} if alias else {"version": number}


def _version(name: str, version: object, hint: str) -> int | str:
    if isinstance(version, str):
        return check_alias(name, version)
    return check_whole(name, version, most=MOST_VERSIONS, hint=hint)


def check_model(model: object, version: object = None) -> None:
    """A model's name, and a version of it."""
    check_text("model", model, "'sunspots'")
    check_version(version)


def check_opening(
    model: object, mode: object, version: object, upgrade: object, initial_state: object, return_replies: object
) -> None:
    """What sessions are opened with."""
    check_model(model, version)
    open_mode(mode)
    wanted_version(version, upgrade)
    check_flag("return_replies", return_replies)
    if initial_state is not None and not isinstance(initial_state, Mapping):
        raise TypeError(
            f"initial_state is of type {type(initial_state).__name__}; expected a dict with an array for any state"
        )


def open_mode(mode: object) -> pb.OpenMode:
    """The wire's name of a mode.

    Raises:
        ValueError: There is no such mode.
        TypeError: It is no text.
    """
    if not isinstance(mode, str):
        raise TypeError(f"mode is {came(mode)}; expected one of {', '.join(map(repr, MODES))}")
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; expected one of {', '.join(map(repr, MODES))}")
    return MODES[mode]


def wanted_version(version: object, upgrade: object) -> tuple[int | str | None, bool]:
    """The version to open sessions in, None for their own or the newest, and whether those of others move there.

    Raises:
        ValueError: Both are given, or one is no version's number.
        TypeError: One is no number.
    """
    if upgrade is None or upgrade is False:
        return check_version(version), False
    if version is not None:
        raise ValueError(f"version is {version} and upgrade is {upgrade}; give the version to move to as upgrade alone")
    if upgrade is True:
        return None, True
    return _version("upgrade", upgrade, ", an alias, or True for the newest version"), True


def check_cursor(cursor: object) -> bytes:
    """A cursor, b"" for none.

    Raises:
        TypeError: It is not bytes.
        ValueError: It is too long.
    """
    if cursor is None:
        return b""
    if not isinstance(cursor, bytes):
        raise TypeError(f"cursor is {came(cursor)}; expected bytes")
    if len(cursor) > MAX_CURSOR_BYTES:
        raise ValueError(f"cursor has {len(cursor)} bytes; expected at most {MAX_CURSOR_BYTES}")
    return cursor


def check_cursors(cursors: object, count: int) -> list[bytes]:
    """The cursors of a pool's rows, None or b"" for none; no items where none has one.

    Raises:
        TypeError: One is not bytes.
        ValueError: One is too long, or there are not as many as rows.
    """
    if cursors is None:
        return []
    if isinstance(cursors, bytes | str) or not isinstance(cursors, Sequence):
        raise TypeError(f"cursors is {came(cursors)}; expected a list with bytes, or None, for each row")
    if len(cursors) != count:
        raise ValueError(f"cursors has {len(cursors)} entries; expected {count}, one for each row")
    found = [check_cursor(cursor) for cursor in cursors]
    return found if any(found) else []


def check_id(id: object) -> str:
    """The id of a session."""
    if not isinstance(id, str):
        raise TypeError(f"id is {came(id)}; expected a str, as in {str(id)[:40]!r}")
    size = _size("id", id)
    if not 1 <= size <= ID_BYTES:
        raise ValueError(f"id {id[:40]!r} has {size} bytes of UTF-8; expected 1 to {ID_BYTES}")
    return id


def session_ids(count: int | None, ids: Iterable[str] | None) -> list[str]:
    """The given ids, or so many fresh random ones.

    Raises:
        ValueError: There are not as many as sessions, one is empty or too long, or one comes twice.
        TypeError: One is no text.
    """
    if count is not None:
        check_whole("n", count, 0, MOST_FRESH, hint="; ids go by their name, as in sessions(model, ids=[…])")
    if ids is None:
        if count is None:
            raise ValueError("neither n nor ids came; expected how many sessions, or their ids")
        return [uuid.uuid4().hex for _ in range(count)]
    if isinstance(ids, str | bytes):
        raise TypeError(f"ids is the text {ids[:40]!r}; expected several, as in [{ids[:40]!r}]")
    if not isinstance(ids, Iterable):
        raise TypeError(f"ids is {came(ids)}; expected several texts, as in ['a', 'b']")
    found = [check_id(one) for one in ids]
    if count is not None and len(found) != count:
        raise ValueError(f"ids has {len(found)} entries; expected {count}")
    if len(set(found)) != len(found):
        raise ValueError("ids has an entry twice; expected different ids")
    return found


def check_snapshot(snapshot: object) -> bytes:
    """The bytes of a session."""
    if not isinstance(snapshot, bytes | bytearray | memoryview):
        raise TypeError(
            f"snapshot is {came(snapshot)}; expected the bytes that Session.snapshot gave, as in"
            " open(file, 'rb').read()"
        )
    return bytes(snapshot)


def check_outputs(outputs: object) -> list[str]:
    """Names of outputs; none for all."""
    if outputs is None:
        return []
    if isinstance(outputs, str) or not isinstance(outputs, Iterable):
        raise TypeError(f"outputs is {came(outputs)}; expected several names, as in ['y']")
    found = [check_text("an entry of outputs", one) for one in outputs]
    if len(set(found)) != len(found):
        raise ValueError("outputs has a name twice; expected each once")
    return found


def check_source(text: str) -> str:
    """A text to be encoded; it may be empty."""
    _size("text", text)
    return text


def is_whole(value: object) -> bool:
    """Whether a value is a whole number; neither a bool nor a float is one."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    """Whether a value is a real number; a bool is none."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def check_items(items: object, live: tuple[type, ...], pool: bool = False) -> None:
    """What a stream steps through.

    Args:
        items: That.
        live: What may be asynchronous.
        pool: Whether an item is for all rows of a pool.
    """
    if isinstance(items, AsyncIterable) and not isinstance(items, Iterable):
        if isinstance(items, live):
            return
        raise TypeError("items is asynchronous; expected an iterable, or the client of statestream.aio")
    if isinstance(items, str | bytes | Mapping) or not (
        isinstance(items, Iterable | AsyncIterable) or hasattr(items, "__getitem__")
    ):
        raise TypeError(f"items is {came(items)}; expected several, as in [x, x], each of which `step` would take")
    if pool and is_table(items):
        raise TypeError("items is a table, which is one step of a pool; expected several, as in [table, table]")


def check_messages(messages: object, live: tuple[type, ...]) -> None:
    """What a feed is of.

    Args:
        messages: That.
        live: What may be asynchronous.
    """
    if isinstance(messages, AsyncIterable) and not isinstance(messages, Iterable):
        if isinstance(messages, live):
            return
        raise TypeError("messages is asynchronous; expected an iterable, or the client of statestream.aio")
    if isinstance(messages, str | bytes | Mapping) or is_table(messages) or not isinstance(messages, Iterable):
        raise TypeError(
            f"messages is {came(messages)}; expected pairs of an id and a step, as in [('station-7', [1.0])]"
        )


def feed_message(message: object) -> tuple[str, Any]:
    """The id of a session, and its step.

    Raises:
        TypeError: It is no such pair.
        ValueError: The id is empty or too long.
    """
    if not isinstance(message, tuple | list) or len(message) != 2:
        raise TypeError(f"messages has {came(message)}; expected pairs of an id and a step, as in ('station-7', [1.0])")
    return check_id(message[0]), message[1]


def lookahead(items: object, ahead: int | None, most: int, live: tuple[type, ...]) -> int:
    """How many items of a stream are sent before the first output is waited for; `most` where nothing else was asked.

    Without a number an iterable has one under way: it may wait for the world, and an output should not wait with it.
    Lists and arrays do not wait, and what is `live` alone is taken from as outputs come.
    """
    if ahead is None:
        is_live = isinstance(items, live) and not isinstance(items, Iterable)
        return most if hasattr(items, "__len__") or is_live else 1
    return check_whole("ahead", ahead)


def came(value: object) -> str:
    """What came, for a message."""
    if value is None:
        return "None"
    text = repr(value)
    return f"{text[:40]}{'…' if len(text) > 40 else ''} of type {type(value).__name__}"


def parse_addresses(address: object) -> tuple[str, ...]:
    """Reads "host:port,host:port".

    Raises:
        ValueError: It names no address, or one has no port.
        TypeError: It is no text.
    """
    if not isinstance(address, str):
        raise TypeError(f"address is {came(address)}; expected 'host:port', as in 'localhost:8001'")
    found = tuple(part.strip() for part in address.split(",") if part.strip())
    if not found:
        raise ValueError(f"address is {address!r}; expected 'host:port', or several with commas")
    for one in found:
        scheme, slashes, rest = one.partition("://")
        if slashes and scheme not in SCHEMES:
            raise ValueError(
                f"address is {one!r}; expected 'host:port' without {scheme}://, as in {rest.split('/')[0]!r}"
            )
        if slashes or one.startswith(tuple(f"{scheme}:" for scheme in SCHEMES)):
            continue
        host, _, port = one.rpartition(":")
        if not host or not (port.isascii() and port.isdecimal()) or any(mark in host for mark in "/@ ?#"):
            raise ValueError(f"address is {one!r}; expected 'host:port', as in 'localhost:8001'")
        if not 1 <= int(port) <= 65535:
            raise ValueError(f"address is {one!r}; expected a port from 1 to 65535")
    return found
