"""The profile: its map of the server is the server's, its shares are all of the time, and a real one makes sense."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import statestream_server
from benchmarks import models, profile
from benchmarks.sampled import BETWEEN, PHASES, REST, ROOMS, RUN, phase_of

SOURCES = Path(statestream_server.__file__).parents[1]


def test_every_room_and_function_of_the_map_is_there() -> None:
    for room, _ in ROOMS:
        assert room == "onnxruntime/" or (SOURCES / room).exists(), room
    for file, function in BETWEEN:
        assert re.search(rf"def {function}\(", (SOURCES / file).read_text()), (file, function)
    rooms = {folder.name for folder in (SOURCES / "statestream_server").iterdir() if (folder / "__init__.py").exists()}
    mapped = {room.split("/")[1] for room, _ in ROOMS if room.count("/") > 1 or room.endswith("/")}
    assert rooms - mapped == {"access", "drivers", "quarantine", "upkeep", "workers"}, (
        "a folder of the server that the profile calls event loop"
    )


def test_what_is_seen_in_the_loops_that_only_await_is_not_theirs() -> None:
    file, function = next(iter(BETWEEN))
    assert phase_of(f"/anywhere/{file}", function) == REST
    assert phase_of(f"/anywhere/{file}", "another") != REST
    assert phase_of("/anywhere/asyncio/events.py", "_run") is None


@given(
    st.lists(st.floats(0.001, 10), min_size=len(PHASES), max_size=len(PHASES)),
    st.floats(0, 3),
    st.floats(0.1, 3),
)
def test_shares_are_all_of_the_time(seconds: list[float], loop: float, wall: float) -> None:
    found = {"loop": loop, "others": 0.0, "client": 0.0, "wall": wall}
    case = profile.shares(found, dict(zip(PHASES, seconds, strict=True)), 1000.0)
    assert set(case["shares"]) == {*PHASES, profile.IDLE}
    assert sum(case["shares"].values()) == pytest.approx(1, abs=1e-2)
    assert all(share >= 0 for share in case["shares"].values())


@pytest.mark.slow
def test_a_pool_spends_its_time_in_the_model_and_its_server_less_than_the_clock(tmp_path: Path) -> None:
    models.make(tmp_path / "models")
    found = profile.measure(tmp_path / "models", tmp_path, 1.5)
    for case in found["cases"].values():
        assert case["steps_per_second"] > 0
        assert case["loop_us"] <= 1.2 * case["wall_us"]
    busy = {phase: share for phase, share in found["cases"]["pool, 256 × 16"]["shares"].items() if phase in PHASES}
    assert max(busy, key=lambda phase: busy[phase]) == RUN
