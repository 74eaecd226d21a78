"""Antonyms: an encoder-decoder of two RNNs that spells the opposite of a word, letter by letter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

from statestream.contract.signature import Decoding, Text, decode_text, encode_text
from statestream_export import Export, State, export
from statestream_export.recipe import Card, Target
from statestream_export.training import Curve, Run

PAIRS = {"man": "women", "black": "white", "king": "queen", "girl": "boy", "up": "down", "high": "low"}
VOCABULARY = [*"SE?abcdefghijklmnopqrstuvwxyz"]
START, END = VOCABULARY.index("S"), VOCABULARY.index("E")
LETTERS = Text(vocabulary=VOCABULARY, unknown="?")
HIDDEN, MAX_TOKENS = 128, 16
NO_TOKEN = -100


class Encoder(nn.Module):
    """A word becomes a hidden state: text [B, T] int64 → h [1, B, H]."""

    letters: Tensor

    def __init__(self, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.register_buffer("letters", torch.eye(len(VOCABULARY)))
        self.drop = nn.Dropout(0.5)
        self.rnn = nn.RNN(len(VOCABULARY), hidden, batch_first=True)

    def forward(self, text: Tensor, lengths: Tensor | None = None) -> tuple[Tensor]:
        """Words of one length, or padded ones of these lengths: each is read to its own end and not beyond."""
        letters = self.drop(self.letters[text])
        if lengths is None:
            _, h = self.rnn(letters)
        else:
            _, h = self.rnn(pack_padded_sequence(letters, lengths, batch_first=True, enforce_sorted=False))
        return (h,)


class Decoder(nn.Module):
    """The previous letter becomes scores of the next: token [B, T] int64 → logits [B, T, 29], state h [1, B, H]."""

    letters: Tensor

    def __init__(self, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.register_buffer("letters", torch.eye(len(VOCABULARY)))
        self.drop = nn.Dropout(0.5)
        self.rnn = nn.RNN(len(VOCABULARY), hidden, batch_first=True)
        self.head = nn.Linear(hidden, len(VOCABULARY))

    def forward(self, token: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """One-hot happens inside."""
        hidden, h = self.rnn(self.drop(self.letters[token]), h)
        return self.head(hidden), h


@dataclass(frozen=True)
class Words:
    """The pairs as token numbers, int64, padded on the right.

    Attributes:
        text: The words [6, longest].
        lengths: Their lengths [6].
        given: S and the antonym, what the decoder reads [6, longest + 1].
        wanted: The antonym and E, what it must say [6, longest + 1]; -100 beyond the end.
    """

    text: Tensor
    lengths: Tensor
    given: Tensor
    wanted: Tensor


class Translator(nn.Module):
    """Encoder and decoder, trained together and exported apart.

    Args:
        encoder: text [B, T], and the words' lengths [B] where they are padded → the decoder's states.
        decoder: token [B, T], states → logits [B, T, 29], new states.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, words: Words) -> Tensor:
        """The scores of every letter under teacher forcing, [6, longest + 1, 29]."""
        scores: Tensor = self.decoder(words.given, *self.encoder(words.text, words.lengths))[0]
        return scores

    def translate(self, word: str) -> str:
        """Greedy decoding, up to 16 letters."""
        return decode_text(LETTERS, [token for token, _ in self._letters(word)])

    def confidence(self, word: str) -> Tensor:
        """The probabilities of every letter at each step of greedy decoding, [steps, 29]."""
        rows = [row for _, row in self._letters(word)]
        return torch.stack(rows) if rows else torch.zeros(0, len(VOCABULARY))

    def _letters(self, word: str) -> list[tuple[int, Tensor]]:
        states = self.encoder(torch.tensor([encode_text(LETTERS, word)]))
        token, found = START, list[tuple[int, Tensor]]()
        while len(found) < MAX_TOKENS:
            logits, *rest = self.decoder(torch.tensor([[token]]), *states)
            states = rest[-len(states) :]
            token = int(logits[0, -1].argmax())
            if token == END:
                break
            found.append((token, logits[0, -1].softmax(-1)))
        return found


class Antonyms:
    """Teacher forcing, Adam .001, dropout .5, all six pairs in one batch.

    Args:
        hidden: The units of each RNN.
    """

    card = Card(
        "antonyms",
        task="spell the antonym of a word",
        data="six pairs of words, written in the recipe",
        cell="RNN 29→128, encoder and decoder",
        kind="generate",
        mode="asynchronous sequence to sequence",
        target=Target("pairs_exact", "==", len(PAIRS)),
    )

    def __init__(self, hidden: int = HIDDEN) -> None:
        self.hidden = hidden

    def data(self, run: Run) -> Words:
        """The six pairs."""
        words = [torch.tensor(encode_text(LETTERS, word)) for word in PAIRS]
        answers = [encode_text(LETTERS, word) for word in PAIRS.values()]
        return Words(
            pad_sequence(words, batch_first=True),
            torch.tensor([len(word) for word in words]),
            pad_sequence([torch.tensor([START, *word]) for word in answers], batch_first=True),
            pad_sequence([torch.tensor([*word, END]) for word in answers], batch_first=True, padding_value=NO_TOKEN),
        )

    def module(self, data: Words) -> Translator:
        """Random weights from the run's seed."""
        return Translator(Encoder(self.hidden), Decoder(self.hidden))

    def train(self, module: Translator, data: Words, run: Run) -> Curve:
        """Ends early once the loss without dropout is small."""
        optimizer = torch.optim.Adam(module.parameters(), lr=0.001)

        def loss_now() -> Tensor:
            return functional.cross_entropy(module(data).flatten(0, 1), data.wanted.flatten(), ignore_index=NO_TOKEN)

        def epoch() -> float:
            loss = loss_now()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            return float(loss.item())

        return run.fit(module, epoch, epochs=2000, score=lambda: float(loss_now()), until=0.005)

    def metrics(self, module: Translator, data: Words) -> dict[str, float | int | dict[str, str]]:
        """What it says to the six words, and to two that it never saw."""
        said = {word: module.translate(word) for word in [*PAIRS, "mans", "old"]}
        return {"pairs_exact": sum(said[word] == answer for word, answer in PAIRS.items()), "says": said}

    def picture(self, module: Translator, data: Words) -> Figure:
        """The probability of every letter at every step."""
        figure = Figure(figsize=(11, 6), layout="constrained")
        figure.suptitle("antonyms: the probability of every letter, step by step")
        for axes, word in zip(figure.subplots(2, 3).flat, PAIRS, strict=True):
            axes.imshow(module.confidence(word).numpy(), cmap="viridis", vmin=0, vmax=1, aspect="auto")
            said = module.translate(word)
            axes.set_title(f"{word} → {said}")
            axes.set_yticks(range(len(said)), list(said))
            axes.set_xticks(range(len(VOCABULARY)), VOCABULARY, fontsize=6)
        return figure

    def export(self, module: Translator, data: Words, folder: Path) -> list[Export]:
        """Two files: the encoder's output h is the decoder's state h at position 0."""
        encoder = export(
            module.encoder,
            {"text": torch.arange(len(VOCABULARY))[None]},
            outputs=["h"],
            time_axis=1,
            path=folder / "encoder.onnx",
            text={"text": LETTERS},
            description="Reads a word, letter by letter.",
        )
        decoder = export(
            module.decoder,
            {"token": torch.arange(len(VOCABULARY))[None]},
            states={"h": State(torch.zeros(1, 1, self.hidden), batch_axis=1, from_encoder="h")},
            outputs=["logits"],
            time_axis=1,
            path=folder / "decoder.onnx",
            classes={"logits": VOCABULARY},
            decoding=Decoding(
                input="token",
                output="logits",
                start_token=START,
                end_token=END,
                text=LETTERS,
                max_tokens=MAX_TOKENS,
            ),
            description="Spells the antonym of the word that the encoder read.",
        )
        return [encoder, decoder]


recipe = Antonyms()
