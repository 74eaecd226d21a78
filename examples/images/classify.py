"""A checkpoint becomes a model that knows its classes by name; images are classified, many callers at once."""

from pathlib import Path

import numpy as np
import torch
from checkpoint import Net, train
from sklearn.datasets import load_digits

import statestream
from statestream_export import export

if not Path("digits.pth").exists():
    train("digits.pth")

saved = torch.load("digits.pth", weights_only=True)
net = Net()
net.load_state_dict(saved["weights"])
images = load_digits().images.astype(np.float32)
export(
    net,
    {"image": torch.tensor(images[:8])},
    outputs=["score"],
    classes={"score": saved["classes"]},
    path="models/digits/1",
)

with statestream.local("models/digits") as client:
    for (likeliest,) in client.classify("digits", images[-5:], top=1):
        print(f"{likeliest.name}, {likeliest.probability:.0%}")
