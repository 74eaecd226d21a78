"""The console's API: what it tells, whom it refuses, and that watching costs nothing when nobody does."""

from __future__ import annotations

import asyncio
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from statestream.contract import errors
from statestream.contract.signature import TensorSpec
from statestream_server.access import tokens
from statestream_server.edges.http.console import values
from statestream_server.settings import Settings, StartError, check_console, has_console
from tests.support import models, texts
from tests.support.serving import Local, serving

OURS = {"X-Statestream": "console"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def local(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Local]:
    folder = tmp_path_factory.mktemp("console")
    models.write(folder / "models", "lstm", "gru", "scores")
    (folder / "models" / "letters" / "1").mkdir(parents=True)
    texts.write_pair(folder / "models" / "letters" / "1")
    async with serving(folder / "models", http_port=0) as local:
        yield local


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def ask(
    local: Local, path: str, body: object = None, headers: dict[str, str] = OURS, raw: bytes | None = None
) -> tuple[int, Any, bytes]:
    """Status, headers and body of an answer."""
    headers = dict(headers)
    data = raw
    if body is not None:
        data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"

    def call() -> tuple[int, Any, bytes]:
        url = f"http://127.0.0.1:{local.running.http_port}{path}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=10) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    return await asyncio.to_thread(call)


async def told(local: Local, path: str, body: object = None) -> Any:
    status, _, data = await ask(local, f"/console/api/{path}", body)
    assert status == 200, data
    return json.loads(data)


async def refused(local: Local, path: str, body: object = None, **more: Any) -> tuple[int, str, str]:
    status, _, data = await ask(local, f"/console/api/{path}", body, **more)
    error = json.loads(data)["error"]
    return status, error["reason"], error["message"]


async def test_the_page_brings_all_it_needs_and_takes_nothing_from_elsewhere(local: Local) -> None:
    for path in ("/", "/console", "/console/", "/console/console.js", "/console/charts.js", "/console/console.css"):
        status, headers, data = await ask(local, path, headers={})
        assert status == 200, path
        assert headers["Content-Security-Policy"].startswith("default-src 'self';")
        assert b"http://" not in data.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"https://" not in data
        assert b"<script>" not in data
        assert b"style=" not in data
    again = await ask(local, "/console/console.js", headers={"If-None-Match": headers["ETag"]})
    assert again[0] in (200, 304)


async def test_models_say_what_they_take_and_what_was_proved(local: Local) -> None:
    found = {each["name"]: each for each in (await told(local, "models"))["models"]}
    assert [*found] == ["gru", "letters", "lstm", "scores"]
    assert found["lstm"]["inputs"][0]["step"] == [3]
    assert found["lstm"]["batched"].startswith("Batched")
    assert found["lstm"]["proof"]
    assert (await told(local, "about"))["rights"] == ["admin", "step"]
    assert (await told(local, "replicas"))["replicas"][0]["own"]


async def test_sessions_are_stepped_watched_copied_read_out_and_deleted(local: Local) -> None:
    assert not local.server.intake.taps.watched
    step = {"model": "lstm", "id": "one/ä", "inputs": [[0.1, 0.2, 0.3], [None, 0, 0]]}
    status, reason, _ = await refused(local, "step", step)
    assert (status, reason) == (409, "NON_FINITE_STATE") or reason == "BAD_TENSOR"
    step["inputs"] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert (await told(local, "step", step))["position"] == 2
    where = "model=lstm&id=one%2F%C3%A4"
    assert (await told(local, f"watch?{where}"))["steps"] == []
    assert (await told(local, "step", {**step, "inputs": {"x": [[1, 2, 3]]}}))["position"] == 3
    (seen,) = (await told(local, f"watch?{where}"))["steps"]
    assert (seen["number"], seen["position"], seen["inputs"]["x"]) == (1, 3, [1, 2, 3])
    assert len(seen["outputs"]["y"]) == 2
    assert (await told(local, f"watch?{where}&since=1"))["steps"] == []
    copy = {"model": "lstm", "id": "one/ä", "fork": "one/b"}
    assert await told(local, "fork", copy) == {"id": "one/b", "position": 3}
    status, headers, data = await ask(local, f"/console/api/snapshot?{where}")
    assert (status, headers["X-Position"], b"statestream-snapshot" in data) == (200, "3", True)
    for id in ("one/b", "one/ä"):
        assert await told(local, "delete", {"model": "lstm", "id": id}) == {}
    assert (await refused(local, f"session?{where}"))[:2] == (404, "SESSION_NOT_FOUND")


async def test_pages_go_through_all_sessions_that_begin_so_and_no_others(local: Local) -> None:
    wanted = [("gru", "ab"), ("gru", "aba"), ("lstm", "ab"), ("lstm", "abb"), ("lstm", "abz")]
    for model, id in [*wanted, ("gru", "aa"), ("gru", "ac"), ("lstm", "a"), ("lstm", "b")]:
        await told(local, "step", {"model": model, "id": id, "inputs": [0] * 6})
    for size in (1, 2, 5, 50):
        found, after = list[tuple[str, str]](), ""
        while True:
            page = await told(local, f"sessions?prefix=ab&size={size}&after={after}")
            found += [(each["model"], each["id"]) for each in page["sessions"]]
            if not (after := page["next"]):
                break
        assert found == wanted, size
    assert (await refused(local, "sessions?size=0"))[1] == "BAD_FRAME"
    assert (await refused(local, "sessions?after=x"))[1] == "BAD_FRAME"


async def test_predict_takes_what_people_type(local: Local) -> None:
    spec = next(each for each in (await told(local, "models"))["models"] if each["name"] == "scores")["inputs"][0]
    shape = [abs(size) for size in spec["shape"]]
    flat = [0.5] * math.prod(shape)
    if spec["dtype"].startswith("float"):
        assert (await told(local, "predict", {"model": "scores", "inputs": flat}))["outputs"]
    for inputs in ([["a"]], {"other": [1]}, [[1], [1, 2]], [[[[[[1]]]]]], None, 7):
        assert (await refused(local, "predict", {"model": "scores", "inputs": inputs}))[1] == "BAD_TENSOR"
    assert (await refused(local, "predict", {"model": "lstm", "inputs": [0]}))[1] == "UNSUPPORTED"
    assert (await refused(local, "predict", {"model": 3}))[1] == "BAD_FRAME"


async def test_a_model_that_reads_texts_is_given_one() -> None:
    spec = TensorSpec(name="word", dtype="int64", shape=[-1, -1], batch_axis=0, time_axis=1)
    spec.text.vocabulary.extend(["a", "dog", "sees"])
    spec.text.separator = " "
    for value in ("a dog sees", [0, 1, 2]):
        steps, (array,) = values.steps_of([spec], {"inputs": {"word": value}})
        assert (steps, array.tolist()) == (3, [0, 1, 2])
    (array,) = values.graph_inputs([spec], {"inputs": {"word": "a dog"}})
    assert array.tolist() == [[0, 1]]
    with pytest.raises(errors.BadTensor, match="input 'word': symbol 'cat' is not in the vocabulary of 3"):
        values.steps_of([spec], {"inputs": {"word": "a cat"}})


async def test_a_text_comes_letter_by_letter_and_a_fault_of_the_request_as_a_line(local: Local) -> None:
    async def lines(**more: object) -> list[dict[str, Any]]:
        status, _, data = await ask(local, "/console/api/generate", {"model": "letters", "text": "abc", **more})
        assert status == 200
        return [json.loads(line) for line in data.splitlines()]

    *tokens, end = await lines()
    assert end["tokens"] == len(tokens) > 0
    assert all(token["text"] for token in tokens)
    for more in ({"text": "?"}, {"temperature": 10**400}, {"temperature": -1}, {"most": -1}, {"model": "lstm"}):
        (line,) = await lines(**more)
        assert line["error"]["reason"] in ("BAD_TENSOR", "BAD_FRAME", "UNSUPPORTED"), more


async def test_refusals_are_told_with_how_often_they_came(local: Local) -> None:
    for _ in range(3):
        await refused(local, "delete", {"model": "lstm", "id": "nobody-has-it"})
    found = (await told(local, "refusals"))["refusals"]
    (one,) = [each for each in found if "nobody-has-it" in each["message"]]
    assert (one["reason"], one["count"]) == ("SESSION_NOT_FOUND", 3)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {**OURS, "Origin": "https://elsewhere.example"},
        {**OURS, "Origin": "null"},
        {**OURS, "Host": "elsewhere.example"},
        {**OURS, "Host": "elsewhere.example", "Origin": "http://elsewhere.example"},
    ],
)
async def test_pages_of_others_are_refused(local: Local, headers: dict[str, str]) -> None:
    assert (await refused(local, "models", headers=headers))[:2] == (403, "PERMISSION_DENIED")
    step = json.dumps({"model": "lstm", "id": "forged", "inputs": [0, 0, 0]}).encode()
    headers = {**headers, "Content-Type": "application/json"}
    assert (await refused(local, "step", raw=step, headers=headers))[0] == 403
    assert (await refused(local, "session?model=lstm&id=forged"))[1] == "SESSION_NOT_FOUND"


@pytest.mark.parametrize(
    ("raw", "kind"),
    [(b"", ""), (b"{", ""), (b"[]", ""), (b"[" * 100_000, ""), (b" " * (2 << 20), ""), (b"{}", "text/plain")],
)
async def test_bodies_that_cannot_be_read_are_refused(local: Local, raw: bytes, kind: str) -> None:
    headers = {**OURS, "Content-Type": kind or "application/json"}
    assert (await refused(local, "step", raw=raw, headers=headers))[:2] == (400, "BAD_FRAME")


async def test_tokens_have_the_rights_that_they_have_over_grpc(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text("")
    made = {
        name: tokens.new(path, tenant, frozenset(rights), time.time() + 60, "")[0]
        for name, tenant, rights in (
            ("ours", "acme", {tokens.STEP}),
            ("admin", "acme", {tokens.STEP, tokens.ADMIN}),
            ("theirs", "other", {tokens.STEP}),
        )
    }
    async with serving(models.write(tmp_path / "models", "lstm"), http_port=0, tokens=path) as local:

        def shown(name: str) -> dict[str, str]:
            return {**OURS, "Authorization": f"Bearer {made[name]}"}

        assert (await ask(local, "/console/"))[0] == 200
        assert (await refused(local, "models"))[:2] == (401, "UNAUTHENTICATED")
        step = {"model": "lstm", "id": "secret", "inputs": [0, 0, 0]}
        assert (await ask(local, "/console/api/step", step, shown("ours")))[0] == 200
        assert (await refused(local, "session?model=lstm&id=secret", headers=shown("theirs")))[0] == 404
        assert (await refused(local, "watch?model=lstm&id=secret", headers=shown("theirs")))[0] == 404
        assert b"secret" not in (await ask(local, "/console/api/sessions", headers=shown("theirs")))[2]
        await refused(local, "session?model=lstm&id=lost", headers=shown("ours"))
        for name, sees in (("ours", True), ("admin", True), ("theirs", False)):
            told = (await ask(local, "/console/api/refusals", headers=shown(name)))[2]
            assert (b"'lost'" in told) == sees
        for path_ in ("statistics", "replicas"):
            assert (await refused(local, path_, headers=shown("ours")))[:2] == (403, "PERMISSION_DENIED")
            assert (await ask(local, f"/console/api/{path_}", headers=shown("admin")))[0] == 200
        assert local.server.access.usages["acme"].held["calls"] == 0


async def test_it_is_not_where_it_is_not_wanted(tmp_path: Path) -> None:
    async with serving(models.write(tmp_path / "models", "lstm"), http_port=0, console=False) as local:
        for path in ("/", "/console/", "/console/api/models"):
            assert (await ask(local, path))[0] == 404


async def test_the_console_is_where_strangers_do_not_come() -> None:
    open_to_all = Settings((), host="0.0.0.0", insecure=True)
    assert has_console(Settings(()))
    assert not has_console(open_to_all)
    assert not has_console(Settings((), host="0.0.0.0", tls_clients=Path("ca.pem")))
    assert has_console(Settings((), host="0.0.0.0", tokens=Path("tokens.toml")))
    with pytest.raises(StartError, match="--tokens"):
        check_console(Settings((), host="0.0.0.0", tls_clients=Path("ca.pem"), console=True))
