"""Words: how text becomes the tokens of a model, and tokens text: a vocabulary, or a file of the tokenizers library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from statestream.contract.signature import Text


class Words(Protocol):
    """What a model reads or writes.

    Attributes:
        size: Tokens there are, from 0 on.
    """

    size: int

    def encode(self, text: str) -> list[int]:
        """The tokens of a text.

        Raises:
            ValueError: Something in it has none; says what.
        """

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""

    def speller(self) -> Speller:
        """Writes one text, token by token."""


class Speller(Protocol):
    """Writes a text token by token."""

    def add(self, token: int) -> str:
        """What the text has more by it; nothing as long as a character is not whole."""


class Vocabulary:
    """A list of symbols; see the contract's `Text`."""

    def __init__(self, text: Text) -> None:
        """What a signature says."""
        self._symbols = list(text.vocabulary)
        self._numbers = {symbol: number for number, symbol in enumerate(self._symbols)}
        self._separator = text.separator
        self._unknown = self._numbers[text.unknown] if text.unknown else None
        self.size = len(self._symbols)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        symbols = text.split(self._separator) if self._separator else text
        found = [self._numbers.get(symbol, self._unknown) for symbol in symbols]
        if None in found:
            symbol = symbols[found.index(None)]
            raise ValueError(f"symbol {symbol!r} is not in the vocabulary of {self.size} symbols")
        return [number for number in found if number is not None]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        return self._separator.join(self._symbols[token] for token in tokens)

    def speller(self) -> Speller:
        """Writes one text."""
        return _Joined(self._symbols, self._separator)


class _Joined:
    def __init__(self, symbols: Sequence[str], separator: str) -> None:
        self._symbols, self._separator = symbols, separator
        self._between = ""

    def add(self, token: int) -> str:
        """The next symbol, and what stands before it."""
        between, self._between = self._between, self._separator
        return between + self._symbols[token]


class Tokenized:
    """A tokenizer of the tokenizers library."""

    def __init__(self, tokenizer: Any) -> None:
        """A `tokenizers.Tokenizer`."""
        self._tokenizer = tokenizer
        self.size: int = tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, with those that the tokenizer adds around it."""
        try:
            return list(self._tokenizer.encode(text).ids)
        except Exception as error:  # The library raises nothing narrower.
            raise ValueError(f"the tokenizer does not take it ({' '.join(str(error).split())})") from error

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without those that are special."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def speller(self) -> Speller:
        """Writes one text."""
        return _Growing(self)


class _Growing:
    """What each token adds to the text of those before it: alone it may be part of a character, or lose its space.

    Only the last tokens that added something are looked at again, so a long text costs no more by token.
    """

    def __init__(self, words: Tokenized) -> None:
        self._words = words
        self._tokens: list[int] = []
        self._told = 0

    def add(self, token: int) -> str:
        """What the text is longer by."""
        before = self._words.decode(self._tokens[: self._told])
        self._tokens.append(token)
        text = self._words.decode(self._tokens)
        if len(text) <= len(before) or text.endswith("\ufffd"):
            return ""
        self._tokens, self._told = self._tokens[self._told :], len(self._tokens) - self._told
        return text[len(before) :]
