"""Hostile files and values against real servers: one clear line, and everything else goes on."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

import numpy as np
import onnx
import pytest

from statestream.signature import Decoding, Signature, StateSpec, TensorSpec, Text
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import model_pb2
from statestream_server.models.proof import trials
from statestream_server.models.proof.verdict import TrialLimits
from tests.server.models import graphs
from tests.support import hostile, models
from tests.support.arrays import array_of, tensor
from tests.support.calls import Caller, connected, everything, failing
from tests.support.counter import numbers, sums
from tests.support.serving import Process, launched, process, serves_on, serving
from tests.support.speaker import Answer, Refusal, Speaker

TIGHT = ("--load-timeout", "1", "--load-memory", "256")


@pytest.mark.parametrize("kind", hostile.KILLERS)
def test_a_file_that_kills_costs_a_start_one_line(tmp_path: Path, kind: str) -> None:
    make, said = hostile.KILLERS[kind]
    models.write(tmp_path, "counter")
    path = hostile.put(make(), tmp_path, "bad")
    with process(tmp_path, "--store", "memory", *TIGHT) as server:
        lines = [line for line in server.lines if str(path) in line]
        assert len(lines) == 1
        assert server.wait_for(f"ERROR .*{said}")
        assert server.wait_for("serving counter version 1")
        assert "Traceback" not in server.output
        assert server.stop() == 0


@pytest.mark.parametrize("kind", hostile.KILLERS)
async def test_a_file_that_kills_is_refused_by_load_model_and_sessions_go_on(tmp_path: Path, kind: str) -> None:
    make, said = hostile.KILLERS[kind]
    models.write(tmp_path, "counter", "gru")
    limits = TrialLimits(seconds=1, megabytes=256)
    async with serving(tmp_path, trial=limits) as local, Speaker(local.channel, "counter") as speaker:
        await speaker.open_one("a")
        assert sums(await speaker.step(0, 0, numbers(1))) == [1]
        path = hostile.put(make(), tmp_path, "bad")
        caller = Caller(local.channel)
        failure = await failing(caller.models.LoadModel(model_pb2.LoadModelRequest(name="bad")))
        assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "UNSUPPORTED")
        assert failure.message.startswith(str(path))
        assert re.search(said, failure.message)
        (failed,) = [m for m in (await caller.models.ListModels(model_pb2.ListModelsRequest())).models if m.error]
        assert (failed.name, failed.error) == ("bad", failure.message)
        assert sums(await speaker.step(0, 1, numbers(2))) == [3]
        await serves_on(local.channel)


async def test_a_version_loads_while_another_hangs(tmp_path: Path) -> None:
    models.write_counter(tmp_path, 1)
    async with serving(tmp_path, trial=TrialLimits(seconds=60)) as local:
        hostile.put(hostile.endless(), tmp_path, "hangs")
        registry = local.server.registry
        hanging = asyncio.ensure_future(registry.load("hangs"))
        await local.until(lambda: registry._loads)
        models.write_counter(tmp_path, 2)
        load = model_pb2.LoadModelRequest(name="counter", version=2)
        assert (await Caller(local.channel).models.LoadModel(load)).model.version == 2
        await Caller(local.channel).models.UnloadModel(model_pb2.UnloadModelRequest(name="counter", version=2))
        assert not hanging.done()
        for child in trials.shared()._busy:
            child.kill()
        assert "the server is leaving" in str(await failing_load(hanging))


async def failing_load(load: object) -> str:
    try:
        await load  # type: ignore[misc]
    except Exception as error:
        return str(error)
    raise AssertionError("it was loaded")


def test_a_server_that_is_asked_to_leave_leaves_although_a_model_hangs(tmp_path: Path) -> None:
    models.write(tmp_path, "counter")
    hostile.put(hostile.endless(), tmp_path, "hangs")
    server = Process(tmp_path, ["--store", "memory", "--load-timeout", "600"])
    with launched(server):
        # The other model is served: the one that hangs is being tried.
        assert server.wait_for("serving counter version 1")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert "leaving before the start was over" in server.output
        assert "ready" not in server.output
        assert "Traceback" not in server.output


async def test_no_file_that_cannot_be_served_costs_more_than_one_clear_line(tmp_path: Path) -> None:
    folder = models.write(tmp_path / "models", "counter")
    for number, (make, _) in enumerate(hostile.REFUSED.values()):
        hostile.put(make(), folder, f"bad{number}")
    large = hostile.put(b"", folder, "large")
    os.truncate(large, (1 << 31) + 1)
    (tmp_path / "secret.onnx").write_bytes(models.gru().SerializeToString())
    (folder / "link.onnx").symlink_to(tmp_path / "secret.onnx")
    limits = ("--load-memory", "256", "--load-timeout", "20")
    with process(folder, "--store", f"sqlite:{tmp_path / 's.db'}", *limits) as server:
        said = [line for line in server.lines if re.search("ERROR|WARNING", line)]
        assert len(said) == len(hostile.REFUSED) + 2
        for number, (kind, (_, words)) in enumerate(hostile.REFUSED.items()):
            assert (
                len([line for line in said if re.search(f"ERROR .*bad{number}/1/model.onnx: .*(?:{words})", line)]) == 1
            ), kind
        assert [line for line in said if re.search(r"ERROR .*large/1/model.onnx: \d+ bytes; an ONNX file holds", line)]
        assert [line for line in said if re.search("WARNING .*link.onnx is not served: a link leads out of", line)]
        async with connected(server.address) as channel, Speaker(channel, "counter") as speaker:
            listed = (await Caller(channel).models.ListModels(model_pb2.ListModelsRequest())).models
            assert [model.name for model in listed if not model.error] == ["counter"]
            await speaker.open_one("a")
            assert sums(await speaker.step(0, 0, numbers(1))) == [1]
        assert server.stop() == 0


async def test_weights_that_are_nan_give_what_onnx_runtime_gives_or_are_refused(tmp_path: Path) -> None:
    hostile.put(hostile.adding(hostile.weight("w", np.asarray([1, np.nan, 3, 4], np.float32))), tmp_path, "nan")
    graphs.save(models.counter(factor=np.nan), tmp_path / "poisoned")
    models.write(tmp_path, "gru")
    async with serving(tmp_path) as local:
        caller = Caller(local.channel)
        asked = pb.PredictRequest(model="nan", inputs=[tensor("x", np.ones((1, 4), np.float32))])
        (answer,) = (await caller.inference.Predict(asked)).outputs
        np.testing.assert_array_equal(array_of(answer), [[2, np.nan, 4, 5]])
        failure = await failing(caller.step("poisoned", "a", numbers(1)))
        assert failure.reason == "NON_FINITE_STATE"
        await serves_on(local.channel)


def test_a_start_over_misplaced_files_says_what_it_found_and_what_it_expects(tmp_path: Path) -> None:
    graphs.save(models.scores(), tmp_path / "good" / "1")
    graphs.save(models.scores(), tmp_path / "net" / "latest")
    with process(tmp_path, "--store", "memory") as server:
        assert server.wait_for(
            r"WARNING .*net/latest/model.onnx is not served: 'latest' is no version; expected NAME.onnx, NAME/"
        )


def divider(*, states: bool) -> onnx.ModelProto:
    """y = 100 / (s + x) in whole numbers, or without memory 100 / x."""
    b, shape = graphs.Builder(), [-1, 1]
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="x", dtype="int64", shape=shape, batch_axis=0)],
        outputs=[TensorSpec(name="y", dtype="int64", shape=shape, batch_axis=0)],
    )
    total = "x"
    if states:
        signature.states.append(
            StateSpec(input="s", output="s_out", dtype="int64", shape=shape, batch_axis=0, start=[5])
        )
        total = b.add("Add", ["s", "x"], ["s_out"])
    b.add("Div", [b.constant(np.asarray(100, np.int64)), total], ["y"])
    return b.model(signature)


def pair(folder: Path) -> None:
    """An encoder that divides by the first letter's number, and a decoder that starts from that."""
    text = Text(vocabulary=list("0123"))
    b = graphs.Builder()
    first = b.add("Gather", ["source", b.constant(np.asarray([0]))], axis=1)
    quotient = b.add("Div", [b.constant(np.asarray(6, np.int64)), first])
    b.add("Cast", [quotient], ["memory"], to=hostile.FLOAT)
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="source", dtype="int64", shape=[-1, -1], batch_axis=0, time_axis=1, text=text)],
        outputs=[TensorSpec(name="memory", dtype="float32", shape=[-1, 1], batch_axis=0)],
    )
    graphs.save(b.model(signature), folder, "encoder.onnx")
    b = graphs.Builder()
    symbols = Text(vocabulary=["<s>", "<e>", *"abc"])
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="token", dtype="int64", shape=[-1], batch_axis=0)],
        outputs=[TensorSpec(name="scores", dtype="float32", shape=[-1, 5], batch_axis=0)],
        states=[
            StateSpec(input="h", output="h_out", dtype="float32", shape=[-1, 1], batch_axis=0, from_encoder="memory")
        ],
        decoding=Decoding(input="token", output="scores", start_token=0, end_token=1, text=symbols, max_tokens=3),
    )
    vector = b.add("Gather", [b.weight(5, 1), "token"], axis=0)
    b.add("Tanh", [b.add("Add", ["h", vector])], ["h_out"])
    b.add("MatMul", ["h_out", b.weight(1, 5, scale=1.0)], ["scores"])
    graphs.save(b.model(signature), folder, "decoder.onnx")


async def test_values_that_trap_a_processor_are_bad_tensors_for_every_kind_of_model(tmp_path: Path) -> None:
    """Over zero: of a prediction's input, of a session's state and input, of a text. Neighbours are not hurt."""
    graphs.save(divider(states=False), tmp_path / "plain" / "1")
    graphs.save(divider(states=True), tmp_path / "rows" / "1")
    pair(tmp_path / "pair" / "1")
    models.write(tmp_path, "gru")
    async with serving(tmp_path) as local, Speaker(local.channel, "rows") as speaker:
        assert local.server.registry.failures == {}
        caller, words = Caller(local.channel), "divides a whole number by zero"
        predict = pb.PredictRequest(model="plain", inputs=[tensor("x", np.asarray([[4], [0]]))])
        failure = await failing(caller.inference.Predict(predict))
        assert (failure.reason, words in failure.message) == ("BAD_TENSOR", True)
        await speaker.open("a", "b")
        chunks = [{"x": np.asarray([[value]])} for value in (-5, 5)]
        await speaker.send_chunk([0, 1], [0, 0], chunks)
        refused, answered = sorted(await speaker.rows(2), key=lambda row: row.handle)
        assert isinstance(refused, Refusal)
        assert isinstance(answered, Answer)
        assert (refused.failure.reason, words in refused.failure.message) == ("BAD_TENSOR", True)
        assert answered.outputs["y"].tolist() == [[10]]
        assert (await speaker.step(0, 0, {"x": np.asarray([[15]])})).outputs["y"].tolist() == [[5]]
        text = pb.GenerateRequest(model="pair", texts=["01"])
        failure = await failing(everything(caller.inference.Generate(text)))
        assert (failure.reason, words in failure.message) == ("BAD_TENSOR", True)
        await everything(caller.inference.Generate(pb.GenerateRequest(model="pair", texts=["21"])))
        await serves_on(local.channel)
