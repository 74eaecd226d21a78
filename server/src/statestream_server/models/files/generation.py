"""Generation: how texts begin, end, and how long they are: what lies beside an encoder and a decoder says it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

from statestream_server.models.files import files, tokenizer
from statestream_server.models.form.couple import Couple
from statestream_server.models.form.plan import Note
from statestream_server.models.form.told import Told, ToldError
from statestream_server.models.model import ModelLoadError

CONFIGS: Final = ("generation_config.json", "config.json")
"""What tells of generating, the first before the second."""
_TOKENIZER_CONFIG: Final = "tokenizer_config.json"
_LENGTHS: Final = ("max_source_positions", "max_position_embeddings", "n_positions")
_MOST: Final = 1 << 31
"""What is longer is said to have no bound."""
_DEFAULT_LENGTH: Final = 20
"""How many transformers makes where nothing is said."""
_WITHOUT: Final[tuple[Any, ...]] = (None, False, 0, 1, 1.0, [], "")
"""What says that something is not done."""
_DONE_ELSEWHERE: Final = ("no_repeat_ngram_size", "repetition_penalty", "min_length", "min_new_tokens")
"""What changes which tokens come, and is not done here; so does forced_bos_token_id."""


SOURCE: Final = 512
"""The most tokens of a source where nobody says."""
_MOST_TOKENS: Final = 1024
"""The most of a text, of a decoder that reads all tokens so far in each step."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What the configuration beside a pair says; None where it does not.

    Attributes:
        start: The token that the first step gets.
        ends: The tokens that end a text.
        pad: The token that fills a source.
        most: The most tokens of a text, and whose word it is.
        source: The most tokens of a source, and whose word it is.
        symbols: How many tokens there are.
        banned: Tokens that never come.
        left: What is said and is not done here, in words.
    """

    start: int | None = None
    ends: tuple[int, ...] = ()
    pad: int | None = None
    most: tuple[int, str] | None = None
    source: tuple[int, str] | None = None
    symbols: int | None = None
    banned: tuple[int, ...] = ()
    left: tuple[str, ...] = ()


def files_of(decoder: Path) -> list[Path]:
    """All that may be read beside a decoder."""
    return [decoder.with_name(name) for name in (*CONFIGS, _TOKENIZER_CONFIG, tokenizer.NAME)]


def read(decoder: Path) -> Generation:
    """What the files beside a decoder say.

    Raises:
        ModelLoadError: One cannot be read, or is no JSON object.
    """
    said = {name: _values(decoder.with_name(name)) for name in (*CONFIGS, _TOKENIZER_CONFIG)}
    whole = {key: value for name in reversed(CONFIGS) for key, value in said[name].items() if value is not None}
    start = _count(whole, "decoder_start_token_id")
    ends = whole.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    single = [each[0] for each in _list(whole, "bad_words_ids") if isinstance(each, list) and len(each) == 1]
    banned = [each for each in (*single, *_list(whole, "suppress_tokens")) if _is_token(each)]
    left = [f"{key} = {whole[key]}" for key in _DONE_ELSEWHERE if whole.get(key) not in _WITHOUT]
    if _count(whole, "forced_bos_token_id") is not None:
        left.append(f"forced_bos_token_id = {whole['forced_bos_token_id']}")
    return Generation(
        start if start is not None else _count(whole, "bos_token_id"),
        tuple(each for each in ends if _is_token(each)),
        _count(whole, "pad_token_id"),
        _most(whole, any(said[name] for name in CONFIGS)),
        _source(whole, said[_TOKENIZER_CONFIG]),
        _count(whole, "vocab_size"),
        tuple(dict.fromkeys(banned)),
        tuple(left),
    )


def _most(whole: Mapping[str, Any], said: bool) -> tuple[int, str] | None:
    """How many tokens transformers would make: its max_length counts the one that a text starts from."""
    if (new := _count(whole, "max_new_tokens")) is not None:
        return new, "max_new_tokens"
    if (length := _count(whole, "max_length")) is not None:
        return length - 1, "max_length, which counts the start token"
    return (_DEFAULT_LENGTH, "no max_length is said, and transformers makes so many then") if said else None


def _source(whole: Mapping[str, Any], said: Mapping[str, Any]) -> tuple[int, str] | None:
    found = [(value, key) for key in _LENGTHS if (value := _count(whole, key))]
    if (value := _count(said, "model_max_length")) is not None:
        found.append((value, "model_max_length"))
    return min(((value, key) for value, key in found if value), default=None)


def _count(values: Mapping[str, Any], key: str) -> int | None:
    value = values.get(key)
    return value if _is_token(value) else None


def _list(values: Mapping[str, Any], key: str) -> list[Any]:
    value = values.get(key)
    return value if isinstance(value, list) else []


def _is_token(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _MOST


def _values(path: Path) -> Mapping[str, Any]:
    """A file's JSON object; an empty one where there is no file."""
    if not os.path.lexists(path):
        return {}
    found = files.told(path)
    assert found is not None
    try:
        values = json.loads(found[0])
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path}: is no JSON ({' '.join(str(error).split())}); save it again") from error
    if not isinstance(values, dict):
        raise ModelLoadError(f"{path}: is JSON of {type(values).__name__}; expected an object")
    return values


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is known of a pair beside its tensors.

    Attributes:
        start: The token that the first step gets.
        end: The token that ends a text.
        pad: The token that fills a source; None where there is none.
        most: The most tokens of a text.
        source: The most tokens of a source.
        symbols: How many tokens the encoder knows; 0 where it is not known.
        banned: Tokens that never come.
        notes: Whose word that is.
    """

    start: int
    end: int
    pad: int | None
    most: int
    source: int
    symbols: int
    banned: Sequence[int]
    notes: Sequence[Note]


def bounds(couple: Couple, told: Told, known: Generation) -> Bounds:
    """What bounds a pair, as it is told, else as its configuration says.

    Raises:
        ToldError: Nobody says what a text begins or ends with, or what is said contradicts the graphs.
    """
    said, notes = told.generate, list[Note]()
    start, end = said.get("start_token", known.start), said.get("end_token", (known.ends or (None,))[0])
    if start is None or end is None:
        missing = [f"{name}_token = …" for name, token in (("start", start), ("end", end)) if token is None]
        raise ToldError(
            "nobody says what a text begins and ends with: put the config.json or generation_config.json of the model"
            f" beside it, or say in model.toml: [generate] {', '.join(missing)}"
        )
    notes.append(Note("text", f"begins with token {start}, ends with {end}"))
    if "end_token" not in said and len(known.ends) > 1:
        notes.append(Note("left out", f"eos_token_id = {[*known.ends]}: only {end} ends a text"))
    notes += [Note("left out", f"{each}: it is said beside it, and not done here") for each in known.left]
    most, why = known.most or (0, "")
    if "max_tokens" in said:
        most, why = said["max_tokens"], "as model.toml says"
    caches = [size for pair in couple.pairs if (size := _cached(pair.old, told, couple)) is not None]
    if caches and not 0 < most <= min(caches):
        most, why = min(caches), "as its cache holds"
    length = couple.token.dims[1] if couple.rereads and couple.token.dims is not None else None
    if isinstance(length, int) and not 0 < most <= length:
        most, why = length, "as the decoder takes"
    if couple.rereads and "max_tokens" not in said:
        # Each step reads all of them, and there may be no more places.
        ends = [(most, why), (_MOST_TOKENS, "each step reads all of them"), *([known.source] if known.source else [])]
        most, why = min(ends, key=lambda each: each[0])
    if most < 1:
        raise ToldError("nobody says how long a text may be; say in model.toml: [generate] max_tokens = 64")
    if couple.rereads and most > _MOST_TOKENS:
        raise ToldError(
            f"a text may have {most} tokens, and the decoder reads all of them in each step: say {_MOST_TOKENS} or"
            " fewer in model.toml: [generate] max_tokens = 128"
        )
    notes.append(Note("text", f"has at most {most} tokens: {why}"))
    source, why = known.source or (SOURCE, "nobody says another number")
    source, why = (source, why) if source <= SOURCE else (SOURCE, f"{why} = {source} would allow more")
    if "max_source_tokens" in said:
        source, why = said["max_source_tokens"], "as model.toml says"
    fixed = (couple.source.dims or (None, None))[1]
    if isinstance(fixed, int):
        source, why = min(fixed, said.get("max_source_tokens", fixed)), "as the encoder takes"
    notes.append(Note("source", f"has at most {source} tokens: {why}"))
    pad = said.get("pad_token", known.pad)
    if isinstance(fixed, int) and pad is None and not couple.masks:
        raise ToldError(
            f"the encoder takes {fixed} tokens, no fewer, and has no mask: say what fills a shorter source in"
            " model.toml: [generate] pad_token = 0"
        )
    return Bounds(start, end, pad, most, source, known.symbols or 0, known.banned, notes)


def _cached(name: str, told: Told, couple: Couple) -> int | None:
    """How many tokens a cache of one shape holds; None of any other state."""
    shape = told.shapes.get(name) or couple.ports[name].dims
    if ("key" not in name and "value" not in name) or name in couple.wires or shape is None or len(shape) != 4:
        return None
    return shape[2] if isinstance(shape[2], int) else None
