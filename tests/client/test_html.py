"""What notebooks show of models, sessions and pools: small tables; nothing that came from elsewhere is HTML in them."""

from __future__ import annotations

from xml.etree import ElementTree

from statestream.views import read_model
from tests.client.fake_server import Fake
from tests.client.twins import Connect, Twin
from tests.client.world import ones

WICKED = "<script>alert('1')</script>&"


def cells(text: str) -> list[str]:
    """The texts of a table, which is one element and well formed."""
    root = ElementTree.fromstring(text)
    assert root.tag == "table"
    assert not root.findall(".//script")
    return ["".join(cell.itertext()) for tag in ("caption", "th", "td") for cell in root.iter(tag)]


async def test_sessions_and_pools(connect: Connect, twin: Twin) -> None:
    client = await connect()
    session = await twin.call(client.session, "sum", WICKED)
    await twin.call(session.step, ones(3))
    shown = cells(session._repr_html_())
    assert f"Session {WICKED}" in shown
    assert {"3", "sum, version 1", "no"} <= set(shown)
    await twin.call(session.close)
    assert "yes" in cells(session._repr_html_())
    pool = await twin.call(client.sessions, "sum", ids=[WICKED + str(number) for number in range(30)])
    shown = cells(pool._repr_html_())
    assert "Pool of 30 sessions of sum, version 1" in shown
    assert WICKED + "19" in shown
    assert WICKED + "20" not in shown
    assert "… and 10 more" in shown


def test_models(fake: Fake) -> None:
    message = fake.models["sum"]
    message.signature.description, message.error = WICKED, WICKED
    shown = cells(read_model(message)._repr_html_())
    assert {"sum, version 1", "x float32[?, ?, 2]", WICKED} <= set(shown)
