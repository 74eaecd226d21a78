"""Aliases when something goes wrong: files that are none, full disks, two who set one at once, callers who leave."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

import statestream
from statestream import errors
from statestream_server import app
from statestream_server.models.files import aliases, repository
from statestream_server.models.files.aliases import AliasesError
from tests.server.versions.counters import LONG, MODEL
from tests.server.versions.test_aliases import client_of, looks, named, say
from tests.support import models
from tests.support.serving import free_settings, process, serving


def test_what_is_no_file_of_aliases_is_never_waited_for(tmp_path: Path) -> None:
    """Pipes, devices, folders and links that lead nowhere; each is told, and none is taken for a file without any."""
    path = tmp_path / "aliases.toml"
    assert aliases.read(path) == {}
    for make, told in (
        (lambda: os.mkfifo(path), "no regular file"),
        (lambda: path.symlink_to("/dev/zero"), "no regular file"),
        (lambda: path.symlink_to(tmp_path / "gone"), "a link that leads nowhere"),
        (lambda: path.symlink_to(path), "symbolic links"),
        (lambda: path.mkdir(), "Is a directory"),
        (lambda: path.write_bytes(b"# " + b"x" * (1 << 17)), "more than 65,536 bytes"),
        (lambda: path.write_bytes(b"\xff"), "can't decode"),
        (lambda: path.write_text("a = 1\n" * 2), "overwrite"),
    ):
        make()
        with pytest.raises(AliasesError, match=told):
            aliases.read(path)
        (path.rmdir if path.is_dir() else path.unlink)()


def test_two_files_of_one_size_and_time_are_two(tmp_path: Path) -> None:
    path = tmp_path / "aliases.toml"
    for number in (1, 2):
        path.write_text(f"stable = {number}\n")
        os.utime(path, (1, 1))
        assert aliases.read(path) == {"stable": number}


def test_an_edit_keeps_the_link_the_words_and_the_rights_of_a_file(tmp_path: Path) -> None:
    """Also of one from a machine with other ends of lines; what a killed one left is nobody's."""
    (tmp_path / "elsewhere").mkdir()
    real, path = tmp_path / "elsewhere" / "names.toml", tmp_path / "counter" / "aliases.toml"
    path.parent.mkdir()
    real.write_bytes(b"\xef\xbb\xbf# Ours.\r\nstable = 1  # since spring\r\n")
    real.chmod(0o640)
    real.with_name(".names.toml.new").write_text("half of")
    path.symlink_to(real)
    aliases.edit([path.parent], "stable", 2)
    assert aliases.read(path) == {"stable": 2}
    assert path.is_symlink()
    assert real.read_bytes() == b"# Ours.\nstable = 2  # since spring\n"
    assert real.stat().st_mode & 0o777 == 0o640
    assert sorted(one.name for one in real.parent.iterdir()) == ["names.toml"]


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "aliases.toml"
    for text, told in (
        ("".join(f"a{number} = 1\n" for number in range(256)), "257 aliases; expected 256 at most"),
        ("# " + "x" * 100 + "\n" + "# y\n" * ((65536 - 103) // 4), "more than 65,536 bytes"),
    ):
        path.write_text(text)
        with pytest.raises(AliasesError, match=f"would not be read with more in it: it has {told}"):
            aliases.edit([tmp_path], "more", 2)
        assert path.read_text() == text


@pytest.mark.parametrize("place", ["fsync", "replace"])
async def test_a_full_disk_changes_nothing(both: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = say(both, "stable = 1\n")
    where = rf"{path}: " if place == "fsync" else ""  # A rename says it itself.

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with client_of(both) as (_, client):
        with monkeypatch.context() as patch:
            patch.setattr(os, place, full)
            with pytest.raises(
                errors.Unsupported, match=rf"cannot be written: {where}No space left on device; write stable = 2"
            ):
                await client.set_alias(MODEL, "stable", 2)
        assert (path.read_text(), await named(client)) == ("stable = 1\n", {"stable": 1})
        assert sorted(one.name for one in path.parent.iterdir()) == ["1", "2", "aliases.toml"]
        assert await client.set_alias(MODEL, "stable", 2) == {"stable": 2}


@pytest.mark.parametrize("place", ["fsync", "replace", "broken"])
def test_of_several_files_all_change_or_none(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with the last of them: the disk is full, it cannot be put in its place, it is no such file."""
    folders, said = [tmp_path / name for name in "abc"], [b"\xef\xbb\xbfstable = 1\r\n", None, b"stable = 1\n"]
    for folder, text in zip(folders, said, strict=True):
        folder.mkdir()
        if text is not None:
            (folder / "aliases.toml").write_bytes(text)
    (tmp_path / "again").symlink_to(folders[0])  # Which is the first by another name.
    folders.insert(1, tmp_path / "again")
    calls = iter([None, None, OSError(errno.ENOSPC, "No space left on device")])

    def failing(real: Any) -> Any:
        def call(*args: Any) -> Any:
            if (error := next(calls, None)) is not None:
                raise error
            return real(*args)

        return call

    with monkeypatch.context() as patch:
        if place == "broken":
            said[-1] = broken = b"stable = [\n"
            (folders[-1] / "aliases.toml").write_bytes(broken)
        else:
            patch.setattr(os, place, failing(getattr(os, place)))
        with pytest.raises(AliasesError if place == "broken" else OSError):
            aliases.edit(folders, "stable", 2)
    for name, text in zip("abc", said, strict=True):
        left = {one.name: one.read_bytes() for one in (tmp_path / name).iterdir()}
        assert left == ({} if text is None else {"aliases.toml": text})
    if place != "broken":
        aliases.edit(folders, "stable", 2)
        assert [aliases.read(tmp_path / name / "aliases.toml") for name in "abc"] == [{"stable": 2}] * 3


class Killed(BaseException):
    """As SIGKILL: nothing is put back."""


def killed_at(nth: int, folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets an alias to version 2, and is killed before a rename."""
    replace, unlink, done = os.replace, Path.unlink, list[object]()

    def replacing(*args: Any) -> None:
        done.append(args)
        if len(done) == nth:
            raise Killed
        replace(*args)

    def unlinking(path: Path, **kind: Any) -> None:
        if len(done) < nth:
            unlink(path, **kind)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replacing)
        patch.setattr(aliases, "_put_back", lambda *_: None)
        patch.setattr(Path, "unlink", unlinking)
        with pytest.raises(Killed):
            aliases.edit(folders, "stable", 2)


@pytest.mark.parametrize("nth", [1, 2])
async def test_an_edit_of_two_files_that_was_killed_is_decided_for_all(
    nth: int, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One folder says something else than the other, and a server that starts then serves what was decided."""
    other = models.write_counter(tmp_path / "other", 2, factor=10)
    paths = [say(place, "stable = 1\nold = 1\n") for place in (folder, other)]
    killed_at(nth, [path.parent for path in paths], monkeypatch)
    if nth == 2:
        assert [aliases.read(path)["stable"] for path in paths] == [2, 1]
    settings = dataclasses.replace(free_settings(folder), models=(folder, other))
    async with app.running(settings) as running, statestream.aio.connect(f"127.0.0.1:{running.port}") as client:
        assert await named(client) == {"stable": nth, "old": 1}
        assert await client.set_alias(MODEL, "old", 2) == {"stable": nth, "old": 2}
    assert [aliases.read(path) for path in paths] == [{"stable": nth, "old": 2}] * 2
    if nth == 1:
        return
    assert not [one for path in paths for one in path.parent.iterdir() if one.name.endswith(".new")]
    assert "stay as they are" not in caplog.text


def test_what_a_killed_edit_left_is_no_answer_to_what_others_wrote_since(
    both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that disagree because of somebody's own words are told; so they are where the edit had decided nothing."""
    other = models.write_counter(tmp_path / "other", 3)
    paths = [say(place, "stable = 1\n") for place in (both, other)]
    scan = repository.scan([both, other])
    for nth, texts in ((2, ("stable = 2\n", "stable = 3\n")), (1, ("stable = 3\n", None))):
        for path in paths:
            path.write_text("stable = 1\n")
        killed_at(nth, [path.parent for path in paths], monkeypatch)
        for path, text in zip(paths, texts, strict=True):
            if text is not None:
                path.write_text(text)
                os.utime(path, ns=(2**62, 2**62))  # After all that was left.
        for _ in range(2):
            assert "have both name one version" in aliases.told(scan).wrong[MODEL]
            aliases.finish([path.parent for path in paths])
            assert {path: path.read_text() for path in paths} == {
                path: text or "stable = 1\n" for path, text in zip(paths, texts, strict=True)
            }


async def test_an_edit_waits_for_no_process_that_was_stopped_at_its_own(
    both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = say(both, "stable = 1\n")
    monkeypatch.setattr(aliases, "_MOST_WAITED", 0.0)
    async with client_of(both) as (_, client):
        held = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(errors.Unsupported, match=r"counter: another process has kept it locked .*end that one"):
                await client.set_alias(MODEL, "stable", 2)
        finally:
            os.close(held)
        assert (path.read_text(), await named(client)) == ("stable = 1\n", {"stable": 1})
        assert await client.set_alias(MODEL, "stable", 2) == {"stable": 2}


async def test_whoever_names_an_alias_hears_that_its_file_is_wrong(both: Path) -> None:
    """Also of a server that has started over such a file, and knows none; until it is mended."""
    say(both, "stable = \n")
    told = r"no alias 'stable'; its aliases: none; .* what was said last is not taken: \S*aliases.toml: Invalid value"
    async with client_of(both) as (local, client):
        for _ in range(2):
            with pytest.raises(errors.ModelNotFound, match=told):
                await client.session(MODEL, version="stable")
            await looks(local, 0, 3)
        say(both, "")
        await looks(local, 4, 7)
        with pytest.raises(errors.ModelNotFound, match=r"its aliases: none; loaded versions: 2$"):
            await client.session(MODEL, version="stable")


async def test_whoever_names_an_alias_hears_that_its_version_does_not_load(both: Path) -> None:
    """Of a server that has started so, too: another over the same folder may have it."""
    kept = (both / MODEL / "2" / "model.onnx").read_bytes()
    (both / MODEL / "2" / "model.onnx").write_bytes(kept[:-20])
    say(both, "stable = 2\n")
    async with client_of(both) as (local, client):
        for _ in range(2):
            with pytest.raises(
                errors.ModelNotFound, match="its aliases: none; .* not taken: stable = 2: .*readable ONNX"
            ):
                await client.session(MODEL, version="stable")
            await looks(local, 0, 3)
        (both / MODEL / "2" / "model.onnx").write_bytes(kept)
        assert await client.set_alias(MODEL, "stable", 2) == {"stable": 2}
        with pytest.raises(errors.ModelNotFound, match="loaded versions: 1, 2$"):
            await client.session(MODEL, version="canary")


async def test_a_link_to_the_models_that_leads_nowhere_is_told_to_whoever_asks_for_others(
    folder: Path, tmp_path: Path
) -> None:
    link = tmp_path / "current"
    link.symlink_to(folder)
    told = r"no version 2; loaded: 1; models cannot be looked for: \S*/current: No such file"
    async with client_of(link) as (_, client):
        link.unlink()
        link.symlink_to(tmp_path / "nowhere")
        for asked in (client.load_model(MODEL, 2), client.set_alias(MODEL, "stable", 2)):
            with pytest.raises(errors.ModelNotFound, match=told):
                await asked
        async with client.session(MODEL) as session:
            assert (await session.step([1.0])).tolist() == [1]


async def test_a_slow_load_for_an_older_file_does_not_undo_what_was_set(
    both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file names a version that loads for long; meanwhile an operator sets another."""
    say(both, "stable = 2\n")
    async with client_of(both) as (local, client):
        server = local.server
        begun, go, load = asyncio.Event(), asyncio.Event(), server.selection.load

        async def slow(name: str, version: int = 0, alias: str = "") -> object:
            if version == 1 and not begun.is_set():
                begun.set()
                await go.wait()
            return await load(name, version, alias)

        monkeypatch.setattr(server.selection, "load", slow)
        say(both, "stable = 1\n")
        for now in (0, 3):
            await server.aliasing.look(now)
        await begun.wait()
        setting = asyncio.create_task(client.set_alias(MODEL, "stable", 2))
        await local.until(lambda: aliases.read(both / MODEL / "aliases.toml") == {"stable": 2})
        await asyncio.wait([setting], timeout=0.05)
        go.set()
        await asyncio.wait([*server.aliasing._taking.values()])
        assert await setting == {"stable": 2}
        assert await named(client) == {"stable": 2}


async def test_whoever_leaves_leaves_the_file_and_the_server_agreed(both: Path) -> None:
    """A call that is cancelled in any turn of the loop; begun, it ends."""
    path = say(both, "stable = 1\n")
    async with serving(both, checkpoint_interval=LONG) as local:
        aliasing, registry = local.server.aliasing, local.server.registry
        for turns in range(12):
            task = asyncio.create_task(aliasing.set(MODEL, "stable", 1 + turns % 2))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            while left := [one for one in asyncio.all_tasks() if one.get_name() == "alias"]:
                await asyncio.wait(left)
            assert registry.aliases(MODEL) == aliases.read(path)
        # Two at once disagree; that one is overtaken is no failure.
        many = [aliasing.set(MODEL, "stable", 1 + number % 2) for number in range(8)]
        await asyncio.gather(*many)
        assert registry.aliases(MODEL) == aliases.read(path) == {"stable": 2}


async def test_an_alias_that_was_written_before_its_version_came_is_taken_then(both: Path) -> None:
    say(both, "stable = 1\nnext = 3\n")
    async with client_of(both) as (local, client):
        await looks(local, 0, 3)
        assert await named(client) == {"stable": 1}
        models.write_counter(both, 3, factor=100)
        await looks(local, 4, 5)
        assert await named(client) == {"stable": 1}  # It may be written still.
        await looks(local, 7)
        assert await named(client) == {"stable": 1, "next": 3}
        await client.unload_model(MODEL)
        await looks(local, 8, 11)
        assert not await client.models()  # What was unloaded on purpose stays so.


async def test_whoever_sets_an_alias_hears_where_it_names_nothing(
    both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its version was unloaded behind the check, or another folder of the model says something else."""
    async with client_of(both) as (local, client):
        selection, load = local.server.selection, local.server.selection.load

        async def once(name: str, version: int = 0, alias: str = "") -> object:
            monkeypatch.setattr(selection, "load", load)
            found = await load(name, version, alias)
            await selection.unload(name, version)
            (both / MODEL / "1").rename(tmp_path / "1")
            return found

        monkeypatch.setattr(selection, "load", once)
        with pytest.raises(errors.Unsupported, match="stable of 'counter' stands in the file, and .*: .* no version 1"):
            await client.set_alias(MODEL, "stable", 1)
        assert await named(client) == {}
        (tmp_path / "1").rename(both / MODEL / "1")
        assert await client.set_alias(MODEL, "stable", 1) == {"stable": 1}


@pytest.mark.slow
async def test_a_worker_that_ended_over_an_alias_leaves_none_behind(both: Path) -> None:
    """Nobody watches: whoever comes up in its place has all of them read the file, as he does."""
    with process(both, "--workers", "2", "--no-watch") as server:

        async def answers() -> set[object]:
            found = set[object]()
            for _ in range(32):  # Enough that no worker is missed by chance.
                async with statestream.aio.connect(server.address) as client:
                    found.add(tuple(sorted((await named(client)).items())))
            return found

        assert await answers() == {()}
        say(both, "stable = 1\n")  # As if its worker were killed between this and telling the others.
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        os.kill(int(children[-1]), 9)
        async with asyncio.timeout(20):
            while await answers() != {(("stable", 1),)}:  # Each asks anew, over connections of its own.
                pass
        assert server.stop() == 0
