"""tritonclient, unchanged, against this server: health, metadata, runs, sequences, streams, model control."""

from __future__ import annotations

import asyncio
import contextlib
import io
import queue
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from statestream import aio
from statestream_server.edges.oip import oip_pb2
from tests.server.models.graphs import save
from tests.support import models, pages
from tests.support.calls import DEADLINE
from tests.support.serving import Local, Process, process, serving

RNG = np.random.default_rng(16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write(tmp_path_factory.mktemp("models"), "lstm", "counter", "scores", "tokens")


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    store = tmp_path_factory.mktemp("store") / "sessions.db"
    with process(folder, "--store", f"sqlite:{store}") as server:
        yield server


@pytest.fixture
def client(server: Process) -> Iterator[Any]:
    with triton.InferenceServerClient(server.address) as client:
        yield client


def tensor(name: str, array: np.ndarray, datatype: str = "FP32") -> Any:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def x(array: np.ndarray) -> list[Any]:
    return [tensor("x", array)]


def refused(error: pytest.ExceptionInfo[Any], code: grpc.StatusCode, *words: str) -> None:
    assert error.value.status() == f"StatusCode.{code.name}", error.value
    for word in words:
        assert word in error.value.message(), error.value


@pytest.mark.parametrize("message", oip_pb2.DESCRIPTOR.message_types_by_name)
def test_every_message_is_on_the_wire_what_tritons_is(message: str) -> None:
    """Fields are a subset: numbers, names, types and labels agree; so do the values of enums."""
    theirs: Any = {**service_pb2.DESCRIPTOR.message_types_by_name, **model_config_pb2.DESCRIPTOR.message_types_by_name}
    _agree(oip_pb2.DESCRIPTOR.message_types_by_name[message], theirs[message])


def _agree(ours: Any, theirs: Any) -> None:
    for field in ours.fields:
        other = theirs.fields_by_name[field.name]
        assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated), (
            field.name
        )
        if field.enum_type is not None:
            names = [{value.name: value.number for value in kind.values} for kind in (field.enum_type, other.enum_type)]
            assert names[0] == names[1]
    for nested in ours.nested_types:
        _agree(nested, theirs.nested_types_by_name[nested.name])


def test_the_pages_block_runs() -> None:
    block = pages.run_by("docs/oip.md", "tests/compat/test_tritonclient.py::test_the_pages_block_runs")
    printed = io.StringIO()
    with process(pages.ROOT / "deploy/models", "--store", "memory") as server, contextlib.redirect_stdout(printed):
        exec(compile(block.text.replace("localhost:8001", server.address), "docs/oip.md", "exec"), {})
    assert printed.getvalue() == block.output


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("lstm")
    assert client.is_model_ready("lstm", "1")
    assert not client.is_model_ready("lstm", "2")
    assert not client.is_model_ready("nothing")
    about = client.get_server_metadata(as_json=True)
    assert about["name"] == "statestream"
    assert {"sequence", "sequence(string_id)", "classification"} <= set(about["extensions"])
    model = client.get_model_metadata("scores", as_json=True)
    assert model["versions"] == ["1"]
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}]
    assert [output["datatype"] for output in model["outputs"]] == ["FP32", "INT64"]
    config = client.get_model_config("counter").config
    assert config.max_batch_size == 1
    assert [state.input_name for state in config.sequence_batching.state] == ["s"]
    assert client.get_model_config("scores").config.HasField("dynamic_batching")
    with pytest.raises(InferenceServerException) as error:
        client.get_model_metadata("nothing")
    refused(error, grpc.StatusCode.NOT_FOUND, "nothing", "lstm")


def test_a_run_gives_what_onnx_runtime_gives(client: Any, folder: Path) -> None:
    rows = RNG.standard_normal((5, 4)).astype(np.float32)
    expected = onnxruntime.InferenceSession(folder / "scores" / "1" / "model.onnx").run(None, {"x": rows})
    found = client.infer("scores", x(rows), request_id="r1")
    assert found.get_response().id == "r1"
    assert found.as_numpy("scores").tobytes() == expected[0].tobytes()
    assert found.as_numpy("best").tolist() == expected[1].tolist()
    best = client.infer("scores", x(rows), outputs=[triton.InferRequestedOutput("best")])
    assert [output.name for output in best.get_response().outputs] == ["best"]


def test_classes_are_told_by_score_number_and_name(client: Any) -> None:
    rows = RNG.standard_normal((3, 4)).astype(np.float32)
    scores = client.infer("scores", x(rows)).as_numpy("scores")
    told = client.infer("scores", x(rows), outputs=[triton.InferRequestedOutput("scores", class_count=2)])
    found = told.as_numpy("scores")
    assert found.shape == (3, 2)
    for row, words in zip(scores, found.tolist(), strict=True):
        best = np.argsort(-row, kind="stable")[:2]
        assert [word.decode() for word in words] == [f"{row[i]:f}:{i}:{'abc'[i]}" for i in best]


def test_typed_contents_and_bf16_are_read(server: Process) -> None:
    rows = RNG.standard_normal((2, 4)).astype(np.float32)
    coarse = (rows.view(np.uint32) & 0xFFFF0000).view(np.float32)
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="scores")
        request.inputs.add(name="x", datatype="FP32", shape=[2, 4]).contents.fp32_contents.extend(rows.ravel())
        typed = stub.ModelInfer(request, timeout=DEADLINE)
        request = service_pb2.ModelInferRequest(model_name="scores")
        request.inputs.add(name="x", datatype="BF16", shape=[2, 4])
        request.raw_input_contents.append((rows.view(np.uint32) >> 16).astype("<u2").tobytes())
        short = stub.ModelInfer(request, timeout=DEADLINE)
    with triton.InferenceServerClient(server.address) as client:
        assert typed.raw_output_contents[0] == client.infer("scores", x(rows)).as_numpy("scores").tobytes()
        assert short.raw_output_contents[0] == client.infer("scores", x(coarse)).as_numpy("scores").tobytes()


async def test_a_sequence_has_the_bits_of_a_session(server: Process) -> None:
    steps = RNG.standard_normal((12, 3)).astype(np.float32)
    async with aio.connect(server.address) as ours, triton_aio.InferenceServerClient(server.address) as theirs:
        session = await ours.session("lstm")
        expected = [await session.step(step) for step in steps]
        await session.close()
        found = []
        for number, step in enumerate(steps):
            answer = await theirs.infer(
                "lstm", x(step[None, None]), sequence_id=77, sequence_start=not number, sequence_end=number == 11
            )
            found.append(answer.as_numpy("y")[0, 0])
            assert answer.get_response().parameters["sequence_position"].int64_param == number + 1
        assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()
        whole = await theirs.infer("lstm", x(steps[None]), sequence_id="in one", sequence_start=True, sequence_end=True)
        assert whole.as_numpy("y")[0].tobytes() == np.asarray(expected).tobytes()
        with pytest.raises(InferenceServerException) as error:
            await theirs.infer("lstm", x(steps[None]), sequence_id=77)
        refused(error, grpc.StatusCode.INVALID_ARGUMENT, "sequence_start", "'77'")


def test_a_start_begins_anew(client: Any) -> None:
    one = np.ones((1, 1), np.float32)
    assert client.infer("counter", x(one), sequence_id=5, sequence_start=True).as_numpy("y").tolist() == [[1]]
    assert client.infer("counter", x(one), sequence_id=5).as_numpy("y").tolist() == [[2]]
    assert client.infer("counter", x(one * 7), sequence_id=5, sequence_start=True).as_numpy("y").tolist() == [[7]]
    assert client.infer("counter", x(one), sequence_id="5").as_numpy("y").tolist() == [[8]]


def test_what_comes_twice_is_applied_once(client: Any) -> None:
    one = np.ones((1, 1), np.float32)

    def total(value: float, **more: Any) -> float:
        return float(client.infer("counter", x(one * value), **more).as_numpy("y")[0, 0])

    for _ in range(2):
        assert total(1, sequence_id="by id", sequence_start=True, request_id="a") == 1
    for _ in range(3):
        assert total(2, sequence_id="by id", request_id="b") == 3
    count = {"sequence_position": 0}
    for _ in range(2):
        assert total(1, sequence_id="by position", sequence_start=True, parameters=count) == 1
    for _ in range(3):
        assert total(4, sequence_id="by position", parameters={"sequence_position": 1}) == 5
    with pytest.raises(InferenceServerException) as error:
        total(9, sequence_id="by position", parameters={"sequence_position": 1})
    refused(error, grpc.StatusCode.FAILED_PRECONDITION)
    with pytest.raises(InferenceServerException) as error:
        total(9, sequence_id="by position", parameters={"sequence_position": 9})
    refused(error, grpc.StatusCode.OUT_OF_RANGE)
    # The first steps are others than those of the sequence that had the name: it starts anew.
    assert total(6, sequence_id="by position", sequence_start=True, parameters=count) == 6


def test_a_sequence_survives_a_kill(folder: Path, tmp_path: Path) -> None:
    steps = RNG.standard_normal((8, 1, 1, 3)).astype(np.float32)
    with process(folder, "--store", f"sqlite:{tmp_path / 'sessions.db'}") as server:
        with triton.InferenceServerClient(server.address) as client:
            expected = client.infer("lstm", x(steps.reshape(1, 8, 3)), sequence_id=1, sequence_start=True)
            found = [
                client.infer("lstm", x(step), sequence_id=2, sequence_start=not number).as_numpy("y")[0]
                for number, step in enumerate(steps[:5])
            ]
        server.kill()
        server.start()
        with triton.InferenceServerClient(server.address) as client:
            found += [client.infer("lstm", x(step), sequence_id=2).as_numpy("y")[0] for step in steps[5:]]
    assert np.concatenate(found).tobytes() == expected.as_numpy("y").tobytes()


def test_a_stream_answers_sequences_in_their_order_and_errors_beside_them(client: Any) -> None:
    came: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: came.put((result, error)))
    one = np.ones((1, 1), np.float32)
    for step in range(20):
        for sequence in (1001, 1002, 1003):
            client.async_stream_infer(
                "counter",
                x(one * sequence),
                sequence_id=sequence,
                sequence_start=not step,
                request_id=f"{sequence}" if step else "",
            )
    client.async_stream_infer("counter", x(one), sequence_id=0, request_id="lost")
    found: dict[int, list[float]] = {1001: [], 1002: [], 1003: []}
    wrong = []
    for _ in range(61):
        result, error = came.get(timeout=DEADLINE)
        if error is not None:
            wrong.append(error.message())
        else:
            value = float(result.as_numpy("y")[0, 0])
            found[result.get_response().parameters["sequence_id"].int64_param].append(value)
    client.stop_stream()
    assert len(wrong) == 1
    assert "sequence_id" in wrong[0]
    # A step that comes again under its request's id is answered again: "1001" came 19 times, and counted once.
    for sequence, values in found.items():
        assert values == [sequence, *[2 * sequence] * 19]


def test_models_are_loaded_and_unloaded(client: Any, folder: Path) -> None:
    models.write(folder, "gru")
    index = {model["name"]: model for model in client.get_model_repository_index(as_json=True)["models"]}
    assert index["lstm"]["state"] == "READY"
    client.load_model("gru")
    assert client.is_model_ready("gru")
    client.unload_model("gru")
    assert not client.is_model_ready("gru")
    with pytest.raises(InferenceServerException) as error:
        client.load_model("gru", config="{}")
    refused(error, grpc.StatusCode.UNIMPLEMENTED, "config", "folder")
    with pytest.raises(InferenceServerException) as error:
        client.load_model("nothing")
    refused(error, grpc.StatusCode.NOT_FOUND)


def test_statistics_count_what_was_asked(client: Any) -> None:
    def counted() -> Any:
        return client.get_inference_statistics("scores").model_stats[0]

    before = counted()
    client.infer("scores", x(np.zeros((3, 4), np.float32)))
    with pytest.raises(InferenceServerException):
        client.infer("scores", x(np.zeros((3, 5), np.float32)))
    after = counted()
    assert after.inference_count - before.inference_count == 3
    assert after.inference_stats.success.count - before.inference_stats.success.count == 1
    assert after.inference_stats.fail.count - before.inference_stats.fail.count == 1


def test_what_is_not_here_says_so(client: Any) -> None:
    for call in (client.get_system_shared_memory_status, client.get_trace_settings, client.get_log_settings):
        with pytest.raises(InferenceServerException) as error:
            call()
        refused(error, grpc.StatusCode.UNIMPLEMENTED, "shared memory")


async def test_sequences_share_batches_with_sessions(local: Local) -> None:
    one, many = np.ones((1, 1), np.float32), range(1, 9)
    async with aio.connect(local.address) as ours, triton_aio.InferenceServerClient(local.address) as theirs:
        sessions = [await ours.session("counter") for _ in many]
        for number, session in zip(many, sessions, strict=True):
            await session.step(one[0])
            await theirs.infer("counter", x(one), sequence_id=number, sequence_start=True)
        sizes = local.server.engine.statistics.sizes
        with local.engine_held():
            steps = [asyncio.ensure_future(session.step(one[0])) for session in sessions]
            steps += [asyncio.ensure_future(theirs.infer("counter", x(one), sequence_id=n)) for n in many]
            await local.until(lambda: local.server.engine.queued == 2 * len(many))
        await asyncio.gather(*steps)
        assert any(sizes[4:]), f"no batch had more than 8 rows: {sizes}"


async def test_a_stream_is_read_no_further_than_its_window(tmp_path: Path) -> None:
    """Requests of one sequence wait for each other; what waits is bounded, and all of it is answered."""
    count, most = 60, 200_000
    x = np.ones((1, 4000), np.float32)
    request = service_pb2.ModelInferRequest(model_name="wide", raw_input_contents=[x.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=x.shape)
    request.parameters["sequence_id"].int64_param = 1
    folder = tmp_path / "models"
    save(models.counter(width=4000), folder / "wide" / "1")

    async def asked() -> AsyncIterator[Any]:
        for number in range(count):
            request.parameters["sequence_start"].bool_param = not number
            yield request

    async with serving(folder, limits={"max_window_bytes": most}) as local:
        accounts = local.server.accounts
        call = local.channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )(asked(), timeout=DEADLINE)
        with local.engine_held():
            await local.until(lambda: accounts.held > most // 2)
            for _ in range(50):
                await asyncio.sleep(0)
                assert accounts.held <= most
        answers = [answer async for answer in call]
        assert [answer.error_message for answer in answers] == [""] * count
        last = np.frombuffer(answers[-1].infer_response.raw_output_contents[0], np.float32)
        assert (last == count).all()
        await local.until(lambda: accounts.held == 0)
