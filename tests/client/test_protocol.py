"""Which version of the protocol both sides speak."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestream import errors
from statestream.contract import protocol
from tests.client.fake_server import Fake
from tests.client.twins import Twin

NUMBERS = st.integers(1, 6)


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_what_is_agreed_on_is_the_newest_that_both_speak(a: int, b: int, c: int, d: int) -> None:
    mine, theirs = range(min(a, b), max(a, b) + 1), range(min(c, d), max(c, d) + 1)
    both = set(mine) & set(theirs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "OLDEST", mine[0])
        patch.setattr(protocol, "NEWEST", mine[-1])
        if both:
            assert protocol.agreed(theirs[-1], theirs[0]) == max(both)
        else:
            with pytest.raises(errors.Unsupported, match="upgrade the older"):
                protocol.agreed(theirs[-1], theirs[0])


async def test_a_server_of_another_protocol_is_told_at_connect_at_once(twin: Twin, fake: Fake) -> None:
    fake.world.protocol = protocol.NEWEST + 1
    with pytest.raises(errors.Unsupported, match=f"version {protocol.NEWEST + 1} of the protocol"):
        await twin.connect(fake.address)


async def test_calls_say_which_version_they_are_written_in(twin: Twin, fake: Fake) -> None:
    client = await twin.connect(fake.address)
    try:
        link = client._shards.first
        assert dict(link.metadata)[protocol.HEADER] == "1"
    finally:
        await twin.call(client.close)
