"""SIGKILL while observations arrive, by seed: scores, filled gaps and times are those of an untroubled run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import statestream
from statestream import Scored
from tests.support.serving import process

CHUNKS, KILLS = 36, 3
MODELS = ("heard", "hold", "predict", "clock")


def feed(model: str, rng: np.random.Generator) -> list[Any]:
    """Chunks of one to five steps, with gaps where they are filled and times where they are told."""
    now, chunks = 0, list[Any]()
    for number in range(CHUNKS):
        steps = int(rng.integers(1, 6))
        x = rng.standard_normal((steps, 2 if model in ("hold", "predict") else 1)).astype(np.float32)
        if model in ("hold", "predict") and number:
            x[rng.random(x.shape) < 0.3] = np.nan
        if model != "clock":
            chunks.append(x)
            continue
        times = now + np.cumsum(rng.integers(0, 90, steps))
        now = int(times[-1])
        chunks.append({"x": x, "dt": times})
    return chunks


def raw(answer: Any) -> list[bytes]:
    """All bytes of an answer: outputs, then scores."""
    outputs, scores = answer if isinstance(answer, Scored) else (answer, None)
    arrays = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
    if scores is not None:
        arrays += [each for each in (scores.log_likelihood, scores.p_value, scores.z) if each is not None]
    return [np.ascontiguousarray(array).tobytes() for array in arrays]


@pytest.mark.parametrize("seed", [1, 2])
def test_each_observation_counts_once_over_sigkill(observers_dir: Path, tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    chunks = {model: feed(model, rng) for model in MODELS}
    store = f"sqlite:{tmp_path / 's.db'}"
    options = ("--store", store, "--checkpoint-interval", "0.05", "--log-level", "warning")
    with process(observers_dir, *options) as server:
        with statestream.connect(server.address) as client:
            untroubled = {}
            for model in MODELS:
                with client.session(model) as session:
                    untroubled[model] = [raw(session.step(x, score=model != "clock")) for x in chunks[model]]
            sessions = {model: client.session(model, id="a") for model in MODELS}
            streams = {m: s.stream(chunks[m], ahead=5, score=m != "clock") for m, s in sessions.items()}
            kills = sorted(rng.choice(np.arange(2, CHUNKS - 2), KILLS, replace=False).tolist())
            for number in range(CHUNKS):
                for model in MODELS:
                    assert raw(next(streams[model])) == untroubled[model][number], (model, number)
                if number in kills:
                    server.kill()
                    server.start()
            for model, session in sessions.items():
                assert session.position == sum(len(x["x"] if model == "clock" else x) for x in chunks[model])
        assert server.stop() == 0


def test_a_scored_reply_that_nobody_saw_comes_again_after_a_sigkill(observers_dir: Path, tmp_path: Path) -> None:
    """It is in the record with its scores, beside replies that have none; so is the past that they go by."""
    store, x = f"sqlite:{tmp_path / 's.db'}", np.random.default_rng(4).standard_normal((12, 1)).astype(np.float32)
    options = ("--store", store, "--durability", "sync", "--log-level", "warning")
    with process(observers_dir, *options) as server:
        with statestream.connect(server.address) as client:
            with client.session("heard") as session:
                expected = [session.step(x[at : at + 3], score=at != 3) for at in (0, 3, 6, 9)]
            first = client.session("heard", id="k")
            told = (
                list(first.stream([x[:3]], score=True))
                + list(first.stream([x[3:6]]))
                + list(first.stream([x[6:9]], score=True))
            )
            assert [raw(each) for each in told] == [raw(each) for each in expected[:3]]
            server.kill()
        # It is gone before the server is back: else it would come again, and say that it has them all.
        server.start()
        with statestream.connect(server.address) as other, other.session("heard", id="k", return_replies=True) as again:
            replies = dict(again.replies)
            assert replies
            assert all(raw(answer) == raw(expected[position // 3]) for position, answer in replies.items())
            assert raw(again.step(x[9:], score=True)) == raw(expected[3])
