"""The Open Inference Protocol over REST, as any HTTP client speaks it."""

from __future__ import annotations

import asyncio
import gzip
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import models
from tests.support.serving import Local, serving


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[Local]:
    async with serving(models.write(tmp_path / "models", "lstm"), http_port=0) as local:
        yield local


async def call(
    local: Local, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, Any, bytes]:
    """Status, headers and body of an answer."""

    def ask() -> tuple[int, Any, bytes]:
        url = f"http://127.0.0.1:{local.running.http_port}/v2{path}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers or {}), timeout=10) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    return await asyncio.to_thread(ask)


async def inputs_of(local: Local) -> tuple[str, list[int]]:
    told = json.loads((await call(local, "/models/lstm"))[2])["inputs"][0]
    return told["name"], [max(size, 1) for size in told["shape"]]


async def test_what_it_serves_is_told(local: Local) -> None:
    for path in ("", "/health/live", "/health/ready", "/models/lstm", "/models/lstm/ready", "/models/lstm/config"):
        assert (await call(local, path))[0] == 200, path
    assert json.loads((await call(local, "/models/lstm/stats"))[2])["model_stats"][0]["inference_count"] == 0
    index = json.loads((await call(local, "/repository/index", b""))[2])
    assert [(each["name"], each["state"]) for each in index] == [("lstm", "READY")]
    status, _, said = await call(local, "/models/nobody")
    assert status == 404
    assert "MODEL_NOT_FOUND" in json.loads(said)["error"]


async def test_json_bytes_and_compression_have_the_same_bits_and_a_retry_is_applied_once(local: Local) -> None:
    name, shape = await inputs_of(local)
    array = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    found = list[bytes]()
    for session, form in enumerate(("json", "gzip", "bytes"), 1):
        tensor: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": shape}
        values = {"sequence_id": session, "sequence_start": True, "sequence_position": 0}
        headers, tail = {}, b""
        if form == "bytes":
            tensor["parameters"], tail = {"binary_data_size": array.nbytes}, array.tobytes()
            values["binary_data_output"] = True
        else:
            tensor["data"] = array.tolist()
        head = json.dumps({"parameters": values, "inputs": [tensor]}).encode()
        if form == "bytes":
            headers["Inference-Header-Content-Length"] = str(len(head))
        elif form == "gzip":
            head, headers["Content-Encoding"] = gzip.compress(head), "gzip"
        for _ in range(2):  # The second one is a repetition.
            status, about, answer = await call(local, "/models/lstm/infer", head + tail, headers)
            assert status == 200, answer
            size = about.get("Inference-Header-Content-Length")
            told = json.loads(answer[: int(size)] if size else answer)
            assert told["parameters"]["sequence_position"] == 1
            if size:
                first = told["outputs"][0]["parameters"]["binary_data_size"]
                found.append(answer[int(size) : int(size) + first])
            else:
                found.append(np.array(told["outputs"][0]["data"], np.float32).tobytes())
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"[" * 100_000, {}, 400),
        (b"no", {}, 400),
        (b"[]", {}, 400),
        (b'{"inputs": [{}]}', {}, 400),
        (b'{"inputs": 7}', {}, 400),
        (b"{}", {"Inference-Header-Content-Length": "9"}, 400),
        (b"{}", {"Inference-Header-Content-Length": "-1"}, 400),
        (b"{}", {"Content-Encoding": "gzip"}, 400),
        (b"{}", {"Content-Encoding": "br"}, 501),
        (gzip.compress(b"{}") + b"more", {"Content-Encoding": "gzip"}, 400),
        (gzip.compress(bytes(17 << 20)), {"Content-Encoding": "gzip"}, 400),
        (b'{"inputs": [{"name": "x", "datatype": "INT8", "shape": [1], "data": [999]}]}', {}, 400),
        (b'{"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": ["\\ud800"]}]}', {}, 400),
    ],
)
async def test_what_cannot_be_read_is_refused(local: Local, body: bytes, headers: dict[str, str], status: int) -> None:
    code, _, said = await call(local, "/models/lstm/infer", body, headers)
    assert code == status, said
    assert "expected" in json.loads(said)["error"] or "send" in json.loads(said)["error"]
