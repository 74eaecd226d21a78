"""Wrapping graphs: which are refused, that the author's graph stays as it is, and that reads come before writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from statestream_server.models.graphs.fusion import fuse
from statestream_server.models.graphs.refused import FusionError
from statestream_server.models.graphs.runtime import providers_for
from statestream_server.models.memory.fused_rows import FusedRows
from tests.server.models import graphs


def test_the_wrapped_graph_is_valid_and_the_authors_is_not_changed() -> None:
    model, signature = graphs.recurrent("LSTM", layers=2, state_axis=0, feedback=True, features=2)
    before = model.SerializeToString(deterministic=True)
    wrapped, names = fuse(model, signature)
    onnx.checker.check_model(wrapped, full_check=True)
    assert model.SerializeToString(deterministic=True) == before
    inputs = {value.name for value in wrapped.graph.input}
    assert inputs == {names.source, names.target, *names.inputs, *(slab.before for slab in names.slabs)}
    outputs = {value.name for value in wrapped.graph.output}
    assert outputs == {names.bad, *names.outputs, *(slab.after for slab in names.slabs)}


def test_names_do_not_collide_with_the_authors() -> None:
    model, signature = graphs.recurrent("GRU", seed=1)
    wrapped, names = fuse(model, signature)
    again = onnx.ModelProto()
    again.CopyFrom(model)
    again.graph.node.append(helper.make_node("Identity", ["x"], [names.source]))
    both, other = fuse(again, signature)
    onnx.checker.check_model(both)
    assert other.source != names.source
    assert len(wrapped.graph.node) + 1 == len(both.graph.node)


def test_nodes_of_the_wrapping_do_not_have_names_that_the_author_gave_nodes() -> None:
    """ONNX Runtime refuses two nodes of one name."""
    model, signature = graphs.recurrent("GRU", seed=1)
    first = fuse(model, signature)[0].graph.node[0].name
    assert first
    model.graph.node[0].name = first
    wrapped, _ = fuse(model, signature)
    named = [node.name for node in wrapped.graph.node if node.name]
    assert len(named) == len(set(named))
    assert first in named


def test_a_state_without_any_reader_waits_for_its_gather() -> None:
    """Old values that go to an output only: nothing but an added dependency orders their read and their overwriting."""
    wrapped, names = fuse(*graphs.delay())
    makers = {name: node for node in wrapped.graph.node for name in node.output}
    waiting, above = [names.slabs[0].after], set[str]()
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.output[0] not in above:
            above.add(node.output[0])
            waiting.extend(node.input)
    gathers = {n.output[0] for n in wrapped.graph.node if n.op_type == "Gather" and names.slabs[0].before in n.input}
    assert gathers
    assert gathers <= above


def test_old_opsets_and_tangled_names_are_refused() -> None:
    model, signature = graphs.counter()
    old = onnx.ModelProto()
    old.CopyFrom(model)
    old.opset_import[0].version = 10
    with pytest.raises(FusionError, match="opset 10; wrapping needs 11"):
        fuse(old, signature)
    tangled = onnx.ModelProto()
    tangled.CopyFrom(model)
    tangled.graph.output.append(tangled.graph.input[0])
    with pytest.raises(FusionError, match="is an input and an output at once"):
        fuse(tangled, signature)


class Net(torch.nn.Module):
    """Two layers of LSTM and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = torch.nn.LSTM(3, 16, 2, batch_first=True), torch.nn.Linear(16, 2)

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y, (h, c) = self.cell(x, (h, c))
        return self.head(y), h, c


@pytest.mark.filterwarnings("ignore")  # Both exporters warn of things that are theirs.
@pytest.mark.parametrize("dynamo", [True, False])
def test_graphs_of_both_exporters_can_be_wrapped(dynamo: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, path = Net().eval(), tmp_path / "model.onnx"
    example = (torch.randn(2, 4, 3), torch.zeros(2, 2, 16), torch.zeros(2, 2, 16))
    names: dict[str, Any] = {"input_names": ["x", "h", "c"], "output_names": ["y", "h_out", "c_out"]}
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    if dynamo:
        shapes = {"x": {0: batch, 1: time}, "h": {1: batch}, "c": {1: batch}}
        torch.onnx.export(net, example, path, dynamo=True, external_data=False, dynamic_shapes=shapes, **names)
    else:
        axes = {
            "x": {0: "n", 1: "t"},
            "h": {1: "n"},
            "c": {1: "n"},
            "y": {0: "n", 1: "t"},
            "h_out": {1: "n"},
            "c_out": {1: "n"},
        }
        torch.onnx.export(net, example, path, dynamo=False, dynamic_axes=axes, **names)
    _, signature = graphs.recurrent("LSTM", hidden=16, layers=2)
    rows = FusedRows(onnx.load_model(path), signature, providers_for("cpu"), check_inputs=True)
    rows.grow(9)
    rows.reset(np.arange(9))
    x = torch.randn(3, 12, 3)
    chosen = np.asarray([5, 1, 8])
    parts = [
        rows.step(chosen, chosen, [np.ascontiguousarray(part)])[0][0] for part in np.split(x.numpy(), [1, 9], axis=1)
    ]
    zeros = torch.zeros(2, 3, 16)
    with torch.no_grad():
        expected, h, c = (value.numpy() for value in net(x, zeros, zeros))
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, rtol=1e-5, atol=1e-5)
    for found, wanted in zip(rows.read(chosen), (h, c), strict=True):
        np.testing.assert_allclose(found, wanted.transpose(1, 0, 2), rtol=1e-5, atol=1e-5)
