"""The Open Inference Protocol over REST, as any HTTP client speaks it: plain JSON, tritonclient, curl on the page."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import subprocess
import urllib.error
import urllib.request
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from tritonclient.utils import InferenceServerException

import statestream
from statestream.contract import errors
from statestream_server.access import tokens
from statestream_server.edges.http import received
from statestream_server.edges.oip import bodies, datatypes
from statestream_server.edges.oip.inference import Response
from tests.services import require_binary
from tests.support import models, pages
from tests.support.serving import Local, Process, lasting_port, process, serving

RNG = np.random.default_rng(16)


TUTORIAL = pages.ROOT / "docs/tutorials/from-rest.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server of a process, whose HTTP port is its last option."""
    folder = models.write(tmp_path_factory.mktemp("models"), "lstm", "counter", "scores", "tokens")
    store = tmp_path_factory.mktemp("store") / "sessions.db"
    options = ("--store", f"sqlite:{store}", "--no-watch", "--http", "--http-port", str(lasting_port()))
    with process(folder, *options) as server:
        yield server
        assert "did not expect" not in server.output


def ask(port: object, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, bytes]:
    """Status, headers and body of an answer; `_` in a header's name is `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v2{path}", body, named)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def call(server: Process, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, bytes]:
    return ask(server.options[-1], path, body, **headers)


def asking(array: np.ndarray, **values: Any) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "FP32", "shape": list(array.shape), "data": array.tolist()}
    return {"parameters": values, "inputs": [tensor]}


def y_of(about: Any, answer: bytes) -> bytes:
    """The first output of an answer, in whichever form."""
    size = about.get("Inference-Header-Content-Length")
    told = json.loads(answer[: int(size)] if size else answer)["outputs"][0]
    if size:
        return answer[int(size) :][: told["parameters"]["binary_data_size"]]
    return np.array(told["data"], np.float32).tobytes()


def test_what_it_serves_is_told(server: Process) -> None:
    for path in ("", "/health/live", "/health/ready", "/models/lstm", "/models/lstm/ready", "/models/lstm/config"):
        assert call(server, path)[0] == 200, path
    assert json.loads(call(server, "/models")[2]) == {"models": ["counter", "lstm", "scores", "tokens"]}
    index = json.loads(call(server, "/repository/index", b"")[2])
    assert [each["name"] for each in index if each["state"] == "READY"] == ["counter", "lstm", "scores", "tokens"]
    status, _, said = call(server, "/models/nobody")
    assert (status, "MODEL_NOT_FOUND" in json.loads(said)["error"]) == (404, True)
    status, about, said = call(server, "/models/lstm/infer")
    assert (status, about["Allow"], "POST" in json.loads(said)["error"]) == (405, "POST", True)
    assert call(server, "/nowhere")[0] == 404
    assert call(server, "/systemsharedmemory/status")[0] == 501
    assert call(server, "/repository/models/lstm/load", b'{"parameters": {"config": "{}"}}')[0] == 501


def test_all_forms_have_the_bits_of_a_session_and_a_retry_is_applied_once(server: Process) -> None:
    """Also after SIGKILL: the last step is answered again, and the sequence goes on."""
    steps = RNG.standard_normal((3, 1, 1, 3)).astype(np.float32)
    with statestream.connect(server.address) as client, client.session("lstm") as session:
        expected = [np.asarray(session.step(step[0, 0])).tobytes() for step in steps]
    for number, form in enumerate(("json", "gzip", "bytes"), 1):
        for position, step in enumerate(steps):
            values = {"sequence_id": number, "sequence_start": not position, "sequence_position": position}
            asked, headers, tail = asking(step, **values), {"Accept_Encoding": "gzip"}, b""
            if form == "bytes":
                del asked["inputs"][0]["data"]
                asked["inputs"][0]["parameters"], tail = {"binary_data_size": step.nbytes}, step.tobytes()
                asked["parameters"]["binary_data_output"] = True
            head = json.dumps(asked).encode()
            if form == "bytes":
                headers["Inference_Header_Content_Length"] = str(len(head))
            elif form == "gzip":
                head, headers["Content_Encoding"] = gzip.compress(head), "gzip"
            for _ in range(2):  # The second one is a repetition.
                status, about, answer = call(server, "/models/lstm/infer", head + tail, **headers)
                assert status == 200, answer
                assert y_of(about, answer) == expected[position]
    server.kill()
    server.start()
    body = json.dumps(asking(steps[2], sequence_id=1, sequence_position=2)).encode()
    _, about, answer = call(server, "/models/lstm/infer", body)
    assert y_of(about, answer) == expected[2]
    assert json.loads(answer)["parameters"]["sequence_position"] == 3
    status, _, said = call(
        server, "/models/lstm/infer", json.dumps(asking(steps[2], sequence_id=1, sequence_position=9)).encode()
    )
    assert (status, json.loads(said)["error"].partition(":")[0]) == (400, "POSITION_GAP")


def x(array: np.ndarray, *, binary: bool = True) -> list[Any]:
    made = triton.InferInput("x", list(array.shape), "FP32")
    made.set_data_from_numpy(array, binary_data=binary)
    return [made]


def test_tritonclient_unchanged(server: Process) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{server.options[-1]}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("lstm", "1")
        assert not client.is_model_ready("nothing")
        assert client.get_server_metadata()["name"] == "statestream"
        assert client.get_model_metadata("scores")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        assert client.get_model_config("counter")["max_batch_size"] == 1
        rows = RNG.standard_normal((500, 4)).astype(np.float32)
        found = [
            client.infer("scores", x(rows, binary=binary), request_id="r", request_compression_algorithm=sent,
                         response_compression_algorithm=back,
                         outputs=[triton.InferRequestedOutput("scores", binary_data=binary),
                                  triton.InferRequestedOutput("best", binary_data=not binary)])
            for binary in (True, False)
            for sent, back in ((None, None), ("gzip", "deflate"), ("deflate", "gzip"))
        ]  # fmt: skip
        assert {answer.get_response()["id"] for answer in found} == {"r"}
        assert len({answer.as_numpy("scores").astype(np.float32).tobytes() for answer in found}) == 1
        assert len({answer.as_numpy("best").astype(np.int64).tobytes() for answer in found}) == 1
        classes = client.infer("scores", x(rows[:2]), outputs=[triton.InferRequestedOutput("scores", class_count=2)])
        assert classes.as_numpy("scores").shape == (2, 2)
        waiting = [client.async_infer("scores", x(rows[:3])) for _ in range(3)]
        assert {answer.get_result().as_numpy("scores").shape for answer in waiting} == {(3, 3)}
        one = np.ones((1, 1), np.float32)
        for number in range(3):
            ends = {"sequence_start": not number, "sequence_end": number == 2}
            answer = client.infer("counter", x(one), sequence_id="triton", **ends)
            assert answer.as_numpy("y").tolist() == [[number + 1]]
        with pytest.raises(InferenceServerException, match="sequence_start"):
            client.infer("counter", x(one), sequence_id="triton")
        (told,) = client.get_inference_statistics("counter")["model_stats"]
        assert told["inference_stats"]["success"]["count"] >= 3
        client.unload_model("tokens")
        assert not client.is_model_ready("tokens")
        client.load_model("tokens")
        assert {each["name"]: each.get("state") for each in client.get_model_repository_index()}["tokens"] == "READY"
        with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
            client.get_system_shared_memory_status()


DEEP = b'{"inputs": [{"name": "x", "datatype": "%s", "shape": [1], "data": [%s]}]}'


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"[" * 100_000, {}, 400),
        (b"no", {}, 400),
        (b"[]", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b'{"inputs": [{}]}', {}, 400),
        (b'{"inputs": 7}', {}, 400),
        (b'{"id": 7}', {}, 400),
        (b'{"id": "' + b"a" * 500 + b'"}', {}, 400),
        (b'{"parameters": {"sequence_id": "\\ud800"}}', {}, 400),
        (b'{"parameters": {"sequence_id": "\xed\xa0\x80"}}', {}, 400),
        (b'{"parameters": {"sequence_id": ' + b"9" * 4000 + b"}}", {}, 400),
        (b"{}", {"Inference_Header_Content_Length": "9"}, 400),
        (b"{}", {"Inference_Header_Content_Length": "-1"}, 400),
        (b"{}", {"Content_Encoding": "gzip"}, 400),
        (b"{}", {"Content_Encoding": "br"}, 501),
        (gzip.compress(b"{}") + b"more", {"Content_Encoding": "gzip"}, 400),
        (gzip.compress(b" " * (17 << 20)), {"Content_Encoding": "gzip"}, 400),
        (b'{"a": "' + b"a" * (4 << 20) + b'"}', {}, 400),
        (DEEP % (b"INT8", b"999"), {}, 400),
        (DEEP % (b"BYTES", b'"\\ud800"'), {}, 400),
        (DEEP % (b"FP32", b"NaN"), {}, 400),
        (DEEP % (b"FP32", b"1e99"), {}, 400),
        (DEEP % (b"BF16", b"1"), {}, 400),
        (DEEP % (b"FP32", b"0," * (1 << 18) + b"0"), {}, 400),
    ],
)
def test_what_cannot_be_read_is_refused(server: Process, body: bytes, headers: dict[str, str], status: int) -> None:
    code, _, said = call(server, "/models/lstm/infer", body, **headers)
    assert code == status, said
    assert "expected" in json.loads(said)["error"] or "send" in json.loads(said)["error"]
    assert len(said) < 4096


@pytest.mark.parametrize("datatype", [*datatypes.DTYPES, datatypes.BF16, datatypes.BYTES])
def test_every_datatype_is_read_from_json_and_bytes(datatype: str) -> None:
    if datatype == datatypes.BYTES:
        array, data = datatypes.texts(["a", "ü"], (2,)), ["a", "ü"]
    else:
        array = np.array([1, 0], datatypes.DTYPES.get(datatype, np.dtype(np.float32)))
        data = array.tolist()
    raw = datatypes.raw(array) if datatype != datatypes.BF16 else b"\x80\x3f\0\0"
    tensor: dict[str, Any] = {"name": "x", "datatype": datatype, "shape": [2]}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(raw)}}]}).encode()
    found = [bodies.request_of("m", "", head + raw, len(head))[0].inputs["x"]]
    if datatype != datatypes.BF16:
        found.append(
            bodies.request_of("m", "", json.dumps({"inputs": [tensor | {"data": data}]}).encode(), None)[0].inputs["x"]
        )
    for each in found:
        assert each.dtype == array.dtype
        assert each.tolist() == array.tolist()


def test_numbers_that_json_has_not_are_null_and_bytes_are_no_text() -> None:
    request, binary = bodies.request_of("m", "", b"{}", None)
    array = np.array([1, np.nan, np.inf, -np.inf], np.float32)
    answer, split = bodies.answer_of(request, Response(1, [("y", "FP32", array)]), binary)
    assert split is None
    assert json.loads(answer, parse_constant=pytest.fail)["outputs"][0]["data"] == [1, None, None, None]
    some = np.empty(1, object)
    some[0] = b"\xff"
    with pytest.raises(errors.BadTensor, match="binary_data"):
        bodies.answer_of(request, Response(1, [("y", "BYTES", some)]), binary)
    many = np.zeros((1 << 20) + 1, np.int8)
    with pytest.raises(errors.AnswerTooLarge, match="binary_data_output"):
        bodies.answer_of(request, Response(1, [("y", "INT8", many)]), binary)
    with pytest.raises(errors.AnswerTooLarge):
        bodies.check_answer(1 << 30, binary)


async def test_a_body_that_does_not_come_and_one_that_grows_are_refused() -> None:
    counted = list[int]()

    async def never() -> Any:
        await asyncio.Event().wait()

    scope = {"type": "http", "method": "POST", "headers": [(b"content-length", b"4")]}
    with pytest.raises(errors.BadFrame, match="within"):
        await received.body_of(Request(scope, never), 100, 0.01, counted.append)
    packed = zlib.compress(b"a" * 90)

    async def whole() -> Any:
        return {"type": "http.request", "body": packed, "more_body": False}

    scope["headers"] = [(b"content-encoding", b"deflate"), (b"content-length", b"%d" % len(packed))]
    assert await received.body_of(Request(scope, whole), 100, 1, counted.append) == b"a" * 90
    assert sum(counted) == 90 - len(packed), "what it was not said to have is counted when it is there"
    with pytest.raises(errors.InvalidRequest, match="80"):
        await received.body_of(Request(scope, whole), 80, 1, counted.append)
    assert [received.coding_of(said) for said in ("gzip;q=0, br", "deflate, gzip;q=.5", "*", "")] == [
        "",
        "deflate",
        "",
        "",
    ]


@pytest.fixture
async def asks(tmp_path: Path) -> AsyncIterator[tuple[Local, dict[str, str]]]:
    """A server in this process that asks for tokens, and tokens by what they let."""
    path, rights = tmp_path / "tokens.toml", (("step", {tokens.STEP}), ("admin", {tokens.ADMIN}))
    path.write_text("[limits]\nbytes = 1000\n")
    made = {name: tokens.new(path, "acme", frozenset(some), 4e9)[0] for name, some in rights}
    async with serving(models.write(tmp_path / "models", "counter"), http_port=0, tokens=path) as local:
        yield local, made


async def test_rights_tenants_and_the_drain(asks: tuple[Local, dict[str, str]]) -> None:
    local, made = asks
    port = local.running.http_port
    step, admin = ({"Authorization": f"Bearer {made[name]}"} for name in ("step", "admin"))
    body = json.dumps(asking(np.ones((1, 1), np.float32), sequence_id=1, sequence_start=True)).encode()

    async def status(path: str, body: bytes | None = None, **headers: str) -> int:
        return (await asyncio.to_thread(ask, port, path, body, **headers))[0]

    assert await status("/health/ready") == 200
    assert await status("/models") == 401
    assert await status("/models/counter/infer", body) == 401
    assert await status("/models/counter/infer", body, Authorization="Bearer no") == 401
    assert await status("/models/counter/infer", body, **admin) == 403
    assert await status("/models/counter/infer", body, **step) == 200
    for path in ("/repository/models/counter/unload", "/repository/models/none/load"):
        assert await status(path, b"{}", **step) == 403
    assert await status("/models/counter/stats", None, **step) == 403
    assert await status("/models/counter/stats", None, **admin) == 200
    usage = local.server.access.usages["acme"]
    with usage.holding("calls", nbytes=999):
        code, about, said = await asyncio.to_thread(ask, port, "/models/counter/infer", body, **step)
        assert (code, about["Retry-After"], b"acme" in said) == (429, "1", True)
    assert usage.held["bytes"] == usage.held["calls"] == local.server.budgets.bodies.held == 0
    local.server.budgets.bodies.held += local.server.budgets.bodies.most
    assert await status("/models/counter/infer", body, **step) == 429
    local.server.budgets.bodies.held -= local.server.budgets.bodies.most
    with local.engine_held():
        running = asyncio.create_task(status("/models/counter/infer", body, **step))
        await local.until(lambda: local.server.engine.queued)
        local.running.readiness.reason = "leaving"
        code, about, said = await asyncio.to_thread(ask, port, "/models/counter/infer", body, **step)
        assert (code, about["Retry-After"], b"DRAINING" in said) == (503, "1", True)
        assert await status("/health/ready") == 503
    assert await running == 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda some: st.lists(some, max_size=4) | st.dictionaries(st.sampled_from(
        ["inputs", "outputs", "parameters", "name", "shape", "datatype", "data", "binary_data_size", "classification",
         "id", "sequence_id", "sequence_start", "sequence_end", "sequence_position", "binary_data_output"]),
        some | st.sampled_from(["x", "y", "FP32", "BYTES", [1, 1], [1], [[1.0]]]), max_size=6),
    max_leaves=20,
)  # fmt: skip
tensors = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x", "y"]) | st.text(max_size=4),
        "datatype": st.sampled_from([*datatypes.DTYPES, "BF16", "BYTES"]) | st.text(max_size=4),
        "shape": st.lists(st.integers(-1, 3) | st.integers(), max_size=3),
    },
    optional={
        "data": json_values,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "shared_memory_x"]), json_values),
    },
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(tensors, max_size=2) | json_values},
    optional={
        "id": st.text(max_size=4) | json_values,
        "outputs": json_values,
        "parameters": st.dictionaries(
            st.sampled_from(["sequence_id", "sequence_start", "sequence_end", "sequence_position", "priority", "new"]),
            st.integers(-2, 2) | st.booleans() | st.text(max_size=3) | st.integers() | json_values,
        ),
    },
)
texts = requests.map(json.dumps) | json_values.map(json.dumps) | st.text(max_size=20)
heads = st.none() | st.integers(-1, 200).map(str) | st.text("0123456789abc", max_size=14)


def fuzzed(server: Process, model: str, text: str, tail: bytes, head: str | None, coding: str) -> None:
    fuzzed_at(server.options[-1], model, text, tail, head, coding)


def fuzzed_at(port: object, model: str, text: str, tail: bytes, head: str | None, coding: str) -> None:
    """Asks a port whatever was drawn, and judges its answer."""
    body = text.encode(errors="surrogatepass") + tail
    body = gzip.compress(body) if coding == "gzip" else zlib.compress(body) if coding == "deflate" else body
    more = {"Content_Encoding": coding} if coding else {}
    if head is not None:
        more["Inference_Header_Content_Length"] = head
    status, _, said = ask(port, f"/models/{model}/infer", body, **more)
    assert status in (200, 400, 404, 409, 501), (status, said)
    if status != 200:
        assert json.loads(said)["error"].partition(":")[0] in errors.REASONS


fuzz = given(
    st.sampled_from(["counter", "scores", "lstm"]),
    texts,
    st.binary(max_size=8),
    heads,
    st.sampled_from(["", "", "gzip", "deflate", "br"]),
)


@settings(max_examples=40, deadline=None, database=None)
@fuzz
def test_whatever_comes_is_answered(
    server: Process, model: str, text: str, tail: bytes, head: str | None, coding: str
) -> None:
    fuzzed(server, model, text, tail, head, coding)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, database=None)
@fuzz
def test_whatever_comes_is_answered_for_long(
    server: Process, model: str, text: str, tail: bytes, head: str | None, coding: str
) -> None:
    fuzzed(server, model, text, tail, head, coding)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The HTTP address of a server of the example models."""
    port = str(lasting_port())
    with process(pages.ROOT / "deploy/models", "--store", "memory", "--http", "--http-port", port):
        yield f"127.0.0.1:{port}"


def test_the_tutorials_commands_run(examples: str, tmp_path: Path) -> None:
    require_binary("curl")
    ran_by = "tests/compat/test_rest.py::test_the_tutorials_commands_run"
    blocks = [block for block in pages.blocks(TUTORIAL) if pages.runner(block) == ran_by]
    text = "".join(block.text for block in blocks).replace("localhost:8002", examples)
    ran = subprocess.run(["bash", "-euc", text], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "".join(block.output or "" for block in blocks)


def test_the_tutorials_javascript_runs(examples: str) -> None:
    require_binary("node")
    block = pages.run_by(
        str(TUTORIAL.relative_to(pages.ROOT)), "tests/compat/test_rest.py::test_the_tutorials_javascript_runs"
    )
    command = ["node", "--input-type=module", "--eval", block.text.replace("localhost:8002", examples)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == block.output


def test_the_pages_commands_run(tmp_path: Path) -> None:
    require_binary("curl")
    block = pages.run_by("docs/oip.md", "tests/compat/test_rest.py::test_the_pages_commands_run")
    port = str(lasting_port())
    with process(pages.ROOT / "deploy/models", "--store", "memory", "--http", "--http-port", port):
        text = block.text.replace("localhost:8002", f"127.0.0.1:{port}")
        ran = subprocess.run(
            ["bash", "-euc", text], cwd=tmp_path, capture_output=True, text=True, timeout=60, env={**os.environ}
        )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == block.output
