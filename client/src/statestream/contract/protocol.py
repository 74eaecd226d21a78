"""Which versions of the protocol are spoken, and how the two sides agree on one."""

from __future__ import annotations

from typing import Final

from statestream.contract.errors import Unsupported

NEWEST: Final = 1
"""The newest version of the protocol that this release speaks."""
OLDEST: Final = 1
"""The oldest that it still speaks; docs/protocol.md says what each is."""
HEADER: Final = "x-statestream-protocol"
"""The metadata in which a call says the version that it is written in; a call without it is written in version 1."""


def agreed(newest: int, oldest: int) -> int:
    """The version that both sides speak: the newest that is within both ranges.

    Args:
        newest: The newest version that the other side speaks; 0 where it says nothing, which is version 1.
        oldest: The oldest that it speaks; 0 for the same as `newest`.

    Raises:
        Unsupported: There is none; `metadata` has this side's range.
    """
    newest = newest or 1
    oldest = oldest or newest
    version = min(newest, NEWEST)
    if version < max(oldest, OLDEST):
        raise Unsupported(
            f"the other side speaks {_range(newest, oldest)} of the protocol, this one {_range(NEWEST, OLDEST)}:"
            " upgrade the older of the two",
            metadata={"newest_protocol": str(NEWEST), "oldest_protocol": str(OLDEST)},
        )
    return version


def check_written_in(version: str | bytes) -> None:
    """Checks the version that a call says it is written in.

    Raises:
        Unsupported: This side does not read it, or it is no number.
    """
    text = version.decode("latin-1") if isinstance(version, bytes) else version
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Unsupported(f"{HEADER} is {text[:40]!r}; expected the number of a version of the protocol")
    agreed(int(text), int(text))


def _range(newest: int, oldest: int) -> str:
    return f"version {newest}" if newest == oldest else f"versions {oldest} to {newest}"
