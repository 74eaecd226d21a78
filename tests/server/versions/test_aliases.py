"""Aliases: versions by names that operators give, and sessions that stay with the version they began with."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

import statestream
from statestream import errors
from statestream.aio import Client
from statestream.v1 import model_pb2 as model
from statestream_server.access import tokens
from statestream_server.access.tokens import ADMIN, STEP
from statestream_server.models.files import aliases
from tests.server.versions.counters import LONG, MODEL, table_of
from tests.support import models
from tests.support.calls import Caller, connected, failing
from tests.support.counter import numbers, sums
from tests.support.serving import Local, process, serving
from tests.support.speaker import Speaker

NAMES = "# What clients name.\nstable = 1  # since spring\ncanary = 2\n"


def say(folder: Path, text: str, name: str = MODEL) -> Path:
    """Writes the file of a model's aliases."""
    path = folder / name / "aliases.toml"
    path.write_text(text)
    return path


@contextlib.asynccontextmanager
async def client_of(folder: Path, **settings: Any) -> AsyncIterator[tuple[Local, Client]]:
    async with (
        serving(folder, checkpoint_interval=LONG, **settings) as local,
        statestream.aio.connect(local.address) as client,
    ):
        yield local, client


async def named(client: Client) -> dict[str, int]:
    """What the aliases of the counter name, as clients see it."""
    return {alias: found.version for found in await client.models() for alias in found.aliases}


async def looks(local: Local, *seconds: float) -> None:
    """Looks at the files at these times of a clock, and what they began has ended."""
    for now in seconds:
        await local.server.aliasing.look(now)
        while local.server.aliasing._taking:
            await asyncio.wait([*local.server.aliasing._taking.values()])


async def test_new_sessions_and_calls_go_by_an_alias_and_others_stay(both: Path, url: str) -> None:
    """Session, pool, feed, unary step, snapshot, upgrade; only what is new or moves goes by it."""
    say(both, NAMES)
    async with client_of(both, store=url) as (_, client):
        assert await named(client) == {"stable": 1, "canary": 2}
        async with client.session(MODEL, "a", version="stable") as a, client.session(MODEL, "b", version="canary") as b:
            assert (a.version, b.version) == (1, 2)
            assert (await a.step([1.0])).tolist() == [1]
            assert (await b.step([1.0])).tolist() == [10]
            kept = await a.snapshot()
        async with client.session(MODEL, "a", version="canary") as a:
            assert (a.version, a.position) == (1, 1)
        async with client.session(MODEL, "a", upgrade="canary") as a:
            assert (a.version, a.position) == (2, 1)
            with pytest.raises(errors.AlreadyOpen, match="in stable; it is open in version 2"):
                await client.session(MODEL, "a", upgrade="stable")
        async with client.sessions(MODEL, 3, version="stable", initial_state={"s": np.ones(1, np.float32)}) as pool:
            assert pool.version == 1
        async with client.restore(kept, model=MODEL, id="c", upgrade="canary") as c:
            assert (c.version, c.position) == (2, 1)
        fed = [pair async for pair in client.feed(MODEL, [("f", [1.0]), ("a", [1.0])], version="stable")]
        assert [(id, out.tolist()) for id, out in fed] == [("f", [1]), ("a", [11])]


async def test_calls_without_sessions_go_by_an_alias(tmp_path: Path) -> None:
    """Predict on a stream and alone, forecasts from a history, texts, a description, loads."""
    folder = models.write(tmp_path / "models", "scores", "pair", "loop")
    for name in ("scores", "pair", "loop"):
        shutil.copytree(folder / name / "1", folder / name / "2")
        say(folder, "stable = 1\n", name)
    async with client_of(folder) as (local, client):
        x = np.ones((2, 4), np.float32)
        assert (await client.predict("scores", x, version="stable"))["scores"].shape == (2, 3)
        assert await client.generate("pair", "abc", version="stable") == await client.generate("pair", "abc")
        assert (await client.forecast("loop", np.ones((4, 2), np.float32), 2, version="stable")).shape[-2] == 2
        caller = Caller(local.channel).models
        for name in ("scores", "pair", "loop"):
            found = await caller.GetModel(model.GetModelRequest(name=name, alias="stable"))
            assert (found.model.version, list(found.model.aliases), found.model.is_default) == (1, ["stable"], False)
        assert (await client.load_model("scores", "stable")).version == 1
        both_came = await failing(caller.GetModel(model.GetModelRequest(name="loop", version=2, alias="stable")))
        assert (both_came.reason, both_came.metadata["field"]) == ("BAD_FRAME", "alias")


async def test_what_is_no_alias_is_told_with_those_there_are(both: Path) -> None:
    say(both, NAMES)
    async with client_of(both) as (_, client):
        with pytest.raises(
            errors.ModelNotFound,
            match=r"no alias 'canry'; its aliases: canary \(2\), stable \(1\); loaded versions: 1, 2",
        ):
            await client.session(MODEL, version="canry")
        for wrong in ("3", "", "-x", "a b", "x" * 65, "ä"):
            with pytest.raises(ValueError, match="expected an alias such as 'stable'"):
                await client.session(MODEL, version=wrong)
        with pytest.raises(errors.ModelNotFound, match="no model 'other'"):
            await client.session("other", version="stable")


async def test_an_alias_moves_with_its_file_and_never_to_what_is_not_there(
    folder: Path, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A version that it names is loaded first; one that cannot be had, or a file that is wrong, changes nothing."""
    caplog.set_level("INFO")
    say(folder, "stable = 1\n")
    async with client_of(folder, store=url) as (local, client):
        await looks(local, 0)
        models.write_counter(folder, 2, factor=10)
        say(folder, "stable = 2\nnight = 1\n")
        await looks(local, 1)
        assert await named(client) == {"stable": 1}  # It may be written still.
        async with client.session(MODEL, "a", version="stable") as a:
            await looks(local, 3)
            assert await named(client) == {"stable": 2, "night": 1}
            assert (await a.step([1.0])).tolist() == [1]
        assert "stable of counter names version 2, no more version 1" in caplog.text
        for text, told in (
            ("stable = 7\nnight = 1", "stable of counter is to name version 7, and goes on naming version 2: model"),
            ("stable = true", "aliases.toml: stable is True; expected the number of a version"),
            ("stable = ", "aliases.toml: Invalid value"),
            ('"7" = 2', "'7' is no alias"),
            ("[aliases]\nstable = 1", "aliases is {'stable': 1}; expected the number"),
            ("a" + ".a" * 200 + " = 1", "it has a line of 405 characters"),
        ):
            caplog.clear()
            say(folder, text)
            await local.server.aliasing.look(9)
            local.server.aliasing._seen.clear()  # As if it had stood still.
            await looks(local, 10, 13, 14, 17)
            assert caplog.text.count(told) == 1, caplog.text
            assert await named(client) == {"stable": 2, "night": 1}
        say(folder, "")
        await looks(local, 20, 23)
        assert await named(client) == {}


async def test_an_operator_sets_an_alias_and_the_file_keeps_its_words(both: Path) -> None:
    path = say(both, NAMES)
    async with client_of(both) as (_, client):
        assert await client.set_alias(MODEL, "stable", 2) == {"canary": 2, "stable": 2}
        assert path.read_text() == NAMES.replace("stable = 1", "stable = 2")
        assert await client.set_alias(MODEL, "v.next", 1) == {"canary": 2, "stable": 2, "v.next": 1}
        assert await client.set_alias(MODEL, "canary", None) == {"stable": 2, "v.next": 1}
        assert path.read_text() == '# What clients name.\nstable = 2  # since spring\n"v.next" = 1\n'
        assert aliases.read(path) == {"stable": 2, "v.next": 1}
        with pytest.raises(errors.ModelNotFound, match="no alias 'canary'"):
            await client.set_alias(MODEL, "canary", None)
        with pytest.raises(errors.ModelNotFound, match="no version 9; loaded: 1, 2"):
            await client.set_alias(MODEL, "stable", 9)
        with pytest.raises(ValueError, match="expected an alias"):
            await client.set_alias(MODEL, "1", 1)
        path.write_text("stable = 'x'")
        with pytest.raises(errors.Unsupported, match="mend the file first"):
            await client.set_alias(MODEL, "stable", 1)
        path.unlink()
        path.mkdir()
        with pytest.raises(errors.Unsupported, match="Is a directory"):
            await client.set_alias(MODEL, "stable", 1)
        assert await named(client) == {"stable": 2, "v.next": 1}


async def test_a_version_with_an_alias_is_not_unloaded_alone(both: Path) -> None:
    say(both, NAMES)
    async with client_of(both) as (_, client):
        with pytest.raises(errors.ModelInUse, match="'counter' version 1 is what stable names"):
            await client.unload_model(MODEL, 1)
        await client.set_alias(MODEL, "stable", 2)
        await client.unload_model(MODEL, 1)
        assert await named(client) == {"canary": 2, "stable": 2}


async def test_the_alias_default_is_the_version_of_who_names_none(both: Path) -> None:
    """A newer version that comes is tried by those who name it."""
    say(both, "default = 1\ncanary = 2\n")
    async with client_of(both) as (_, client):
        async with client.session(MODEL) as plain, client.session(MODEL, version="canary") as canary:
            assert (plain.version, canary.version) == (1, 2)
        assert [found.version for found in await client.models() if found.is_default] == [1]
        await client.set_alias(MODEL, "default", None)
        async with client.session(MODEL) as plain, client.session(MODEL, version="default") as same:
            assert (plain.version, same.version) == (2, 2)


async def test_replicas_that_disagree_split_no_session(both: Path, tmp_path: Path, url: str) -> None:
    """One names version 1 canary, one version 2, one nothing: a session that exists is opened in its own by all."""
    folders = [shutil.copytree(both, tmp_path / name) for name in ("one", "two", "three")]
    say(folders[0], "canary = 1\n")
    say(folders[1], "canary = 2\n")
    async with contextlib.AsyncExitStack() as leaving:
        channels = []
        for folder in folders:
            local = await leaving.enter_async_context(serving(folder, store=url, checkpoint_interval=LONG))
            channels.append(local.channel)
        first, second, third = [await leaving.enter_async_context(Speaker(channel, MODEL)) for channel in channels]
        assert (await first.open_one("a", alias="canary")).version == 1
        assert sums(await first.step(0, 0, numbers(1))) == [1]
        await first.flush(0)
        taken = await second.open_one("a", alias="canary")
        assert (taken.version, taken.position) == (1, 1)
        assert sums(await second.step(0, 1, numbers(1))) == [2]
        await second.flush(0)
        assert (await second.open_one("b", 1, alias="canary")).version == 2
        assert (await third.open_one("a", mode=2, alias="canary")).version == 1  # RESUME asks for no alias.
        with pytest.raises(AssertionError, match=r"no alias .*canary.*its aliases: none; loaded versions: 1, 2"):
            await third.open_one("c", 1, alias="canary")


@pytest.mark.slow
async def test_a_client_goes_on_by_number_where_its_alias_has_moved(both: Path, url: str) -> None:
    """It is killed and comes back with another canary, then with none; the session is in its own version throughout."""
    path = say(both, "canary = 1\n")
    with (
        process(both, "--store", url) as server,
        statestream.connect(server.address) as client,
        client.session(MODEL, "a", version="canary") as session,
    ):
        assert session.step([1.0]).tolist() == [1]
        for text in ("canary = 2\n", ""):
            server.kill()
            path.write_text(text)
            server.start()
            session.step([1.0])
            assert session.version == 1
        assert session.step([0.0]).tolist() == [3]


async def test_the_open_inference_protocol_takes_aliases(both: Path, url: str) -> None:
    """As model_version, over gRPC and REST; a sequence that goes on does so in its version."""
    say(both, NAMES)
    async with client_of(both, store=url, http_port=0) as (local, client):
        async with triton.InferenceServerClient(local.address) as caller:
            x = triton.InferInput("x", [1, 1], "FP32")
            x.set_data_from_numpy(np.ones((1, 1), np.float32))

            async def infer(version: str, **more: Any) -> tuple[str, float]:
                found = await caller.infer(MODEL, [x], version, sequence_id=7, **more)
                return found.get_response().model_version, float(found.as_numpy("y").ravel()[0])

            assert await infer("canary", sequence_start=True) == ("2", 10.0)
            await client.set_alias(MODEL, "canary", 1)
            assert await infer("canary") == ("2", 20.0)
            await client.set_alias(MODEL, "canary", None)
            assert await infer("canary") == ("2", 30.0)
            await local.server.sessions.hibernate(table_of(local, 2), float("inf"))
            assert await infer("canary") == ("2", 40.0)
            with pytest.raises(InferenceServerException, match="no alias 'canary'"):
                await infer("canary", sequence_start=True)
            assert await infer("stable", sequence_start=True) == ("1", 1.0)
            assert await caller.is_model_ready(MODEL, "stable")
            assert not await caller.is_model_ready(MODEL, "canary")
            assert (await caller.get_model_metadata(MODEL, "stable")).versions == ["1", "2"]

        def rest() -> bytes:
            address = f"http://127.0.0.1:{local.running.http_port}/v2/models/{MODEL}/versions/stable/ready"
            with urllib.request.urlopen(address, timeout=10) as answer:
                return answer.read()

        assert b"true" in await asyncio.to_thread(rest)


async def test_only_who_may_administer_sets_an_alias(both: Path, tmp_path: Path) -> None:
    path, until = tmp_path / "tokens.toml", time.time() + 3600
    user, operator = (
        tokens.new(path, "acme", rights, until)[0] for rights in (frozenset({STEP}), frozenset({STEP, ADMIN}))
    )
    async with serving(both, tokens=path) as local:
        async with statestream.aio.connect(local.address, token=user) as client:
            with pytest.raises(errors.PermissionDenied, match="admin"):
                await client.set_alias(MODEL, "stable", 1)
        async with statestream.aio.connect(local.address, token=operator) as client:
            assert await client.set_alias(MODEL, "stable", 1) == {"stable": 1}


@pytest.mark.slow
async def test_all_processes_of_a_server_have_an_alias_once_it_is_set(both: Path, url: str) -> None:
    with process(both, "--store", url, "--workers", "2") as server:
        async with connected(server.address) as channel:
            await Caller(channel).models.SetAlias(model.SetAliasRequest(name=MODEL, alias="stable", version=1))
        for _ in range(6):
            async with connected(server.address) as channel:
                found = await Caller(channel).models.GetModel(model.GetModelRequest(name=MODEL, alias="stable"))
                assert found.model.version == 1
        assert server.stop() == 0
