"""The well-known networks: published sizes, torchvision's names, checkpoints; at full size where marked slow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from statestream_export import export
from statestream_export.errors import DataError
from statestream_export.recipes import load
from statestream_export.recipes.alexnet import AlexNet
from statestream_export.recipes.architectures import HALF, Photo, count_parameters, keep_variance, load_weights
from statestream_export.recipes.googlenet import GoogLeNet
from statestream_export.recipes.inception_v3 import InceptionV3
from statestream_export.recipes.resnet18 import ResNet18
from statestream_export.recipes.transfer import Transfer
from statestream_export.recipes.vgg16 import Vgg16
from tests.export.modules import session
from tests.export.test_recipes import run

PUBLISHED: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "alexnet": (AlexNet, 61_100_840),
    "vgg16": (Vgg16, 138_357_544),
    "googlenet": (GoogLeNet, 6_624_904),
    "googlenet with auxiliary heads": (lambda: GoogLeNet(aux_logits=True), 13_004_888),
    "inception-v3": (InceptionV3, 23_834_568),
    "inception-v3 with auxiliary head": (lambda: InceptionV3(aux_logits=True), 27_161_264),
    "resnet18": (ResNet18, 11_689_512),
}
NAMES = {
    "alexnet": ["features.0.weight", "features.10.bias", "classifier.6.weight"],
    "vgg16": ["features.28.weight", "classifier.0.bias", "classifier.6.weight"],
    "googlenet with auxiliary heads": [
        "conv1.conv.weight",
        "inception3a.branch2.1.bn.running_var",
        "inception5b.branch4.1.conv.weight",
        "aux1.conv.conv.weight",
        "aux2.fc2.bias",
        "fc.weight",
    ],
    "inception-v3 with auxiliary head": [
        "Conv2d_1a_3x3.conv.weight",
        "Mixed_5b.branch5x5_2.bn.weight",
        "Mixed_6b.branch7x7dbl_5.conv.weight",
        "Mixed_7c.branch3x3dbl_3b.conv.weight",
        "AuxLogits.conv1.conv.weight",
        "AuxLogits.fc.bias",
        "fc.weight",
    ],
    "resnet18": ["conv1.weight", "layer2.0.downsample.1.running_mean", "layer4.1.bn2.weight", "fc.bias"],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_number_of_parameters(name: str) -> None:
    make, published = PUBLISHED[name]
    with torch.device("meta"):
        network = make()
    assert count_parameters(network) == published
    assert set(NAMES.get(name, ())) <= set(network.state_dict())
    if "with" not in name:
        assert load(name).card.target.bound == published


@pytest.mark.parametrize(
    ("make", "side", "outputs"), [(GoogLeNet, 64, 3), pytest.param(InceptionV3, 299, 2, marks=pytest.mark.slow)]
)
def test_auxiliary_heads_speak_in_training_only(make: Callable[..., nn.Module], side: int, outputs: int) -> None:
    network = make(7, aux_logits=True)
    images = torch.zeros(2, 3, side, side)
    with torch.no_grad():
        answers = network.train()(images)
        assert [tuple(answer.shape) for answer in answers] == [(2, 7)] * outputs
        assert tuple(network.eval()(images).shape) == (2, 7)


@pytest.mark.slow
def test_a_small_photo_goes_through_the_gate_and_its_colours_matter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = ResNet18(5)
    keep_variance(network)
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    made = export(Photo(network, HALF, HALF), {"image": images}, path=tmp_path / "model.onnx", outputs=["scores"])
    assert made.gate.operators["Conv"] == 20
    graph = session(made.path)
    [scores] = graph.run(None, {"image": images.numpy()})
    [swapped] = graph.run(None, {"image": images.flip(3).numpy()})
    with torch.no_grad():
        want = network.eval()(images.permute(0, 3, 1, 2) / 127.5 - 1).numpy()
    np.testing.assert_allclose(scores, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())
    assert np.abs(scores - swapped).max() > 0.01 * np.abs(scores).max()


def test_a_checkpoint_is_loaded_without_its_auxiliary_heads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = GoogLeNet(4, aux_logits=True)
    # Checkpoints of old have no counters of batches.
    torch.save(
        {name: value for name, value in given.state_dict().items() if "num_batches" not in name}, tmp_path / "w.pth"
    )
    network = GoogLeNet(4)
    load_weights(network, tmp_path / "w.pth", ("aux1.", "aux2."))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network.eval()(images), given.eval()(images))


def test_a_head_of_ones_own_is_kept(tmp_path: Path) -> None:
    given, network = ResNet18(), ResNet18(5)
    torch.save(given.state_dict(), tmp_path / "w.pth")
    name, before = "layer3.0.conv1.weight", network.fc.weight.clone()
    load_weights(network, tmp_path / "w.pth", skip=("fc.weight", "fc.bias"))
    assert torch.equal(network.fc.weight, before)
    assert torch.equal(network.state_dict()[name], given.state_dict()[name])


def test_other_files_are_no_weights(tmp_path: Path) -> None:
    path, network = tmp_path / "w.pth", ResNet18(5)
    with pytest.raises(DataError, match="there is no file .*w.pth; --weights names"):
        load_weights(network, path)
    path.write_bytes(b"<html>")
    with pytest.raises(DataError, match="no checkpoint that can be read"):
        load_weights(network, path)
    torch.save(ResNet18(5).state_dict(), path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(DataError, match="no checkpoint that can be read, or truncated"):
        load_weights(network, path)
    torch.save([1, 2], path)
    with pytest.raises(DataError, match="holds a list; expected a mapping"):
        load_weights(network, path)
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(DataError, match=r"another network: it lacks 102 names \(conv1.weight, .* has 1 names \(a\)"):
        load_weights(network, path)
    torch.save(ResNet18(6).state_dict(), path)
    with pytest.raises(DataError, match=r"fc.weight of shape \[6, 512\]; expected \[5, 512\]"):
        load_weights(network, path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["alexnet", "vgg16", "googlenet", "inception-v3", "resnet18"])
def test_parity_at_full_size(tmp_path: Path, name: str) -> None:
    result = run(name, tmp_path, quick=True)
    assert result.reached
    assert [path.name for path in result.model.iterdir()] == ["model.onnx"]
    assert {path.name for path in result.folder.iterdir()} == {"metrics.json", "loss.png", "picture.png"}
    [made] = result.exports
    assert made.gate.largest.difference <= 1e-5 * made.gate.largest.scale
    assert result.metrics["spread_between_images"] > 1e-3 * made.gate.largest.scale  # type: ignore[operator]
    report = json.loads((result.folder / "metrics.json").read_text("utf-8"))
    assert report["metrics"]["weights"] == "random"
    assert report["files"]["model.onnx"]["operators"]["Conv"] >= 5
    made.path.unlink()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fine_tuning_is_no_worse_than_a_frozen_trunk(tmp_path: Path) -> None:
    result = run(Transfer.card.name, tmp_path, quick=False)
    assert result.reached
    assert result.metrics["frozen_accuracy"] > 0.9  # type: ignore[operator]
