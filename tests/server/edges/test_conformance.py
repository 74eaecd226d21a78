"""HTTP/2 as RFC 9113 has it, over sockets: every case is refused or answered as it says, and others feel nothing."""

from __future__ import annotations

import pytest

from tests.server.edges.cases import CASES, GRPC, Answered, Broken, Case, Refused
from tests.support.http2 import Wire, wired
from tests.support.serving import Process


@pytest.mark.parametrize("case", [*CASES, *GRPC], ids=str)
async def test_frames_are_refused_or_answered_as_the_rfc_says(server: Process, case: Case) -> None:
    async with wired(server.address, *case.before) as wire:
        await wire.send(case.sent)
        await check(wire, case.wanted)


async def check(wire: Wire, wanted: Broken | Refused | Answered) -> None:
    if isinstance(wanted, Broken):
        end = await wire.ended()
        assert end is not None, f"the connection stands; it said {wire.got[-3:]}"
        assert end.code in wanted.codes, end
        return
    await wire.answered(wanted.stream)
    if isinstance(wanted, Answered):
        assert wire.status(wanted.stream) in [str(one) for one in wanted.statuses], (
            wire.headers,
            wire.reset_of(wanted.stream),
            wire.end,
        )
        assert await wire.alive()
    elif wire.end is not None:
        assert wire.end.code in wanted.codes, wire.end
    else:
        assert wire.reset_of(wanted.stream) in wanted.codes, wire.got[-3:]
        assert await wire.alive()
