"""A network and its checkpoint, as training leaves them: weights by name, and what the classes are called."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from statestream_export.training import epochs

NAMES = "zero one two three four five six seven eight nine".split()


class Net(nn.Module):
    """Scores [B, 10] from scans [B, 8, 8] of 0 to 16."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.classifier = nn.Linear(256, 10)

    def forward(self, image):
        return self.classifier(self.features(image[:, None] / 16))


def train(path: str) -> None:
    """Some seconds on scikit-learn's digits, without the last hundred."""
    torch.manual_seed(0)
    digits = load_digits()
    images, labels = torch.tensor(digits.images[:-100]).float(), torch.tensor(digits.target[:-100])
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in epochs(60, "digits"):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save({"weights": model.state_dict(), "classes": NAMES}, path)
