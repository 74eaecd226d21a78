"""The warm-up: a start imports what the first answers need, and a moment later there is nothing left to import."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import statestream_server
from statestream_server import warmup

_CODE = """
import json, sys
from statestream_server import app, warmup
before = sorted(sys.modules)
warmup._imported()
print(json.dumps([before, sorted(sys.modules)]))
"""
_ROOMS = ("drivers", "edges.grpc", "edges.oip", "engine", "models", "quarantine", "sessions")
_ELSEWHERE = "statestream_server.models.proof."
"""Of these, most are a trial's, which is a process of its own."""


def test_what_a_start_leaves_out_is_imported_a_moment_later() -> None:
    done = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, check=True, timeout=60)
    before, after = map(set, json.loads(done.stdout))
    late = {name for name in warmup._MODULES if "." in name}  # Of Python's own, others may need some.
    assert not late & before
    assert set(warmup._MODULES) <= after
    rooms = tuple(f"statestream_server.{room}." for room in _ROOMS)
    there = {each.name for each in pkgutil.walk_packages(statestream_server.__path__, "statestream_server.")}
    left = {name for name in there - after if name.startswith(rooms) and not name.startswith(_ELSEWHERE)}
    # What finds the form of a file is a trial's, too; what comes with the HTTP port, and with our own HTTP/2, comes
    # before the start is over.
    ports = {"bodies", "prefixed", "served"}
    assert {name.rpartition(".")[2] for name in left} == {"apart", "axes", "draft", "freed", "places", *ports}
