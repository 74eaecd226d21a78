"""Edges of forms: bfloat16 is float32 where it comes in and goes out, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from statestream_server.arrays import Array
from statestream_server.models.form.draft import drafted
from statestream_server.models.form.plan import Plan
from statestream_server.models.form.told import Told
from statestream_server.models.graphs.runtime import providers_for
from statestream_server.models.proof import making
from tests.server.models import graphs
from tests.server.models.form_zoo_edges import bfloat, bfloat_edges

_BFLOAT16 = onnx.TensorProto.BFLOAT16
_CPU = ["CPUExecutionProvider"]


def formed(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    draft = drafted(proto, Told())
    plan = Plan(onnx.ModelProto(), draft.changes)  # type: ignore[arg-type]  # Only its changes are asked.
    return onnxruntime.InferenceSession(plan.applied(proto).SerializeToString(), providers=_CPU)


def test_states_of_bfloat16_have_the_bits_of_a_loop_that_keeps_them_as_they_are() -> None:
    proto, rng = bfloat_edges(), np.random.default_rng(3)
    alone = onnxruntime.InferenceSession(proto.SerializeToString(), providers=_CPU)
    ours, narrow = formed(proto), onnx.helper.tensor_dtype_to_np_dtype(_BFLOAT16)

    def held(values: Array) -> Any:
        bits = values.astype(narrow).view(np.uint16)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16)

    state, kept = held(np.zeros((2, 3), np.float32)), np.zeros((2, 3), np.float32)
    for _ in range(5):
        x = rng.standard_normal((2, 3)).astype(np.float32)
        y, state = alone.run_with_ort_values(["y", "h_next"], {"x": held(x), "h": state})
        found, kept = ours.run(["y", "h_next"], {"x": x, "h": kept})
        assert found.tobytes() == y.numpy().tobytes()


def test_what_computes_in_bfloat16_has_the_bits_of_float32_rounded_at_every_operator() -> None:
    by_hand = onnxruntime.InferenceSession(bfloat(np.float32).SerializeToString(), providers=_CPU)
    ours, rng = formed(bfloat()), np.random.default_rng(4)
    kept = [np.zeros((2, 4), np.float32)] * 2
    for _ in range(5):
        x = rng.standard_normal((2, 3)).astype(np.float32)
        results = [
            each.run(["y", "h_next"], {"x": x, "h": state}) for each, state in zip((ours, by_hand), kept, strict=True)
        ]
        assert results[0][0].tobytes() == results[1][0].tobytes()
        kept = [result[1] for result in results]


def test_what_is_done_for_bfloat16_is_told(tmp_path: Path) -> None:
    verdict = making.prove(graphs.save(bfloat(), tmp_path), providers_for("cpu"))
    assert verdict.plan is not None
    said = [text for about, text in verdict.plan["notes"] if about == "surgery"]
    assert said == [
        "bfloat16 is float32 where it comes in and goes out: x, h, y, h_next",
        "operators that ONNX Runtime lacks compute in float32 and round: Add of bfloat16, MatMul of bfloat16,"
        " Tanh of bfloat16",
    ]
    assert verdict.fused
