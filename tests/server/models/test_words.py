"""What text and tokens have to do with each other: vocabularies, and a tokenizer.json beside the model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from statestream import aio, errors
from statestream.signature import Text
from statestream_server.models.files import tokenizer
from statestream_server.models.model import ModelLoadError
from statestream_server.models.proof.loading import load
from statestream_server.models.words import Tokenized, Vocabulary
from tests.support.serving import serving
from tests.support.texts import Plain, write_pair

LETTERS = "<s> </s> a b c d e f".split()


def words_of_letters() -> Tokenizer:
    """Letters with spaces between them, and an end behind them."""
    made = Tokenizer(models.WordLevel({letter: number for number, letter in enumerate(LETTERS)}, unk_token="</s>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.add_special_tokens(["<s>", "</s>"])
    return made


def bytes_of_text() -> Tokenizer:
    """A token for every byte of UTF-8."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def test_a_vocabulary_reads_and_writes() -> None:
    words = Vocabulary(Text(vocabulary=["the", "cat", "?"], separator=" ", unknown="?"))
    assert words.encode("the big cat") == [0, 2, 1]
    assert words.decode([1, 0]) == "cat the"
    speller = words.speller()
    assert [speller.add(token) for token in (1, 0, 1)] == ["cat", " the", " cat"]
    with pytest.raises(ValueError, match="symbol 'x' is not in the vocabulary of 2 symbols"):
        Vocabulary(Text(vocabulary=["a", "b"])).encode("ax")


def test_a_character_of_several_tokens_comes_when_it_is_whole() -> None:
    words, text = Tokenized(bytes_of_text()), "für 5 €, 猫 "
    tokens, speller = words.encode(text), words.speller()
    assert words.decode(tokens) == text
    parts = [speller.add(token) for token in tokens]
    assert "".join(parts) == text
    assert parts.count("") == len(tokens) - len(text)


async def test_a_tokenizer_beside_the_model_says_what_tokens_are(tmp_path: Path) -> None:
    folder = write_pair(tmp_path / "pair", letters=8, attends=True, spelt=False, seed=3)
    words_of_letters().save(str(folder / tokenizer.NAME))
    async with serving(tmp_path) as local, aio.connect(local.address) as client:
        assert local.server.registry.failures == {}
        text = await client.generate("pair", "a b a")
        said = Plain(folder).greedy([2, 3, 2, 1])
        assert text.tokens.tolist() == said.tokens
        assert text == words_of_letters().decode(said.tokens)
        assert "".join([part async for part in client.generate_steps("pair", "a b a")]) == text
        assert (await client.generate("pair", [2, 3, 2, 1])).tokens.tolist() == said.tokens


async def test_without_words_tokens_go_in_and_come_out(tmp_path: Path) -> None:
    folder = write_pair(tmp_path / "pair", spelt=False)
    async with serving(tmp_path) as local, aio.connect(local.address) as client:
        text = await client.generate("pair", [1, 2])
        assert (text, text.tokens.tolist()) == ("", Plain(folder).greedy([1, 2]).tokens)
        with pytest.raises(
            errors.Unsupported, match=r"no vocabulary, and no tokenizer.json lies beside it. Send tokens"
        ):
            await client.generate("pair", "ab")
        with pytest.raises(errors.BadTensor):
            await client.generate("pair", [1, 99])


def test_another_tokenizer_is_another_model(tmp_path: Path) -> None:
    folder = write_pair(tmp_path / "pair", spelt=False)
    digests = {_load(folder).digest}
    for made in (words_of_letters(), bytes_of_text()):
        made.save(str(folder / tokenizer.NAME))
        model = _load(folder)
        assert folder / tokenizer.NAME in model.files
        digests.add(model.digest)
    assert len(digests) == 3


def _load(folder: Path) -> Any:
    return load("pair", 1, folder, device="cpu")


def test_what_is_no_tokenizer_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / tokenizer.NAME
    assert tokenizer.beside(tmp_path / "decoder.onnx") is None
    for content in (b"", b"{}", b"\xff", b'{"version": "1.0", "model": {"type": "No"}}'):
        file.write_bytes(content)
        with pytest.raises(ModelLoadError, match=r"json: is no tokenizer that the library reads .*save it again"):
            tokenizer.beside(tmp_path / "decoder.onnx")
    words_of_letters().save(str(file))
    monkeypatch.setattr(tokenizer, "_MOST_BYTES", 10)
    with pytest.raises(ModelLoadError, match="bytes; expected 10 at most"):
        tokenizer.beside(tmp_path / "decoder.onnx")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModelLoadError, match=r"not installed: pip install 'statestream-server\[text\]'"):
        tokenizer.beside(tmp_path / "decoder.onnx")
