"""A store older than what clients saw, as after a backup is restored: they are told, never set back silently."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import statestream
from statestream import errors
from statestream_server.upkeep.commands import store as command
from tests.server.stores.redis_server import redis_server
from tests.server.upkeep.conftest import Run
from tests.support.serving import Process, process

Emptied = Callable[[], None]


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.service)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Emptied]]:
    """The URL of a store, and what empties it."""
    if request.param == "redis":
        with redis_server(tmp_path) as server:
            yield server.patient, lambda: server.client.flushall()
        return

    def remove() -> None:
        for file in tmp_path.glob("sessions.db*"):
            if file.is_file():
                file.unlink()

    yield f"sqlite:{tmp_path / 'sessions.db'}", remove


@pytest.fixture
def url(place: tuple[str, Emptied]) -> str:
    return place[0]


def go_back(server: Process, run: Run, emptied: Emptied, file: Path) -> None:
    """The server is killed, the store lost, an older backup put in its place, and the server started again."""
    server.kill()
    emptied()
    done = run("restore", file)
    assert done.exit_code == 0, done.output
    server.start()


def total(session: statestream.Session, *values: float) -> float:
    """The sum after some steps more."""
    return float(np.asarray(session.step(np.asarray(values, np.float32)[:, None])).ravel()[-1])


@pytest.mark.parametrize("durability", ["interval", "sync"])
def test_who_saw_more_than_the_store_has_hears_state_lost_with_the_position(
    models_dir: Path, place: tuple[str, Emptied], run: Run, tmp_path: Path, durability: str
) -> None:
    """What was acknowledged as durable, in mode sync as in interval, and is not there any more."""
    options = ("--store", place[0], "--durability", durability, "--checkpoint-interval", "0.1")
    settings = statestream.Settings(replay_seconds=0)
    with (
        process(models_dir, *options) as server,
        statestream.connect(server.address, settings=settings) as client,
    ):
        kept = client.session("counter", id="kept")
        assert total(kept, 1, 2, 3) == 6
        kept.flush()
        claimed = client.session("counter", id="claimed")
        assert total(claimed, 1) == 1
        claimed.close()
        assert run("backup", tmp_path / "backup").exit_code == 0
        claimed = client.session("counter", id="claimed")
        assert (total(kept, 4, 5), total(claimed, 2)) == (15, 3)
        kept.flush()
        claimed.flush()
        assert (kept.durable_position, claimed.durable_position) == (5, 2)
        go_back(server, run, place[1], tmp_path / "backup")
        with pytest.raises(errors.StateLost) as lost:
            total(kept, 6)
        assert lost.value.metadata["position"] == "3"
        # Claimed since: what the store has of it may be another history, so nothing of it counts.
        with pytest.raises(errors.StateLost) as lost:
            total(claimed, 6)
        assert lost.value.metadata["position"] == "0"
        with statestream.connect(server.address) as other:
            again = other.session("counter", id="kept", mode="resume")
            assert (again.position, total(again, 4)) == (3, 10)


def test_who_can_send_again_what_the_store_lost_goes_on(
    models_dir: Path, place: tuple[str, Emptied], run: Run, tmp_path: Path
) -> None:
    """Inputs that the client still has count as if they had never been saved: nothing is lost, nothing twice."""
    options = ("--store", place[0], "--checkpoint-interval", "0.1")
    settings = statestream.Settings(replay_seconds=600)
    with (
        process(models_dir, *options) as server,
        statestream.connect(server.address, settings=settings) as client,
    ):
        session = client.session("counter", id="a")
        assert total(session, 1, 2, 3) == 6
        session.flush()
        assert run("backup", tmp_path / "backup").exit_code == 0
        assert total(session, 4, 5) == 15
        session.flush()
        go_back(server, run, place[1], tmp_path / "backup")
        assert total(session, 6) == 21
        session.flush()
        assert session.durable_position == 6


def test_the_command_is_a_group() -> None:
    assert sorted(command.commands) == ["backup", "check", "erase", "restore"]
