"""What a server is pointed at: files, folders, nothing; and what is loaded by name of what came later."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from statestream.v1 import model_pb2
from tests.server.models.graphs import save
from tests.support import models
from tests.support.calls import Caller, connected, failing
from tests.support.serving import Process, launched, process, serving

Listed = list[tuple[str, int, bool]]


async def listed(channel: object) -> Listed:
    """Name, version and whether it serves."""
    answer = await Caller(channel).models.ListModels(model_pb2.ListModelsRequest())  # type: ignore[arg-type]
    return [(model.name, model.version, not model.error) for model in answer.models]


def served(*pointed: Path, options: tuple[str, ...] = ()) -> Listed:
    async def ask(address: str) -> Listed:
        async with connected(address) as channel:
            return await listed(channel)

    with process(pointed, "--store", "memory", *options) as server:
        return asyncio.run(ask(server.address))


def refused(*pointed: Path, options: tuple[str, ...] = ()) -> str:
    """What a server says that does not start."""
    with launched(Process(pointed, ["--store", "memory", *options])) as server:
        status = server.wait()
    assert status == 1, server.output
    assert "Traceback" not in server.output
    line = server.output.splitlines()[-1]
    assert line.startswith("Error: ")
    return line


def test_files_and_folders_of_every_layout_are_served_together(tmp_path: Path) -> None:
    file = save(models.counter(), tmp_path / "files", "tally.onnx")
    save(models.gru(), tmp_path / "folder", "gru.onnx")
    save(models.lstm(), tmp_path / "folder" / "lstm")
    save(models.scores(), tmp_path / "folder" / "scores" / "7")
    models.write(tmp_path / "pairs", "pair")
    (tmp_path / "pairs" / "pair" / "1").rename(tmp_path / "pairs" / "flat")
    assert served(file, tmp_path / "folder", tmp_path / "pairs" / "flat") == [
        ("flat", 1, True),
        ("gru", 1, True),
        ("lstm", 1, True),
        ("scores", 7, True),
        ("tally", 1, True),
    ]


def test_a_version_is_served_by_its_file(tmp_path: Path) -> None:
    assert served(save(models.counter(), tmp_path / "tally" / "3")) == [("tally", 3, True)]


def test_where_nothing_can_be_served_the_start_fails_and_shows_both_layouts(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    (folder / "empty").mkdir(parents=True)
    assert "it is empty; expected NAME.onnx, NAME/model.onnx or NAME/VERSION/model.onnx" in refused(folder / "empty")
    (folder / "net.pt").write_bytes(b"")
    said = refused(folder, options=("--workers", "2", "--store", f"sqlite:{tmp_path / 's.db'}"))
    assert "there is models/empty/, models/net.pt; expected NAME.onnx" in said
    assert "it is no .onnx file" in refused(folder / "net.pt")


def test_two_paths_of_one_name_do_not_start(tmp_path: Path) -> None:
    one, other = (save(models.counter(), tmp_path / folder, "net.onnx") for folder in "xy")
    said = refused(one, other)
    assert f"{one} and {other} are both version 1 of 'net'" in said


def test_a_file_that_is_served_alone_and_does_not_load_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"no model")
    assert "net.onnx: not a readable ONNX file" in refused(tmp_path / "net.onnx")
    assert served(tmp_path) == [("net", 1, False)], "into a folder another may come"


async def test_a_broken_newest_version_leaves_the_one_before_serving_over_a_start(tmp_path: Path) -> None:
    models.write_counter(tmp_path, 1)
    models.write_counter(tmp_path, 2)
    (tmp_path / "counter" / "3").mkdir()
    (tmp_path / "counter" / "3" / "model.onnx").write_bytes(b"no model")
    async with serving(tmp_path) as local:
        assert await listed(local.channel) == [("counter", 2, True), ("counter", 3, False)]


@pytest.mark.parametrize("later", ["counter.onnx", "counter/model.onnx", "counter/1/model.onnx"])
async def test_what_comes_into_an_empty_folder_is_loaded_by_name(tmp_path: Path, later: str) -> None:
    async with serving(tmp_path, allow_empty=True) as local:
        path = tmp_path / later
        save(models.counter(), path.parent, path.name)
        load = model_pb2.LoadModelRequest(name="counter")
        assert (await Caller(local.channel).models.LoadModel(load)).model.version == 1
        save(models.gru(), tmp_path, "gru.onnx")
        save(models.gru(), tmp_path / "gru")
        failure = await failing(Caller(local.channel).models.LoadModel(model_pb2.LoadModelRequest(name="gru")))
        assert failure.reason == "UNSUPPORTED"
        both = f"{tmp_path / 'gru/model.onnx'} and {tmp_path / 'gru.onnx'} are both version 1 of 'gru'"
        assert both in failure.message
        assert await listed(local.channel) == [("counter", 1, True), ("gru", 1, False)]
