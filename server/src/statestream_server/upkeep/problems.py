"""Why the upkeep of a store ends without what was asked for."""

from __future__ import annotations

from typing import ClassVar


class UpkeepError(Exception):
    """Nothing, or not all, was done: what came, what was expected, what to do.

    Attributes:
        reason: The stable name of what went wrong; programs compare this, never the message.
    """

    reason: ClassVar[str] = "UPKEEP"


class BackupInvalid(UpkeepError):
    """The file is damaged, cut off, or no backup."""

    reason = "BACKUP_INVALID"


class BackupExists(UpkeepError):
    """There is a file already where the backup is to be."""

    reason = "BACKUP_EXISTS"


class StoreInUse(UpkeepError):
    """Servers that live use the store."""

    reason = "STORE_IN_USE"


class NewerRecords(UpkeepError):
    """The store has newer records than the backup."""

    reason = "NEWER_RECORDS"


class RecordsDamaged(UpkeepError):
    """The store has records that cannot be read."""

    reason = "RECORDS_DAMAGED"


class SessionsStay(UpkeepError):
    """Sessions are claimed anew as fast as they are erased."""

    reason = "SESSIONS_STAY"
