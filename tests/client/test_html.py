"""What notebooks show of models, sessions and pools: small tables; nothing that came from elsewhere is HTML in them."""

from __future__ import annotations

from xml.etree import ElementTree

from statestream.views import SessionInfo, Statistics, read_model
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
    assert repr(info.limits).startswith("<Limits: ")
    assert len(repr(info.limits)) < 160
    assert {"max beams", f"{info.limits.max_chunk_steps:,}"} <= set(cells(info.limits._repr_html_()))


def test_statistics() -> None:
    none = Statistics(0, 0, 0, 0, 0.0, 0, {}, (), (), {}, 0)
    assert repr(none) == "<Statistics: 0 steps in 0 batches of 0 rows, 0 s in models, 0 chunks queued, 0 failed>"
    assert "not larger because" not in cells(none._repr_html_())
    found = Statistics(
        batches=2000,
        rows=5000,
        steps=123456,
        failed_chunks=3,
        model_seconds=1.23456,
        threaded_batches=7,
        reasons={WICKED: 1999, "all": 1},
        sizes=tuple(range(30)),
        waits=tuple(range(30)),
        classes={"live": (2000, 1.25)},
        queued_chunks=4,
    )
    assert (
        repr(found)
        == "<Statistics: 123,456 steps in 2,000 batches of 2.5 rows, 1.23 s in models, 4 chunks queued, 3 failed>"
    )
    shown = {"123,456", "class live", "2,000 batches, 1.25 s", "4 queued, 3 failed", f"{WICKED} 1,999, all 1"}
    assert shown <= set(cells(found._repr_html_()))
