"""Values of enums that only a newer server knows: told as their numbers, and nothing is taken for safe by them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from statestream import views
from statestream.contract.signature import SignatureError, loads
from statestream.v1 import model_pb2, server_pb2, session_pb2
from tests.client.wire import Wire
from tests.client.world import FEATURES

UNKNOWN = (5, 9, (1 << 31) - 1)


@pytest.mark.parametrize("number", UNKNOWN)
def test_what_is_shown_of_an_unknown_value_is_its_number(number: int) -> None:
    model = model_pb2.Model(name="m", kind=number, batch_invariance=number)  # type: ignore[arg-type]
    shown = views.read_model(model)
    assert (shown.kind, shown.batch_invariance) == (str(number), str(number))
    session = session_pb2.Session(id="a", residence=number)  # type: ignore[arg-type]
    assert views.read_session(session).residence == str(number)
    info = server_pb2.GetServerInfoResponse(durability=number)  # type: ignore[arg-type]
    assert views.read_server(info).durability == str(number)


@pytest.mark.parametrize("number", [0, *UNKNOWN])
def test_of_an_unknown_durability_nothing_is_taken_to_be_durable(wire: Wire, number: int) -> None:
    """A close without a stream waits for the next one where what was answered may not be saved."""
    (handle,) = handles = wire.open("a")
    wire.step(handle, np.ones((1, FEATURES)))
    wire.run()
    wire.core._durability(number)  # type: ignore[arg-type]
    close = wire.core.close(handles, delete=False)
    wire.cut()
    assert not close.done
    wire.settle()
    assert close.done
    assert not close.errors


def test_a_model_with_an_unknown_check_is_refused() -> None:
    state = {"input": "h", "output": "h2", "dtype": "float32", "shape": [2], "check": 9}
    with pytest.raises(SignatureError, match="check is 9; expected 0 to 3"):
        loads(
            json.dumps(
                {
                    "format": 1,
                    "inputs": [
                        {"name": "x", "dtype": "float32", "shape": [-1, -1, 2], "batch_axis": 0, "time_axis": 1}
                    ],
                    "outputs": [
                        {"name": "y", "dtype": "float32", "shape": [-1, -1, 2], "batch_axis": 0, "time_axis": 1}
                    ],
                    "states": [state],
                }
            )
        )
