"""Makes what docs/voice.md shows: its picture, and with --recording the recording itself, from espeak-ng and sox.

    .venv/bin/python -m tools.record_voice [--recording]

The picture needs the package silero-vad; the recording the programs espeak-ng and sox. Nobody's voice is in it.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib import pyplot
from numpy.typing import NDArray

from tests.support import voice

PICTURE: Final = voice.RECORDING.with_name("speech.png")
SENTENCES: Final = (
    ("en-us", "165", "50", "It keeps the memory of every call."),
    ("en-gb", "175", "35", "And noise is not a voice."),
)
"""Who says what: voice, words a minute, pitch."""
QUIET: Final = 0.5
"""Seconds before, between and behind."""


def record(to: Path) -> None:
    """Writes the recording: a sentence, a burst of noise and a sentence over a floor of noise; 8 bits keep it small."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def sox(*arguments: str) -> None:
            subprocess.run(["sox", "-R", *arguments], cwd=folder, check=True)

        trim = ["silence", "1", "0.01", "0.5%", "reverse"]
        for number, (who, speed, pitch, text) in enumerate(SENTENCES):
            said = ["espeak-ng", "-v", who, "-s", speed, "-p", pitch, "-w", f"{number}.said.wav", text]
            subprocess.run(said, cwd=folder, check=True)
            sox(f"{number}.said.wav", "-r", str(voice.RATE), "-c", "1", f"{number}.wav", "norm", "-8", *trim, *trim)
        noise = ["-n", "-r", str(voice.RATE), "-c", "1"]
        sox(*noise, "quiet.wav", "synth", str(QUIET), "pinknoise", "vol", "0")
        sox(*noise, "burst.wav", "synth", "0.7", "brownnoise", "vol", "0.4", "fade", "0.02", "0.7", "0.2")
        parts = ["quiet.wav", "0.wav", "quiet.wav", "burst.wav", "quiet.wav", "1.wav", "quiet.wav"]
        sox(*parts, "speech.wav")
        asked = subprocess.run(["sox", "--i", "-D", "speech.wav"], cwd=folder, check=True, capture_output=True)
        sox(*noise, "floor.wav", "synth", asked.stdout.decode().strip(), "pinknoise", "vol", "0.02")
        sox("-m", "-v", "1", "speech.wav", "-v", "1", "floor.wav", "-b", "8", str(to.resolve()))


def draw(samples: NDArray[np.float32], served: NDArray[np.float32], package: NDArray[np.float32], to: Path) -> None:
    """Draws one call beside the package, and all calls.

    Args:
        samples: [samples] of the first call.
        served: [calls, frames] scores of a server.
        package: [frames] of the package's wrapper for the first call.
        to: The file.
    """
    seconds = np.arange(len(package)) * voice.FRAME / voice.RATE
    figure, (wave, score, every) = pyplot.subplots(3, 1, figsize=(9, 6.6), sharex=True, layout="constrained")
    wave.plot(np.arange(len(samples)) / voice.RATE, samples, color="#666666", linewidth=0.4)
    wave.set(ylabel="samples", ylim=(-1, 1), title="A sentence, a burst of noise, a sentence")
    score.plot(seconds, package, color="#c44e52", linewidth=5, alpha=0.45, label="the package's wrapper, alone")
    score.plot(seconds, served[0], color="#1f3b5c", linewidth=1.2, label="served, beside 63 other calls")
    most = float(np.abs(served[0] - package).max())
    score.set(ylabel="speech probability", ylim=(-0.05, 1.4), title=f"The largest difference: {most:g}")
    score.legend(loc="upper center", ncols=2, fontsize=8)
    image = every.imshow(
        served, aspect="auto", cmap="magma", vmin=0, vmax=1, extent=(0, len(package) * voice.FRAME / voice.RATE, 64, 0)
    )
    every.set(xlabel="seconds", ylabel="call", title="64 calls at once, each of which begins at another place")
    figure.colorbar(image, ax=every, label="speech probability", shrink=0.9)
    figure.savefig(to, dpi=100)
    pyplot.close(figure)


def main() -> None:
    """Makes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recording", action="store_true", help="makes the recording anew, too")
    if parser.parse_args().recording:
        record(voice.RECORDING)
    calls = voice.calls(64)
    package = voice.wrapped("silero_vad.onnx", calls[0])
    with tempfile.TemporaryDirectory() as name:
        served = voice.served("silero_vad.onnx", calls, Path(name))
    assert np.array_equal(served[0], package), "the server answers otherwise than the package"
    draw(calls[0].reshape(-1), served, package, PICTURE)


if __name__ == "__main__":
    main()
