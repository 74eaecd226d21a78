"""The check of a store or a backup: every record is read whole; nothing is changed."""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from statestream.contract import errors
from statestream_server.models.files import modelfile, repository
from statestream_server.sessions import kept, layouts, records
from statestream_server.stores.base import NEWER, Lasting, Record, Scanned, Told

MOST_TOLD: Final = 1000
"""Findings that are kept; all are counted."""


@dataclass(slots=True)
class Tally:
    """What there is of one model version.

    Attributes:
        sessions: Records.
        tombstones: Deleted sessions that are remembered.
        replies: That nobody acknowledged.
        nbytes: Of the states and replies.
        damaged: Records of `sessions` and tombstones with a fault.
    """

    sessions: int = 0
    tombstones: int = 0
    replies: int = 0
    nbytes: int = 0
    damaged: int = 0


@dataclass(slots=True)
class Report:
    """What a check found.

    Attributes:
        tallies: By tenant, model and version.
        findings: What is wrong, the first `MOST_TOLD` of it.
        count: How much is wrong.
    """

    tallies: dict[tuple[str, str, int], Tally] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    count: int = 0

    def find(self, text: str) -> None:
        """Notes that something is wrong."""
        self.count += 1
        if len(self.findings) < MOST_TOLD:
            self.findings.append(text)


class Models:
    """What the models folder says of the versions whose sessions are checked."""

    def __init__(self, folder: Path | None) -> None:
        """Of a folder, or of none: then nothing is said."""
        found = repository.scan([folder]).found if folder else None
        self._found = None if found is None else {(one.name, one.version): one.path for one in found}
        self._digests: dict[tuple[str, int], int | None] = {}

    def fault(self, record: Record, columns: int) -> str:
        """Why no server of these models could go on with a record, "" where one could."""
        if self._found is None:
            return ""
        at = record.key.model, record.version
        if at not in self._found:
            return f"its version {record.version} is not in the models folder"
        if at not in self._digests:
            found = modelfile.columns(self._found[at])
            self._digests[at] = None if found is None else layouts.digest_of(found)
        if self._digests[at] not in (None, columns):
            return f"version {record.version} in the models folder keeps other columns than the record has"
        return ""


async def check(store: Lasting, models: Models, told: Told) -> Report:
    """Reads every record of a store and looks for what belongs to none; servers may write meanwhile.

    Raises:
        StoreUnavailable: The store does not answer.
    """
    upkeep = store.upkeep()
    report = await read(upkeep.scan(), models, await upkeep.count(), told)
    for text in await upkeep.orphans():
        report.find(text)
    return report


async def read(pieces: AsyncIterable[Sequence[Scanned]], models: Models, total: int, told: Told) -> Report:
    """Reads records, whatever they come from."""
    report, done = Report(), 0
    async for piece in pieces:
        for what, record, fault in piece:
            _look(report, models, what, record, fault)
        done += len(piece)
        told(done, max(done, total))
    return report


def _look(report: Report, models: Models, what: str, record: Record | None, fault: str) -> None:
    if record is None:
        report.find(f"{what}: {fault}")
        return
    tally = report.tallies.setdefault((record.key.tenant, record.key.model, record.version), Tally())
    if record.epoch == NEWER:
        fault = fault or "a newer release wrote it; check it with that release"
    elif not record.live:
        tally.tombstones += 1
    else:
        tally.sessions += 1
        fault = fault or _fault(record, models, tally, what)
    if fault:
        tally.damaged += 1
        report.find(f"{what}: {fault}")


def _fault(record: Record, models: Models, tally: Tally, what: str) -> str:
    """What is wrong with a live record, "" for nothing."""
    if record.fence > record.epoch:
        return f"its fence {record.fence} is above its epoch {record.epoch}"
    if record.blob is None:
        return f"it stands at position {record.position}, and its state is missing" if record.position else ""
    try:
        header = records.read_header(record.blob, what=what)
    except (errors.StateLost, errors.StoreUnavailable) as error:
        return error.message
    tally.replies += header.replies
    tally.nbytes += len(record.blob)
    origin, _ = records.tail(record.blob)
    if max(header.acked, origin) > record.position:
        return (
            f"it stands at position {record.position}, below what was acknowledged ({header.acked}) or its last reset"
            f" ({origin})"
        )
    rest = len(record.blob) - records.HEADER_BYTES - header.row_bytes - records.tail_bytes(record.blob)
    if not _replies_fit(record.blob, header, rest, record.position):
        return f"its {header.replies} replies do not fit the {rest} bytes behind its row, or its position"
    return models.fault(record, header.columns)


def _replies_fit(blob: bytes, header: records.Header, size: int, position: int) -> bool:
    """Whether some bytes can be the kept replies of a session, one behind the other up to its position.

    How many bytes a step's outputs have the record does not say; they must come out as the same for all replies.
    """
    fields, count = kept.REPLY_FIELDS, header.replies
    outputs = size - count * fields.size
    if not count or outputs < 0:
        return size == 0
    at = records.HEADER_BYTES + header.row_bytes
    positions = position - kept.read_reply(blob, at)[0]
    # Marks take a position each and have no steps.
    for marks in range(max(0, count - positions), min(count, positions) + 1) if positions >= 0 else ():
        steps = positions - marks
        if (not steps and outputs) or (steps and outputs % steps):
            continue
        if _follow(blob, at, count, outputs // steps if steps else 0, position):
            return True
    return False


def _follow(blob: bytes, at: int, count: int, step_bytes: int, position: int) -> bool:
    fields, due = kept.REPLY_FIELDS, -1
    for _ in range(count):
        if at + fields.size > len(blob):
            return False
        start, steps, _, _ = kept.read_reply(blob, at)
        if due not in (-1, start):
            return False
        due, at = start + max(1, steps), at + fields.size + steps * step_bytes
    return due == position


def plain(report: Report) -> Mapping[str, object]:
    """A report as JSON values."""
    return {
        "models": [
            {
                "tenant": tenant,
                "model": model,
                "version": version,
                **{name: getattr(tally, name) for name in Tally.__slots__},
            }
            for (tenant, model, version), tally in sorted(report.tallies.items())
        ],
        "findings": report.findings,
        "count": report.count,
    }
