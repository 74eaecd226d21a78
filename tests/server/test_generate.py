"""Texts are those of decoding written plainly: greedy, by beam search, drawn; alone and together; nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statestream.contract.tensors import from_tensor
from statestream.v1 import inference_pb2 as pb
from tests.support.calls import Caller, everything, failing
from tests.support.serving import Local, serving
from tests.support.texts import WINDOW, Plain, Said, drawn, write_pair

PAIRS: dict[str, dict[str, Any]] = {
    "plain": {"seed": 1},
    "wide": {"seed": 5, "letters": 24, "hidden": 64, "most": 14},
    "attends": {"seed": 9, "attends": True},
    "tiny": {"seed": 12, "letters": 2, "most": 3},
}
SOURCES = [[0, 1], [2, 0, 1], [1], [0, 0, 1, 1, 0, 1, 0], [1, 0, 1], [0, 1, 1]]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for name, options in PAIRS.items():
        write_pair(folder / name, **options)
    return folder


@pytest.fixture
async def local(pairs: Path) -> AsyncIterator[Local]:
    async with serving(pairs) as local:
        assert local.server.registry.failures == {}
        yield local


def sources(name: str) -> list[list[int]]:
    most = int(PAIRS[name].get("letters", 8))
    return [[token % most for token in source] for source in SOURCES]


def given(sources: Sequence[Sequence[int]]) -> dict[str, Any]:
    return {
        "tokens": np.concatenate([np.asarray(source, "<i8") for source in sources]).tobytes(),
        "lengths": np.asarray(list(map(len, sources)), "<u4").tobytes(),
    }


async def texts(local: Local, name: str, **request: Any) -> list[list[pb.GeneratedText]]:
    """The texts of every source."""
    parts = await everything(Caller(local.channel).inference.Generate(pb.GenerateRequest(model=name, **request)))
    found = {source.source: list(source.texts) for part in parts for source in part.sources}
    assert sorted(found) == list(range(len(found)))
    return [found[place] for place in sorted(found)]


def check(found: pb.GeneratedText, expected: Said, source: Sequence[int], *, attention: bool = False) -> None:
    assert list(found.tokens) == expected.tokens
    assert found.text == "".join(["<s>", "</s>", *map(chr, range(97, 123))][token] for token in expected.tokens)
    np.testing.assert_allclose(found.log_probabilities, expected.log_probs, atol=2e-5)
    np.testing.assert_allclose([found.log_probability, found.score], [expected.log_prob, expected.score], atol=2e-5)
    assert found.ended == expected.ended
    assert found.HasField("attention") == attention
    if attention:
        places = min(len(source), WINDOW)
        weights = np.asarray(expected.attention, np.float32).reshape(len(expected.tokens), WINDOW)[:, :places]
        np.testing.assert_allclose(from_tensor(found.attention), weights, atol=2e-5)


@pytest.mark.parametrize("name", PAIRS)
async def test_greedy_texts_are_those_of_decoding_by_hand(local: Local, pairs: Path, name: str) -> None:
    plain, mine = Plain(pairs / name), sources(name)
    for most in (0, 2):
        found = await texts(local, name, max_tokens=most, **given(mine))
        for (text,), source in zip(found, mine, strict=True):
            check(text, plain.greedy(source, most), source)


@pytest.mark.parametrize("name", PAIRS)
async def test_beam_search_is_that_of_decoding_by_hand(local: Local, pairs: Path, name: str) -> None:
    """Score by score: all that is told of every source, for widths, penalties, and both ways to stop."""
    plain, mine, ended = Plain(pairs / name), sources(name), set[bool]()
    for beams, n_best, penalty, early in (
        (1, 1, 1.0, False),
        (2, 1, 1.0, False),
        (3, 3, 0.0, False),
        (4, 2, 2.0, True),
        (5, 5, -0.7, False),
        (7, 4, 0.6, True),
    ):
        search = pb.BeamSearch(num_beams=beams, n_best=n_best, length_penalty=penalty, early_stopping=early)
        found = await texts(local, name, beam_search=search, **given(mine))
        for mine_, source in zip(found, mine, strict=True):
            expected = plain.search(source, beams=beams, n_best=n_best, penalty=penalty, early=early)
            assert len(mine_) == len(expected)
            for text, said in zip(mine_, expected, strict=True):
                check(text, said, source)
                ended.add(said.ended)
    assert ended == {False, True}


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}, {"temperature": 2.0, "top_k": 5, "top_p": 0.8}]
)
async def test_draws_are_those_of_decoding_by_hand(local: Local, pairs: Path, options: dict[str, Any]) -> None:
    plain, mine, numbers = Plain(pairs / "attends"), sources("attends"), [7, 0, 3, 2**64 - 1, 5, 9]
    sampling = pb.Sampling(seed=2**63 + 11, num_samples=3, **options)
    request = {"numbers": np.asarray(numbers, "<u8").tobytes(), "attention": True, "sampling": sampling}
    found = await texts(local, "attends", **request, **given(mine))
    for several, number, source in zip(found, numbers, mine, strict=True):
        for path, text in enumerate(several):
            said = plain.decode(source, drawn(2**63 + 11, number, path, **options))
            check(text, said, source, attention=True)


async def test_draws_are_as_likely_as_the_model_says(local: Local, pairs: Path) -> None:
    """First tokens of 4,000 texts: within five deviations, each of them."""
    log_probs = Plain(pairs / "plain").step(0, Plain(pairs / "plain").encode([1, 2]))[0]
    sampling = pb.Sampling(num_samples=4000, seed=3)
    (several,) = await texts(local, "plain", max_tokens=1, sampling=sampling, **given([[1, 2]]))
    counts = np.bincount([text.tokens[0] if text.tokens else 1 for text in several], minlength=10)
    chances = np.exp(log_probs)
    assert (abs(counts - 4000 * chances) <= 5 * np.sqrt(4000 * chances * (1 - chances)) + 1).all()


@pytest.mark.parametrize("name", PAIRS)
async def test_a_text_has_the_same_bits_alone_and_in_a_crowd(local: Local, name: str) -> None:
    """All in one call, each alone, and side by side with others of other ways."""
    mine, sampling = sources(name), pb.Sampling(seed=5, num_samples=2, top_p=0.9)
    ways: list[dict[str, Any]] = [{}, {"sampling": sampling}, {"beam_search": pb.BeamSearch(num_beams=4, n_best=4)}]

    async def alone(place: int, way: dict[str, Any]) -> list[pb.GeneratedText]:
        numbers = np.asarray([place], "<u8").tobytes()
        return (await texts(local, name, numbers=numbers, **way, **given([mine[place]])))[0]

    whole = [await texts(local, name, **way, **given(mine)) for way in ways]
    crowd = await asyncio.gather(*(alone(place, way) for way in ways for place in range(len(mine))))
    assert crowd == [several for found in whole for several in found]
    assert [await alone(place, ways[0]) for place in range(len(mine))] == whole[0]


async def test_attention_says_where_each_token_looked(local: Local, pairs: Path) -> None:
    plain, mine = Plain(pairs / "attends"), sources("attends")
    found = await texts(
        local, "attends", attention=True, beam_search=pb.BeamSearch(num_beams=3, n_best=2), **given(mine)
    )
    for several, source in zip(found, mine, strict=True):
        for text, said in zip(several, plain.search(source, beams=3, n_best=2), strict=True):
            check(text, said, source, attention=True)
    failure = await failing(everything(call(local, "plain", attention=True)))
    assert failure.reason == "UNSUPPORTED"
    assert "does not say where it looks" in failure.message


def call(local: Local, name: str, **request: Any) -> Any:
    given_: dict[str, Any] = {} if "tokens" in request or "texts" in request else {"texts": ["ab"]}
    return Caller(local.channel).inference.Generate(pb.GenerateRequest(model=name, **given_, **request))


async def test_tokens_come_one_by_one_and_from_where_they_are_wanted(local: Local) -> None:
    (whole,) = await texts(local, "attends", texts=["abc"], attention=True)
    for begin in (0, 1, 3, len(whole[0].tokens)):
        parts = await everything(call(local, "attends", texts=["abc"], stream=True, from_token=begin, attention=True))
        tokens = [token for part in parts for token in part.tokens]
        assert [token.token for token in tokens] == list(whole[0].tokens)[begin:]
        assert [token.log_probability for token in tokens] == list(whole[0].log_probabilities)[begin:]
        assert [list(token.attention) for token in tokens] == from_tensor(whole[0].attention).tolist()[begin:]
    assert parts == []


async def test_beams_share_what_the_encoder_said(local: Local) -> None:
    """8 sources, 32 beams each: 256 rows, and not one context more than sources. All of it is free when it ends."""
    table: Any = local.table("attends")
    contexts = table.rows.contexts
    assert contexts.used == 0
    free, seen = len(table._free), list[tuple[int, int]]()
    step = table.rows.step

    def noting(*arguments: Any) -> Any:
        seen.append((table.allocated, contexts.used))
        return step(*arguments)

    table.rows.step = noting
    mine = [[place, 1, 2] for place in range(8)]
    await texts(local, "attends", beam_search=pb.BeamSearch(num_beams=32), **given(mine))
    assert max(rows for rows, _ in seen) == 8 * 32
    assert {used for _, used in seen} <= set(range(1, 9))
    assert contexts.used == 0
    assert len(table._free) >= free


@pytest.mark.parametrize("way", ["stream", "beam_search"])
async def test_texts_that_nobody_reads_free_their_rows_at_once(local: Local, way: str) -> None:
    """Cancelled between two tokens, while nothing runs."""
    table: Any = local.table("attends")
    await texts(local, "attends", texts=["a"])
    free, step = len(table._free), table.rows.step
    with contextlib.ExitStack() as held:

        def once(*arguments: Any) -> Any:
            table.rows.step = step
            held.enter_context(local.engine_held())
            return step(*arguments)

        table.rows.step = once
        going = call(local, "attends", **{way: True if way == "stream" else pb.BeamSearch(num_beams=16)})
        reading = asyncio.create_task(everything(going))
        await local.until(lambda: table.lane.queued)
        assert (table.driven, table.rows.contexts.used) == (1 if way == "stream" else 16, 1)
        going.cancel()
        await local.until(lambda: not table.lane.queued and not table.driven)
    assert len(table._free) >= free
    assert table.rows.contexts.used == 0
    with pytest.raises(asyncio.CancelledError):
        await reading
    await texts(local, "attends", texts=["a"])


async def test_a_slow_reader_holds_back_its_own_text_alone(local: Local) -> None:
    slow = call(local, "attends", texts=["abc"], stream=True)
    coming = aiter(slow)
    first = await anext(coming)
    whole = await everything(call(local, "attends", texts=["abc"], stream=True))
    assert [first, *[message async for message in coming]] == whole


BAD = {
    "no sources": ({"texts": []}, "BAD_FRAME", "0 sources"),
    "both": ({"texts": ["a"], **given([[1]])}, "BAD_FRAME", "texts and tokens came; expected one of them"),
    "unknown symbol": ({"texts": ["a", "az"]}, "BAD_TENSOR", "text 1 'az': symbol 'z' is not in the vocabulary of 8"),
    "unknown token": (given([[1], [8]]), "BAD_TENSOR", "text 1 has token 8; the model knows 0 to 7"),
    "negative token": (given([[-1]]), "BAD_TENSOR", "text has token -1; the model knows 0 to 7"),
    "empty": (given([[1], []]), "BAD_TENSOR", "text 1 is empty; expected one symbol at least"),
    "lengths": ({**given([[1]]), "lengths": b"\2\0\0\0"}, "BAD_FRAME", "tokens has 8 bytes; expected 2 × 8"),
    "numbers": ({"numbers": bytes(16)}, "BAD_FRAME", "numbers is 2 numbers; expected one for each of 1 sources"),
    "max_tokens": ({"max_tokens": 10}, "BAD_FRAME", "max_tokens is 10; texts of model 'plain' have 9 at most"),
    "no beams": ({"beam_search": pb.BeamSearch()}, "BAD_FRAME", "num_beams is 0; expected 1 to 64"),
    "beams": ({"beam_search": pb.BeamSearch(num_beams=65)}, "BAD_FRAME", "num_beams is 65; expected 1 to 64"),
    "n_best": ({"beam_search": pb.BeamSearch(num_beams=2, n_best=3)}, "BAD_FRAME", "n_best is 3; there are 2 beams"),
    "penalty": (
        {"beam_search": pb.BeamSearch(num_beams=2, length_penalty=float("nan"))},
        "BAD_FRAME",
        "length_penalty is nan; expected -16 to 16",
    ),
    "cold": ({"sampling": pb.Sampling(temperature=0)}, "BAD_FRAME", "temperature is 0; expected more than 0"),
    "nan": ({"sampling": pb.Sampling(temperature=float("nan"))}, "BAD_FRAME", "temperature is nan"),
    "no top_p": ({"sampling": pb.Sampling(top_p=0)}, "BAD_FRAME", "top_p is 0; expected more than 0, and 1 at most"),
    "top_p": ({"sampling": pb.Sampling(top_p=1.5)}, "BAD_FRAME", "top_p is 1.5; expected more than 0, and 1 at most"),
    "samples": ({"sampling": pb.Sampling(num_samples=10_001)}, "BAD_FRAME", "num_samples is 10001; expected at most"),
    "beams streamed": ({"stream": True, "beam_search": pb.BeamSearch(num_beams=2)}, "BAD_FRAME", "known only when"),
    "several streamed": ({"stream": True, "texts": ["a", "b"]}, "BAD_FRAME", "stream is set for several texts"),
    "from_token": ({"from_token": 2}, "BAD_FRAME", "from_token is 2 without stream; expected 0"),
    "digest": ({"digest": "f" * 64}, "MODEL_CHANGED", "is another model here than the one that began the texts"),
}


async def test_what_cannot_be_is_refused_by_name(local: Local) -> None:
    for which, (request, reason, words) in BAD.items():
        failure = await failing(everything(call(local, "plain", **request)))
        assert (failure.reason, words in failure.message) == (reason, True), (which, failure)
    table = local.table("plain")
    assert (table.driven, local.server.budgets.texts.held) == (0, 0)


async def test_what_is_under_way_has_limits(pairs: Path) -> None:
    limits = {"max_driven_rows": 8, "max_generate_sources": 3, "max_beams": 4, "max_answer_bytes": 4096}
    async with serving(pairs, limits=limits) as local:
        failure = await failing(everything(call(local, "plain", texts=list("abcd"))))
        assert (failure.reason, "4 entries; expected at most 3" in failure.message) == ("BAD_FRAME", True)
        failure = await failing(everything(call(local, "plain", **given([[1]] * 4))))
        assert (failure.reason, "4 entries; expected at most 3" in failure.message) == ("BAD_FRAME", True)
        failure = await failing(everything(call(local, "plain", beam_search=pb.BeamSearch(num_beams=5))))
        assert "num_beams is 5; expected 1 to 4" in failure.message
        many = call(local, "plain", texts=list("abc"), beam_search=pb.BeamSearch(num_beams=3))
        failure = await failing(everything(many))
        assert (failure.reason, "9 rows are needed" in failure.message) == ("TOO_MANY_SESSIONS", True)
        assert failure.retry_after
        wide = call(local, "wide", sampling=pb.Sampling(num_samples=100))
        failure = await failing(everything(wide))
        assert failure.reason == "ANSWER_TOO_LARGE"
        await texts(local, "plain", texts=["a"])
