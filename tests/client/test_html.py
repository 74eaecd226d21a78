"""What notebooks show of models, sessions and pools: small tables; nothing that came from elsewhere is HTML in them."""

from __future__ import annotations

from xml.etree import ElementTree

from statestream.views import SessionInfo, read_model
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


async def test_a_server_and_what_it_lists(connect: Connect, twin: Twin) -> None:
    client = await connect()
    await twin.call(client.session, "sum", WICKED)
    info = await twin.call(client.info)
    assert repr(info).startswith(f"<ServerInfo {info.server_id}, version ")
    assert len(repr(info)) < 120
    assert {"max chunk steps", f"{info.limits.max_chunk_steps:,}"} <= set(cells(info._repr_html_()))
    described = SessionInfo("sum", 1, WICKED, 7, 3, 9, "resident", ephemeral=False, last_used=None)
    assert repr(described) == f"<SessionInfo {WICKED!r} of sum version 1: position 7, durable 3, resident>"
    assert {f"Session {WICKED}", "7", "resident"} <= set(cells(described._repr_html_()))
