"""Who speaks when: a microphone's frames go in as they come, Silero VAD answers each."""

import shutil
import wave
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import statestream

TOLD = """\
context = { input = 64 }
shapes = { input = ["batch", 512] }
constants = { sr = 16000 }
"""
"""What the file does not say of itself; docs/voice.md explains it."""


def microphone():
    """Frames of 32 ms, [512] float32 at 16 kHz; here from a recording of two sentences and a burst of noise."""
    with wave.open("docs/voice/recording.wav") as file:
        while len(data := file.readframes(512)) == 512:
            yield (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128


found = find_spec("silero_vad")
if found is None:
    raise SystemExit("the model comes with a package: pip install silero-vad")
package = Path(found.origin).parent
Path("models").mkdir(exist_ok=True)
shutil.copy(package / "data" / "silero_vad.onnx", "models/vad.onnx")
Path("models/vad.toml").write_text(TOLD)

with statestream.local("models/vad.onnx") as client, client.session("vad") as session:
    speaks = False
    for frame, score in enumerate(session.stream(microphone())):
        if speaks != (score.item() > 0.5):
            speaks = not speaks
            print(f"{frame * 0.032:.1f} s: {'somebody speaks' if speaks else 'silence'}")
