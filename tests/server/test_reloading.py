"""Reloading: what appears is loaded and serves, what is broken or half-written does not, what is open stays."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statestream.v1 import inference_pb2 as pb
from statestream.v1 import model_pb2
from statestream_server import reloading
from statestream_server.models.model import Kind
from statestream_server.models.proof.verdict import TrialLimits
from statestream_server.reloading import Reloader
from statestream_server.settings import Settings
from tests.server.models.form_zoo_chains import preprocessed
from tests.server.models.form_zoo_windows import WINDOWS
from tests.server.models.graphs import save
from tests.support import hostile, models
from tests.support.calls import DEADLINE, Caller, connected
from tests.support.counter import numbers, sums
from tests.support.serving import Local, Process, process, serving
from tests.support.speaker import Speaker


class Watched:
    """A server in this process, and looks at its models by a clock that the test sets."""

    def __init__(self, local: Local) -> None:
        self.local = local
        self.registry = local.server.registry
        self.reloader = Reloader(self.registry, local.server.settings.models, local.server.selection.load_found)
        self.now = 0.0

    async def look(self, seconds: float = 1.0) -> None:
        """One look after some seconds; what it began to load has ended."""
        self.now += seconds
        await self.reloader.look(self.now)
        while self.reloader._loading:
            await asyncio.wait([*self.reloader._loading.values()])

    async def settle(self) -> None:
        """Looks until what stands still was dealt with."""
        for _ in range(4):
            await self.look()

    def default(self, name: str = "counter") -> int:
        return int(self.registry.get(name).model.version)


@contextlib.asynccontextmanager
async def watched(folder: Path, **settings: Any) -> AsyncIterator[Watched]:
    async with serving(folder, **settings) as local:
        one = Watched(local)
        await one.look()
        yield one
        one.reloader.close()


async def test_a_new_version_serves_once_it_stood_still_and_sessions_stay_on_theirs(tmp_path: Path) -> None:
    models.write_counter(tmp_path, 1)
    async with watched(tmp_path) as one, Speaker(one.local.channel, "counter") as speaker:
        await speaker.open_one("old")
        assert sums(await speaker.step(0, 0, numbers(1))) == [1]
        models.write_counter(tmp_path, 2)
        await one.look()
        await one.look()
        assert one.default() == 1
        await one.look()
        assert one.default() == 2
        assert sums(await speaker.step(0, 1, numbers(2))) == [3]
        assert (await speaker.open_one("old", 0)).version == 1
        assert (await speaker.open_one("new", 1)).version == 2
        found = await Caller(one.local.channel).models.GetModel(model_pb2.GetModelRequest(name="counter"))
        assert (found.model.version, found.model.is_default) == (2, True)


@pytest.mark.parametrize("place", ["gru.onnx", "gru/model.onnx", "gru/1/model.onnx"])
async def test_a_new_model_serves_in_every_layout(tmp_path: Path, place: str) -> None:
    async with watched(tmp_path, allow_empty=True) as one:
        save(models.gru(), (tmp_path / place).parent, Path(place).name)
        await one.settle()
        assert one.default("gru") == 1


async def test_what_is_copied_slowly_is_never_tried_before_it_stands_still(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models.write_counter(tmp_path, 1)
    data = models.counter().SerializeToString()
    async with watched(tmp_path) as one:
        (tmp_path / "counter" / "2").mkdir()
        with (tmp_path / "counter" / "2" / "model.onnx").open("wb") as file:
            for byte in data[:20]:
                file.write(bytes([byte]))
                file.flush()
                await one.look(1.9)
                assert one.registry.loader.tried("counter", 2) is None
            file.write(data[20:])
        await one.settle()
        assert one.default() == 2
        assert not one.registry.failures
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("which", ["model.onnx", "w.bin"])
async def test_a_copy_that_paused_too_long_is_a_failure_until_it_goes_on(tmp_path: Path, which: str) -> None:
    """In a file with the graph, or in one with weights beside it."""
    made = hostile.adding(hostile.outside("w", "w.bin", more=[("length", "16")])).SerializeToString()
    whole = {"model.onnx": made, "w.bin": np.ones(4, np.float32).tobytes()}
    async with watched(tmp_path, allow_empty=True) as one:
        (tmp_path / "m").mkdir()
        for name, data in whole.items():
            (tmp_path / "m" / name).write_bytes(data[: len(data) // 2] if name == which else data)
        await one.settle()
        assert list(one.registry.failures) == [("m", 1)]
        (tmp_path / "m" / which).write_bytes(whole[which])
        await one.settle()
        assert not one.registry.failures
        assert one.default("m") == 1


async def test_a_file_that_is_written_while_it_is_tried_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched(tmp_path, allow_empty=True, trial=TrialLimits(seconds=1)) as one:
        path = hostile.put(hostile.endless(), tmp_path, "m")
        await one.look()
        await one.look()
        one.now += 1
        await one.reloader.look(one.now)
        await one.local.until(lambda: one.registry.loader.tried("m", 1))
        path.write_bytes(models.gru().SerializeToString())
        while one.reloader._loading:
            await asyncio.wait([*one.reloader._loading.values()])
        assert not one.registry.failures
        await one.settle()
        assert one.default("m") == 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_broken_new_version_is_told_once_and_the_old_one_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models.write_counter(tmp_path, 1)
    async with watched(tmp_path) as one:
        path = hostile.put(b"no model", tmp_path, "counter", 3)
        await one.settle()
        await one.settle()
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
            one.registry.failures["counter", 3]
        ]
        listed = (await Caller(one.local.channel).models.ListModels(model_pb2.ListModelsRequest())).models
        assert [(m.version, m.is_default, bool(m.error)) for m in listed] == [(1, True, False), (3, False, True)]
        # One below it, above what serves, is as good as any.
        models.write_counter(tmp_path, 2)
        await one.settle()
        assert one.default() == 2
        # Mended, it serves; gone, it is no failure any more.
        path.write_bytes(models.counter().SerializeToString())
        await one.settle()
        assert one.default() == 3
        hostile.put(b"no model", tmp_path, "counter", 4)
        await one.settle()
        assert ("counter", 4) in one.registry.failures
        shutil.rmtree(tmp_path / "counter" / "4")
        await one.settle()
        assert not one.registry.failures


async def test_a_start_that_failed_for_a_file_is_made_good_once_it_is_whole(tmp_path: Path) -> None:
    path = hostile.put(models.gru().SerializeToString()[:100], tmp_path, "gru")
    async with watched(tmp_path) as one:
        assert ("gru", 1) in one.registry.failures
        path.write_bytes(models.gru().SerializeToString())
        await one.settle()
        assert one.default("gru") == 1


async def test_a_file_that_is_replaced_in_place_is_refused_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models.write_counter(tmp_path, 1)
    path = tmp_path / "counter" / "1" / "model.onnx"
    async with watched(tmp_path) as one, Speaker(one.local.channel, "counter") as speaker:
        await speaker.open_one("a")
        digest = one.registry.get("counter").model.digest
        os.utime(path)  # The same bytes: nothing to tell.
        await one.settle()
        assert not caplog.records
        save(models.counter(factor=3), path.parent)
        await one.settle()
        await one.settle()
        (said,) = [record.getMessage() for record in caplog.records]
        assert said.startswith(f"{path}: was replaced while version 1 of counter serves")
        assert "as another version (counter/2/model.onnx)" in said
        assert one.registry.get("counter").model.digest == digest
        assert sums(await speaker.step(0, 0, numbers(1))) == [1]


async def test_a_chain_is_loaded_when_all_its_files_are_there_and_told_when_one_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chain = preprocessed()
    async with watched(tmp_path, allow_empty=True) as one:
        folder = tmp_path / "scaled" / "1"
        folder.mkdir(parents=True)
        (folder / "model.toml").write_text(chain.told)
        save(chain.files["scale.onnx"], folder, "scale.onnx")
        await one.settle()
        assert "cell.onnx: cannot be read" in one.registry.failures["scaled", 1]
        save(chain.files["cell.onnx"], folder, "cell.onnx")
        await one.settle()
        assert one.default("scaled") == 1
        caplog.clear()
        save(models.gru(), folder, "cell.onnx")
        await one.settle()
        await one.settle()
        (said,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
        assert said.startswith(f"{folder / 'cell.onnx'}: was replaced while version 1 of scaled serves")
        assert "(scaled/2/model.toml)" in said
        newer = shutil.copytree(folder, tmp_path / "scaled" / "2")
        await one.settle()
        assert one.default("scaled") == 1, "one of its files is another model, so nothing fits"
        save(chain.files["cell.onnx"], newer, "cell.onnx")
        await one.settle()
        assert one.default("scaled") == 2


async def test_what_settles_a_file_and_comes_after_it_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(WINDOWS["cnn over a window"]().model, tmp_path, "mlp.onnx")
    async with watched(tmp_path) as one:
        assert one.registry.get("mlp").model.kind == Kind.PREDICT
        (tmp_path / "mlp.toml").write_text(WINDOWS["cnn over a window"]().told)
        await one.settle()
        await one.settle()
        (said,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
        assert said.startswith(f"{tmp_path / 'mlp.toml'}: came while version 1 of mlp serves")
        assert "or start the server anew" in said


async def test_a_version_that_goes_is_no_default_and_stays_while_a_session_needs_it(tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path / 'sessions.db'}"
    folder = tmp_path / "models"
    models.write_counter(folder, 1)
    models.write_counter(folder, 2)
    async with watched(folder, store=store) as one, Speaker(one.local.channel, "counter") as speaker:
        assert (await speaker.open_one("a")).version == 2
        await speaker.step(0, 0, numbers(1))
        shutil.rmtree(folder / "counter" / "2")
        await one.settle()
        await one.settle()
        assert one.default() == 1, "the one before is loaded, and serves"
        assert sums(await speaker.step(0, 1, numbers(2))) == [3]
        assert (await speaker.open_one("b", 1)).version == 1
        await reloading._let_go(one.local.server)
        assert one.registry.is_loaded("counter", 2)
        # It sleeps in the store: it needs its version as much.
        await speaker.close(0)
        table = one.registry.table("counter", 2)
        await one.local.server.sessions.hibernate(table, np.inf)
        assert not table.sessions
        await reloading._let_go(one.local.server)
        assert (await speaker.open_one("a", 0)).version == 2
        await speaker.close(0, delete=True)
        await reloading._let_go(one.local.server)
        assert not one.registry.is_loaded("counter", 2)


async def test_a_version_that_comes_back_serves_again(tmp_path: Path) -> None:
    models.write_counter(tmp_path, 1)
    models.write_counter(tmp_path, 2)
    async with watched(tmp_path) as one:
        aside = (tmp_path / "counter" / "2").rename(tmp_path / ".aside")
        await one.settle()
        await one.settle()
        assert one.default() == 1
        aside.rename(tmp_path / "counter" / "2")
        await one.look()
        assert one.default() == 2
        # And after it was let go of.
        (tmp_path / "counter" / "2").rename(aside)
        await one.settle()
        await reloading._let_go(one.local.server)
        assert not one.registry.is_loaded("counter", 2)
        aside.rename(tmp_path / "counter" / "2")
        await one.settle()
        assert one.default() == 2


async def test_a_folder_that_cannot_be_read_or_is_empty_takes_nothing_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = models.write(tmp_path / "models", "counter")
    async with watched(folder) as one:
        folder.rename(tmp_path / "away")
        await one.settle()
        folder.mkdir()
        await one.settle()
        assert one.default() == 1
        assert not one.registry.is_gone("counter", 1)
        assert (
            len([record for record in caplog.records if "what is loaded goes on serving" in record.getMessage()]) == 1
        )
        folder.rmdir()
        (tmp_path / "away").rename(folder)
        models.write_counter(folder, 2)
        await one.settle()
        assert one.default() == 2


async def test_what_was_unloaded_on_purpose_stays_so(tmp_path: Path) -> None:
    models.write_counter(tmp_path, 1)
    models.write_counter(tmp_path, 2)
    models.write(tmp_path, "gru")
    async with watched(tmp_path) as one:
        await Caller(one.local.channel).models.UnloadModel(model_pb2.UnloadModelRequest(name="counter"))
        await one.settle()
        assert not one.registry.is_loaded("counter", 2)
        assert not one.registry.is_loaded("counter", 1)
        models.write_counter(tmp_path, 3)
        await one.settle()
        assert one.default() == 3


async def test_a_clash_is_told_once_and_ends_with_its_cause(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models.write(tmp_path, "counter", "gru")
    async with watched(tmp_path) as one:
        save(models.counter(), tmp_path, "counter.onnx")
        save(models.lstm(), tmp_path, "lstm.onnx")
        save(models.lstm(), tmp_path / "lstm")
        await one.settle()
        await one.settle()
        said = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
        assert len(said) == 2
        assert all("are both version 1 of" in text for text in said)
        assert list(one.registry.failures) == [("lstm", 1)], "what serves goes on serving"
        assert one.default() == 1
        (tmp_path / "lstm.onnx").unlink()
        await one.settle()
        assert not one.registry.failures
        assert one.default("lstm") == 1


async def test_a_line_in_the_list_of_what_is_trusted_is_enough(tmp_path: Path) -> None:
    trusted = tmp_path / "trusted"
    trusted.write_text("")
    folder = models.write(tmp_path / "models", "gru")
    async with watched(folder, trust=trusted) as one:
        reason = one.registry.failures["gru", 1]
        trusted.write_text(reason.partition("the line: ")[2] + "\n")
        await one.settle()
        assert one.default("gru") == 1


@pytest.mark.slow
async def test_a_look_reads_no_file_that_is_as_it_was(tmp_path: Path) -> None:
    """It is done once a second, of a hundred models with three versions each, too."""
    for number in range(100):
        for version in range(1, 4):
            hostile.put(b"", tmp_path, f"m{number}", version)
    read, counts = list[str](), False

    def opened(event: str, arguments: Any) -> None:
        if counts and event == "open" and str(arguments[0]).startswith(str(tmp_path)):
            read.append(arguments[0])

    async with serving(tmp_path, allow_empty=True) as local:
        reloader = Reloader(local.server.registry, local.server.settings.models, local.server.selection.load_found)
        await reloader.look(0.0)
        sys.addaudithook(opened)  # Nothing removes it.
        counts = True
        await reloader.look(1.0)
        assert not read
        hostile.put(b"x", tmp_path, "m7", 3)
        await reloader.look(2.0)
        await reloader.look(10.0)
        while reloader._loading:
            await asyncio.wait(reloader._loading.values())
        counts = False
    assert read
    assert all(Path(path).is_relative_to(tmp_path / "m7" / "3") for path in read)


def test_models_of_other_machines_are_watched_only_where_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {watch: Settings((tmp_path,), watch=watch) for watch in (None, True, False)}
    assert reloading.is_wanted(settings[None])
    assert not reloading.is_wanted(settings[False])
    for kind in ("nfs4", "fuse.s3fs"):
        monkeypatch.setattr(reloading, "_file_system", lambda place, kind=kind: kind)
        assert not reloading.is_wanted(settings[None])
        assert reloading.is_wanted(settings[True])


# Over real processes.


async def opened_version(address: str, session: str, mode: Any = pb.OPEN_MODE_EITHER) -> int:
    async with connected(address) as channel, Speaker(channel, "counter") as speaker:
        return int((await speaker.open_one(session, mode=mode)).version)


async def serves_version(server: Process, version: int) -> None:
    """Waits until new sessions get a version, of whichever process."""
    async with asyncio.timeout(DEADLINE):
        good = 0
        while good < 6:
            async with connected(server.address) as channel:
                request = model_pb2.GetModelRequest(name="counter")
                found = (await Caller(channel).models.GetModel(request)).model.version
            good = good + 1 if found == version else 0
            await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_processes_switch_to_a_version_that_is_renamed_into_place(tmp_path: Path, workers: str) -> None:
    folder, store = tmp_path / "models", f"sqlite:{tmp_path / 's.db'}"
    models.write_counter(folder, 1)
    with process(folder, "--store", store, "--workers", workers, "--durability", "sync") as server:
        async with connected(server.address) as channel, Speaker(channel, "counter") as speaker:
            await speaker.open_one("old")
            models.write_counter(tmp_path / "made", 2)
            (tmp_path / "made" / "counter" / "2").rename(folder / "counter" / "2")
            await serves_version(server, 2)
            assert sums(await speaker.step(0, 0, numbers(1))) == [1]
            hostile.put(b"no model", folder, "counter", 3)
            server.wait_for(r"ERROR .*counter/3/model.onnx: not .*")
            assert sums(await speaker.step(0, 1, numbers(2))) == [3]
        assert await opened_version(server.address, "old") == 1
        assert await opened_version(server.address, "new") == 2
        # A start finds what serves: the newest that loads.
        server.kill()
        server.start()
        assert await opened_version(server.address, "old", pb.OPEN_MODE_RESUME) == 1
        assert await opened_version(server.address, "newer") == 2
        assert server.stop() == 0


def trial_of(pid: int) -> bool:
    """Whether a process of the server runs and runs: it tries what hangs."""
    # A child is that of the thread which made it.
    listed = [each.read_text() for each in Path(f"/proc/{pid}/task").glob("*/children")]
    for child in " ".join(listed).split():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            if int(fields[11]) > 3 * os.sysconf("SC_CLK_TCK"):  # It needs less for all that does not hang.
                return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_a_kill_during_a_reload_loses_nothing(tmp_path: Path) -> None:
    folder, store = tmp_path / "models", f"sqlite:{tmp_path / 's.db'}"
    models.write_counter(folder, 1)
    with process(folder, "--store", store, "--durability", "sync", "--load-timeout", "300") as server:
        async with connected(server.address) as channel, Speaker(channel, "counter") as speaker:
            await speaker.open_one("old")
            assert sums(await speaker.step(0, 0, numbers(1))) == [1]
            hanging = hostile.put(hostile.endless(), folder, "counter", 2)
            async with asyncio.timeout(240):  # The trial has to have a processor for some seconds.
                while not trial_of(server.pid):  # noqa: ASYNC110 (nobody tells when a trial begins)
                    await asyncio.sleep(0.05)
        server.signal(signal.SIGKILL)
        server.wait()
        hanging.write_bytes(models.counter().SerializeToString())
        server.start()
        async with connected(server.address) as channel, Speaker(channel, "counter") as speaker:
            opened = await speaker.open_one("old", mode=pb.OPEN_MODE_RESUME)
            assert (opened.version, opened.position) == (1, 1)
            assert sums(await speaker.step(0, 1, numbers(2))) == [3]
            assert (await speaker.open_one("new", 1)).version == 2
        assert server.stop() == 0
