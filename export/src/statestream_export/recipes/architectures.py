"""What the well-known architectures share: random weights or a checkpoint, the published size, parity at full size."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from statestream_export import Export, export
from statestream_export.errors import DataError
from statestream_export.pictures import bars
from statestream_export.recipe import Card, Target
from statestream_export.training import Curve, Run

Triple = tuple[float, float, float]
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION: Triple = (0.229, 0.224, 0.225)
HALF: Triple = (0.5, 0.5, 0.5)
"""Mean and deviation that bring 0..1 to −1..1."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network as it was published.

    Attributes:
        name: Its name, and the model's.
        cell: Its layers.
        parameters: How many it has, without auxiliary heads.
        size: Height and width of its images.
        mean: What is taken from red, green and blue, as shares of 255.
        deviation: What they are divided by then.
        only_train: How the names of auxiliary heads begin, which checkpoints have and the served model has not.
    """

    name: str
    cell: str
    parameters: int
    size: int = 224
    mean: Triple = IMAGENET_MEAN
    deviation: Triple = IMAGENET_DEVIATION
    only_train: tuple[str, ...] = ()


class Photo(nn.Module):
    """Scores from a photo as files have it: image [B, H, W, 3] uint8 → scores [B, classes]."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, mean: Triple, deviation: Triple) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean) * 255)
        self.register_buffer("deviation", torch.tensor(deviation) * 255)

    def forward(self, image: Tensor) -> Tensor:
        """Scaling, and colours before height and width, happen inside."""
        scores: Tensor = self.network(((image.float() - self.mean) / self.deviation).permute(0, 3, 1, 2))
        return scores


@dataclass(frozen=True)
class Photos:
    """Random images uint8 [4, H, W, 3] to try the network with, and the checkpoint to load, if any."""

    images: Tensor
    weights: Path | None


class ArchitectureRecipe:
    """Nothing is trained: the weights are random, or a checkpoint's with torchvision's names.

    Args:
        architecture: What was published.
        network: Makes the network, random weights.
    """

    def __init__(self, architecture: Architecture, network: Callable[[], nn.Module]) -> None:
        self._architecture = architecture
        self._network = network
        self.card = Card(
            architecture.name,
            task="name what is on a photo, 1,000 classes",
            data="random weights, or --weights FILE",
            cell=architecture.cell,
            kind="predict",
            mode="",
            target=Target("parameters", "==", architecture.parameters),
        )

    def data(self, run: Run) -> Photos:
        """Random images from the run's seed."""
        side = self._architecture.size
        return Photos(torch.randint(0, 256, (4, side, side, 3), dtype=torch.uint8), run.weights)

    def module(self, data: Photos) -> Photo:
        """Random weights, or the checkpoint's."""
        network = self._network()
        if data.weights is None:
            keep_variance(network)
        else:
            load_weights(network, data.weights, self._architecture.only_train)
        return Photo(network, self._architecture.mean, self._architecture.deviation)

    def train(self, module: Photo, data: Photos, run: Run) -> Curve:
        """There is nothing to learn."""
        return Curve()

    def metrics(self, module: Photo, data: Photos) -> dict[str, float | int | str]:
        """How many parameters it has, and whether its answers depend on the image at all."""
        said = module(data.images[:2])
        return {
            "parameters": count_parameters(module.network),
            "spread_between_images": float((said[0] - said[1]).abs().max()),
            "weights": "random" if data.weights is None else data.weights.name,
        }

    def picture(self, module: Photo, data: Photos) -> Figure:
        """Where the parameters are."""
        counts = {name: count_parameters(part) / 1e6 for name, part in module.network.named_children()}
        title = f"{self.card.name}: millions of parameters"
        return bars(title, {name: count for name, count in counts.items() if count})

    def export(self, module: Photo, data: Photos, folder: Path) -> list[Export]:
        """One file without memory, compared with torch at full size."""
        side = self._architecture.size
        return [
            export(
                module,
                {"image": data.images},
                outputs=["scores"],
                path=folder / "model.onnx",
                description=f"{self.card.cell}: an RGB photo of {side}×{side} pixels, 0 to 255, to 1,000 scores.",
            )
        ]


def keep_variance(network: nn.Module) -> None:
    """Random weights, after He et al., with which an image still matters behind dozens of layers.

    With torch's own start the scores of all images are the same to seven digits, and a comparison says nothing.
    """
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")


def count_parameters(module: nn.Module) -> int:
    """How many numbers are learnt in a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def load_weights(network: nn.Module, path: Path, only_train: tuple[str, ...] = (), skip: tuple[str, ...] = ()) -> None:
    """Loads a checkpoint with torchvision's names into a network.

    Args:
        network: Changed in place.
        path: A file of torch.save with a mapping of names to tensors; nothing in it is executed.
        only_train: How names begin that are passed over where the network does not have them.
        skip: Names of the network that keep what they are.

    Raises:
        DataError: The file is missing or no checkpoint, or its names or shapes are not the network's.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; --weights names a checkpoint (.pth) with torchvision's names")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is no checkpoint that can be read, or truncated: {line}") from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise DataError(f"{path} holds a {type(found).__name__}; expected a mapping of names to tensors (a state_dict)")
    own = network.state_dict()
    given = {
        name: value
        for name, value in found.items()
        if name not in skip and (name in own or not name.startswith(only_train or ("\0",)))
    }
    # Old checkpoints have no such counters; nothing that is served reads them.
    missing = [name for name in own if name not in given and name not in skip and "num_batches_tracked" not in name]
    unknown = [name for name in given if name not in own]
    if missing or unknown:
        raise DataError(
            f"{path} is a checkpoint of another network: it lacks {_some(missing)} and has {_some(unknown)} beside;"
            f" expected torchvision's names for {type(network).__name__}"
        )
    for name, value in given.items():
        if value.shape != own[name].shape:
            raise DataError(f"{path} has {name} of shape {list(value.shape)}; expected {list(own[name].shape)}")
    network.load_state_dict(given, strict=False)


def _some(names: list[str]) -> str:
    return f"{len(names)} names ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else "no name"
