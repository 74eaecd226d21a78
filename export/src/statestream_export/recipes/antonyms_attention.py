"""Antonyms with attention: LSTMs, and a decoder that looks back at the letters of the word as it spells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from statestream.contract.signature import Decoding, encode_text
from statestream_export import Export, State, export
from statestream_export.recipes.antonyms import (
    END,
    HIDDEN,
    LETTERS,
    MAX_TOKENS,
    PAIRS,
    START,
    VOCABULARY,
    Antonyms,
    Translator,
    Words,
)

WINDOW = 16
"""How many letters of a word the decoder can look at: a state has one shape, however long the word is."""


class Encoder(nn.Module):
    """A word becomes what the decoder starts from and looks at.

    text [B, T] int64 → h, c [1, B, 128], memory [B, 16, 128], mask [B, 16]. The memory holds the LSTM's outputs to the
    first 16 letters, zeros beyond the word; the mask is 1 where there is a letter. A longer word is read to its end, so
    h and c know of all letters, but no memory is kept of those after the 16th.
    """

    letters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("letters", torch.eye(len(VOCABULARY)))
        self.drop = nn.Dropout(0.5)
        self.rnn = nn.LSTM(len(VOCABULARY), HIDDEN, batch_first=True)

    def forward(self, text: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Words of one length, or padded ones of these lengths: each is read to its own end and not beyond."""
        letters = self.drop(self.letters[text])
        if lengths is None:
            memory, (h, c) = self.rnn(letters)
            mask = torch.ones_like(text, dtype=torch.float32)
        else:
            packed = pack_padded_sequence(letters, lengths, batch_first=True, enforce_sorted=False)
            outputs, (h, c) = self.rnn(packed)
            memory, _ = pad_packed_sequence(outputs, batch_first=True)
            mask = (torch.arange(memory.shape[1]) < lengths[:, None]).float()
        beyond = torch.zeros(text.shape[0], WINDOW, HIDDEN)
        memory = torch.cat([memory, beyond], 1)[:, :WINDOW]
        mask = torch.cat([mask, beyond[..., 0]], 1)[:, :WINDOW]
        return h, c, memory, mask


class Decoder(nn.Module):
    """The previous letter and a look at the word become scores of the next.

    token [B, T] int64, states h, c, memory, mask → logits [B, T, 29], where each step looked [B, T, 16] and the states.
    Memory and mask pass through unchanged: they are states only so that every step finds them.
    """

    letters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("letters", torch.eye(len(VOCABULARY)))
        self.drop = nn.Dropout(0.5)
        self.rnn = nn.LSTM(len(VOCABULARY), HIDDEN, batch_first=True)
        self.query = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.join = nn.Linear(2 * HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, len(VOCABULARY))

    def forward(
        self, token: Tensor, h: Tensor, c: Tensor, memory: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """One-hot happens inside."""
        hidden, (h, c) = self.rnn(self.drop(self.letters[token]), (h, c))
        weights = self._weights(hidden, memory, mask)
        joined = torch.tanh(self.join(torch.cat([hidden, weights @ memory], -1)))
        return self.head(self.drop(joined)), weights, h, c, memory, mask

    def attention(self, token: Tensor, h: Tensor, c: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """How much each step looks at each letter, [B, T, 16]; each row sums to 1."""
        hidden, _ = self.rnn(self.letters[token], (h, c))
        return self._weights(hidden, memory, mask)

    def _weights(self, hidden: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        scores: Tensor = self.query(hidden) @ memory.transpose(1, 2) / HIDDEN**0.5
        # Not -inf: of a row that no encoder filled, all letters are masked, and softmax would give NaN.
        return scores.masked_fill(mask[:, None] < 0.5, -1e9).softmax(-1)


class AntonymsAttention(Antonyms):
    """The data, training and figures of `antonyms`; another encoder and decoder."""

    card = replace(Antonyms.card, name="antonyms-attention", cell="LSTM 29→128, encoder and decoder with attention")

    def module(self, data: Words) -> Translator:
        """Random weights from the run's seed."""
        return Translator(Encoder(), Decoder())

    def picture(self, module: Translator, data: Words) -> Figure:
        """Which letters of the word each letter of the answer looked at."""
        figure = Figure(figsize=(11, 7), layout="constrained")
        figure.suptitle("antonyms-attention: where each letter of the answer (down) looks in the word (across)")
        for axes, word in zip(figure.subplots(2, 3).flat, PAIRS, strict=True):
            said = module.translate(word)
            weights = attention(module, word, said)
            image = axes.imshow(weights.numpy(), cmap="viridis", vmin=0, vmax=1)
            axes.set_title(f"{word} → {said}")
            axes.set_xticks(range(len(word)), list(word))
            axes.set_yticks(range(len(said) + 1), [*said, "end"])
        figure.colorbar(image, ax=figure.axes, shrink=0.6, label="attention")
        return figure

    def export(self, module: Translator, data: Words, folder: Path) -> list[Export]:
        """Two files: what the encoder gives are the decoder's states at position 0."""
        encoder = export(
            module.encoder,
            {"text": torch.arange(len(VOCABULARY))[None]},
            outputs=["h", "c", "memory", "mask"],
            time_axis=1,
            path=folder / "encoder.onnx",
            text={"text": LETTERS},
            description=f"Reads a word, letter by letter; the decoder can look at the first {WINDOW} letters.",
        )
        decoder = export(
            module.decoder,
            {"token": torch.arange(len(VOCABULARY))[None]},
            states={
                "h": State(torch.zeros(1, 1, HIDDEN), batch_axis=1, from_encoder="h"),
                "c": State(torch.zeros(1, 1, HIDDEN), batch_axis=1, from_encoder="c"),
                "memory": State(torch.zeros(1, WINDOW, HIDDEN), from_encoder="memory"),
                "mask": State(torch.zeros(1, WINDOW), from_encoder="mask"),
            },
            outputs=["logits", "attention"],
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
                attention="attention",
            ),
            description="Spells the antonym of the word that the encoder read, looking back at its letters.",
        )
        return [encoder, decoder]


def attention(module: Translator, word: str, said: str) -> Tensor:
    """How much each letter of an answer, and its end, looked at each letter of the word, [said + 1, word]."""
    decoder = module.decoder
    assert isinstance(decoder, Decoder)
    states = module.encoder(torch.tensor([encode_text(LETTERS, word)]))
    return decoder.attention(torch.tensor([[START, *encode_text(LETTERS, said)]]), *states)[0, :, : len(word)]


recipe = AntonymsAttention()
