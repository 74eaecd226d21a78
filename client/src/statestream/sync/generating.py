# Generated from statestream/aio/generating.py by `make twins`; change that one.
"""What a synchronous client has written: texts that answer texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from statestream import driven, texts
from statestream.progress import Progress, check_progress, reporting
from statestream.sync.calling import answers
from statestream.sync.runs import Runs


class Generating(Runs):
    """The part of a client that has texts decoded."""

    def generate(
        self,
        model: str,
        text: Any,
        *,
        max_tokens: int | None = None,
        num_beams: int | None = None,
        n_best: int | None = None,
        length_penalty: float | None = None,
        early_stopping: bool = False,
        num_samples: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        attention: bool = False,
        version: int | str | None = None,
        progress: Progress = False,
    ) -> Any:
        """Encodes a text and decodes the answer, or does so with many at once: greedily, by beam search, or drawn.

        A server that is lost meanwhile is not seen here: the texts go on elsewhere, with the same tokens.

        Args:
            model: The model's name; it must be an encoder-decoder.
            text: A text, or a list of them; or in place of each the numbers of its tokens.
            max_tokens: The most tokens of an answer; the model's own limit where left out.
            num_beams: How many answers go on side by side, at each step the likeliest of all: beam search.
            n_best: How many of them are wanted, the best first.
            length_penalty: Answers are compared by the logarithm of their probability, divided by their length to the
                power of this; the end token counts. 1 where left out; 0 compares by probability, more prefers longer
                ones.
            early_stopping: Whether it is enough that num_beams answers have ended; else it goes on until none of those
                that go on could come to be among the best.
            num_samples: Answers that are drawn for each text.
            temperature: What scores are divided by before one draws: below 1 likely tokens become likelier.
            top_k: How many of the likeliest tokens may be drawn.
            top_p: Of the likeliest tokens as many may be drawn as it takes for so much probability.
            seed: What draws begin with, 0 to 2**64 - 1. The same seed draws the same answers for the same list of
                texts, whatever runs beside; without one each call draws others.
            attention: Whether it is wanted where each token looked in the text.
            version: The model's version, or an alias of one; the default one where left out.
            progress: Tells how many texts are decoded: see `forecast`.

        Returns:
            `Generated`, a str with tokens, log-probabilities, score and attention; of a list of texts a list of them.
            With n_best or num_samples for each text a list.

        Raises:
            BadTensor: A symbol is not in the model's vocabulary, a token does not exist, or a text is empty.
            BadFrame: A text is too long, or the server has no so many tokens or beams.
            Unsupported: The model is no encoder-decoder, reads no text, or does not say where it looks.
            ValueError: An argument has a value that it cannot have, or two do not go together.
        """
        check_progress(progress)
        ways = driven.Ways(
            num_beams=num_beams,
            n_best=n_best,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            num_samples=num_samples,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )
        wish, sources = texts.wished(model, version, ways, max_tokens, attention), texts.read_sources(text)
        found = dict[int, list[texts.Generated]]()
        with reporting(progress, f"generate {model}", len(sources), "texts") as tell:
            for call in texts.generate_calls(self._link.state.info.limits, wish, sources):
                for place, each in answers(self._link, call):
                    found[place] = each
                    if tell is not None:
                        tell(len(found))
        return texts.answer(wish, sources, found)

    def generate_steps(
        self,
        model: str,
        text: Any,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        attention: bool = False,
        version: int | str | None = None,
    ) -> Iterator[texts.GeneratedToken]:
        """Decodes the answer to one text token by token, as the server makes them: nothing runs ahead of who reads.

        Arguments and errors are those of `generate`.

        Yields:
            `GeneratedToken`, a str with the token's number, log-probability and attention; joined they are the answer.
        """
        ways = driven.Ways(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        wish = texts.wished(model, version, ways, max_tokens, attention)
        return answers(self._link, texts.token_call(wish, texts.read_sources(text)))
