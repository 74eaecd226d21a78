"""Texts whose server is killed go on elsewhere: one sequence, each token once, the same bits."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import statestream
from tests.support.calls import DEADLINE
from tests.support.serving import process
from tests.support.texts import write_pair

WORDS = ["abc", "a", "hgf", "bbbb", "cafe", "dad", "face", "bead"] * 4


def told(texts: list[Any]) -> list[Any]:
    """All that is known of texts."""
    several = [each if isinstance(each, list) else [each] for each in texts]
    return [
        [(str(text), text.tokens.tobytes(), text.log_probs.tobytes(), text.score, text.ended) for text in each]
        for each in several
    ]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_texts_over_sigkill_have_the_same_tokens(tmp_path: Path) -> None:
    """Streamed and whole, greedy, drawn and searched; some texts were whole before the kill, others not."""
    write_pair(tmp_path / "models" / "long", attends=True, seed=4, most=3000, end=-4)
    with process(tmp_path / "models", "--store", "memory", "--log-level", "warning") as server:
        with statestream.connect(server.address) as client, ThreadPoolExecutor(1) as thread:
            drawn: dict[str, Any] = {"temperature": 1.2, "seed": 5, "attention": True}
            straight = list(client.generate_steps("long", "abc", **drawn))
            assert len(straight) > 100
            for kill in (1, 40):
                tokens = client.generate_steps("long", "abc", **drawn)
                found = [next(tokens) for _ in range(kill)]
                server.kill()
                server.start()
                found += tokens
                assert found == straight
                assert [each.log_prob for each in found] == [each.log_prob for each in straight]
            for way in ({"num_samples": 2, **drawn}, {"num_beams": 4, "n_best": 3}, {}):
                whole = told(client.generate("long", WORDS, **way))
                before = client.statistics().steps
                going = thread.submit(client.generate, "long", WORDS, **way)
                deadline = time.monotonic() + DEADLINE
                while client.statistics().steps < before + 500 and time.monotonic() < deadline:
                    time.sleep(0.002)
                assert not going.done()
                server.kill()
                server.start()
                assert told(going.result(60)) == whole
                assert client.statistics().steps > 0, "they went on after the kill"
        assert server.stop() == 0
