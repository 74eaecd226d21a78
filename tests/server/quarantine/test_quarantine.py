"""What is learnt of processes that died: who is suspected, who is not run any more, and who goes free."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from statestream import errors
from statestream_server.engine.watch import tag_of
from statestream_server.quarantine.quarantine import ANYTHING, Quarantine, Work, name_of
from statestream_server.quarantine.recorder import MOST_TAGS, Recorder, deaths

MODEL, OTHER = bytes(range(16)), bytes(16)


def die(folder: Path, tags: list[int], number: int, *, model: bytes = MODEL, what: str = "") -> None:
    """A process notes that it runs something, and dies of a signal; SIGSEGV is a fault of its own."""
    code = f"""
import os, numpy as np
from pathlib import Path
from statestream_server.quarantine.recorder import Recorder
recorder = Recorder(Path({str(folder)!r}))
recorder.hear_signals()
recorder.enter({model!r}, np.asarray({tags!r}, np.uint64), what={what!r})
os.kill(os.getpid(), {int(number)})
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == -number


def started(folder: Path) -> Quarantine:
    quarantine = Quarantine(folder, clock=lambda: 1000.0)
    quarantine.start()
    return quarantine


def suspects(quarantine: Quarantine, *tags: int) -> list[int]:
    found = quarantine.suspected(MODEL, np.asarray(tags, np.uint64))
    return [] if found is None else np.asarray(tags)[found].tolist()


def test_what_ran_in_a_death_is_suspected_until_it_went_well(tmp_path: Path) -> None:
    die(tmp_path, [5, 6, 7], signal.SIGKILL)
    quarantine = started(tmp_path)
    assert suspects(quarantine, 4, 5, 6, 7, 8) == [5, 6, 7]
    quarantine.check(MODEL, 5)
    quarantine.survived(MODEL, np.asarray([6], np.uint64))
    assert suspects(quarantine, 5, 6, 7) == [5, 7]
    quarantine.close()
    again = started(tmp_path)
    assert suspects(again, 5, 6, 7) == [5, 7], "another process knows it too"
    again.close()


def test_what_is_mapped_is_on_the_disk_or_nothing_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of a file that finds no room when it is first written ends the process with SIGBUS."""
    recorder = Recorder(tmp_path)
    found = recorder.path.stat()
    assert found.st_blocks * 512 >= found.st_size
    recorder.close()
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:4096]))  # As a disk that is nearly full does.
    with pytest.raises(OSError, match="No space left on device"):
        Recorder(tmp_path)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("number", "most"), [(signal.SIGSEGV, 2), (signal.SIGFPE, 2), (signal.SIGKILL, 3)])
def test_what_ran_alone_in_more_deaths_is_quarantined(tmp_path: Path, number: signal.Signals, most: int) -> None:
    die(tmp_path, [5, 6], number)
    for _ in range(most - 1):
        quarantine = started(tmp_path)
        quarantine.check(MODEL, 5)
        quarantine.close()
        die(tmp_path, [5], number, what="session 'a'")
    quarantine = started(tmp_path)
    with pytest.raises(errors.Quarantined, match="session 'a' was running in") as refused:
        quarantine.check(MODEL, 5)
    quarantine.check(MODEL, 6)
    quarantine.check(OTHER, 5)
    assert refused.value.metadata["quarantine"] == name_of(Work(MODEL, 5))
    assert quarantine.free(name_of(Work(MODEL, 5))) is not None
    quarantine.check(MODEL, 5)
    assert quarantine.free("nonsense") is None
    quarantine.close()


def test_only_what_went_well_from_where_it_was_goes_free(tmp_path: Path) -> None:
    """A session that is replayed runs well before it comes to what ended the server."""
    five = np.asarray([5], np.uint64)
    recorder = Recorder(tmp_path)
    recorder.enter(MODEL, five, np.asarray([10], np.uint64))
    (tmp_path / "copy.running").write_bytes(recorder.path.read_bytes())
    recorder.close()
    quarantine = started(tmp_path)
    quarantine.survived(MODEL, five, np.asarray([3], np.uint64))
    assert suspects(quarantine, 5) == [5]
    quarantine.survived(MODEL, five, np.asarray([10], np.uint64))
    assert suspects(quarantine, 5) == []
    assert list(quarantine) == []
    quarantine.close()


def test_a_crash_is_remembered_for_an_hour_whatever_went_well(tmp_path: Path) -> None:
    five = np.asarray([5], np.uint64)
    for now, quarantined in ((0.0, False), (3000.0, True)):
        die(tmp_path, [5], signal.SIGSEGV)
        quarantine = Quarantine(tmp_path, clock=lambda now=now: now)  # type: ignore[misc]
        quarantine.start()
        quarantine.survived(MODEL, five)
        assert [known.quarantined for _, known in quarantine] == [quarantined]
        quarantine.close()
    (tmp_path / "suspects.json").unlink()
    for now in (0.0, 4000.0):
        die(tmp_path, [5], signal.SIGSEGV)
        quarantine = Quarantine(tmp_path, clock=lambda now=now: now)  # type: ignore[misc]
        quarantine.start()
        assert [known.quarantined for _, known in quarantine] == [False]
        quarantine.close()


def test_one_of_many_is_never_quarantined(tmp_path: Path) -> None:
    for _ in range(5):
        die(tmp_path, [5, 6], signal.SIGSEGV)
        quarantine = started(tmp_path)
        assert suspects(quarantine, 5, 6) == [5, 6]
        quarantine.check(MODEL, 5)
        quarantine.close()


def test_a_model_that_is_deadly_to_several_sessions_is_quarantined_itself(tmp_path: Path) -> None:
    for tag in (5, 6, 7):
        for _ in range(2):
            die(tmp_path, [tag], signal.SIGSEGV, what=f"session {tag}")
            started(tmp_path).close()
    quarantine = started(tmp_path)
    with pytest.raises(errors.Quarantined, match="the model of session 7"):
        quarantine.check(MODEL, 99)
    assert quarantine.free(name_of(Work(MODEL, ANYTHING))) is not None
    quarantine.check(MODEL, 99)
    quarantine.close()


def test_nobody_reads_the_file_of_a_process_that_lives(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.enter(MODEL, np.arange(MOST_TAGS + 5, dtype=np.uint64))
    assert list(deaths(tmp_path)) == []
    assert recorder.path.exists()
    recorder.close()
    assert list(tmp_path.iterdir()) == []


def test_what_ended_before_the_death_is_not_suspected(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.enter(MODEL, np.asarray([5], np.uint64), what="a")
    recorder.leave()
    with recorder.loading(OTHER, ANYTHING, "model 'm'"):
        copy = (tmp_path / "copy.running").write_bytes(recorder.path.read_bytes())
        assert copy
    ((entry,),) = list(deaths(tmp_path))
    assert (entry.model, entry.tags, entry.what, entry.crash) == (OTHER, (ANYTHING,), "model 'm'", "")
    recorder.close()


def test_files_that_are_damaged_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "1-2.running").write_bytes(b"SSRUN\x00\x00\x01short")
    (tmp_path / "3-4.running").write_bytes(b"\xff" * 1_000_000)
    (tmp_path / "suspects.json").write_text("{")
    quarantine = started(tmp_path)
    assert list(quarantine) == []
    quarantine.close()


def test_without_a_folder_nothing_is_suspected() -> None:
    quarantine = Quarantine(None)
    quarantine.start()
    quarantine.check(MODEL, 5)
    assert quarantine.suspected(MODEL, np.asarray([5], np.uint64)) is None
    quarantine.close()


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    quarantine = started(tmp_path / "file" / "folder")
    assert "is not noted" in caplog.text
    quarantine.notes.enter(MODEL, np.asarray([5], np.uint64))
    quarantine.notes.leave()
    quarantine.close()


def test_tags_are_the_same_in_every_process_and_never_that_of_a_model() -> None:
    assert tag_of("m", "a") == tag_of("m", "a") != tag_of("ma", "")
    assert tag_of("m", "a") != ANYTHING
