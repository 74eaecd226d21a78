"""The script behind `make install`: where torch comes from, and which Pythons it refuses."""

from __future__ import annotations

import sys

import pytest
import setup_venv


def test_torch_is_the_pinned_one_unless_told_otherwise() -> None:
    assert setup_venv.torch_arguments("") == ["-c", setup_venv.CONSTRAINTS, "torch"]


def test_torch_from_a_wheel() -> None:
    assert setup_venv.torch_arguments("/wheels/torch-2.13.0.whl") == ["/wheels/torch-2.13.0.whl"]


def test_torch_from_an_index() -> None:
    arguments = setup_venv.torch_arguments("https://packages.example/simple")
    assert arguments == ["--index-url", "https://packages.example/simple", "-c", setup_venv.CONSTRAINTS, "torch"]


def test_torch_from_a_requirement() -> None:
    assert setup_venv.torch_arguments("torch==2.13.1") == ["torch==2.13.1"]


def test_an_old_python_gets_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    with pytest.raises(SystemExit, match="needs Python 3.11 or newer"):
        setup_venv.main()
