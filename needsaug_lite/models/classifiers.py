"""Classifiers with a clear split: `features(x)`, then `head(h)`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from needsaug_lite.errors import UserError
from needsaug_lite.models.cell_network import CellNetwork
from needsaug_lite.models.cell_operations import OPERATIONS, check_side
from needsaug_lite.models.genotype import Genotype
from needsaug_lite.models.heads import make_head
from needsaug_lite.models.search_cell import Architecture, Space, Supernet

TORCHVISION = {
    "resnet18": "resnet18",
    "resnet18_32": "resnet18",
    "resnet50": "resnet50",
    "resnext50": "resnext50_32x4d",
}
#: Names that `build` knows.
BACKBONES = ("convnet", "resnet32", *TORCHVISION, "linear", "supernet")


class Classifier(nn.Module):
    """A backbone that gives features (B, D) and a head that gives logits (B, C).

    Args:
        backbone: from images (B, channels, H, W) to features.
        feature_dim: D.
        head: from features to logits.
    """

    def __init__(self, backbone: nn.Module, feature_dim: int, head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.feature_dim = feature_dim
        self.head = head

    def features(self, images: Tensor) -> Tensor:
        """Features (B, D) of normalised images (B, channels, H, W)."""
        features: Tensor = self.backbone(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C)."""
        logits: Tensor = self.head(self.features(images))
        return logits


def features_with(
    model: Classifier, params: Mapping[str, Tensor], images: Tensor
) -> Tensor:
    """Features under other parameters than the model's own.

    Args:
        model: its buffers are used.
        params: by the names of `model.named_parameters()`; those of the head are not
            used.
        images: normalised, shape (B, channels, H, W).

    Returns:
        Shape (B, D).
    """
    prefix = "backbone."
    chosen = {
        name.removeprefix(prefix): value
        for name, value in params.items()
        if name.startswith(prefix)
    }
    found: Tensor = functional_call(model.backbone, chosen, (images,))
    return found


def convnet(channels: int, width: int) -> nn.Sequential:
    """Four 3x3 convolutions of widths w, w, 2w, 2w with batch norm; D = 2w."""
    layers: list[nn.Module] = []
    widths = [channels, width, width, 2 * width, 2 * width]
    for number, (before, after) in enumerate(pairwise(widths)):
        layers += [
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
        if number == 1:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class _BasicBlock(nn.Module):
    """Two convolutions and a parameter-free shortcut (stride and zero channels)."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.stride, self.grow = stride, after - before
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        short = x[:, :, :: self.stride, :: self.stride]
        half = self.grow // 2
        short = functional.pad(short, (0, 0, 0, 0, half, self.grow - half))
        return functional.relu(out + short)


def resnet32(channels: int, feature_dim: int = 64) -> nn.Sequential:
    """The CIFAR ResNet-32: three stages of five blocks, widths D/4, D/2, D.

    Args:
        channels: of the images.
        feature_dim: D, divisible by 4; 64 is the published network, 512 the
            feature length that facog states.

    Source: He et al. 2016, Sec. 4.2.
    """
    if feature_dim % 4:
        raise UserError(f"feature_dim is {feature_dim}; it must be divisible by 4")
    width = feature_dim // 4
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    before = width
    for stage in range(3):
        after = width * 2**stage
        for block in range(5):
            layers.append(_BasicBlock(before, after, 2 if stage and not block else 1))
            before = after
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return network


def _torchvision_backbone(name: str) -> tuple[nn.Module, int]:
    from needsaug_lite import _torchvision  # noqa: F401

    from torchvision import models  # isort: skip

    network = getattr(models, TORCHVISION[name])(weights=None)
    feature_dim = int(network.fc.in_features)
    network.fc = nn.Identity()
    if name.endswith("_32"):
        network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        network.maxpool = nn.Identity()
    return network, feature_dim


def build(
    backbone: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: int = 16,
    feature_dim: int = 64,
    head: str = "linear",
    weights: Path | None = None,
    cells: int = 8,
    nodes: int = 4,
    operations: tuple[str, ...] = OPERATIONS,
    partial: int = 4,
    halvings: int = 0,
    edge_normalised: bool = True,
) -> Classifier:
    """A classifier for images of one shape, drawn from torch's global generator.

    Args:
        backbone: convnet; resnet32, resnet18, resnet50, resnext50; resnet18_32, whose
            first layer keeps images of 32 pixels at their size; supernet, in which an
            architecture is searched; or linear: nothing but the numbers of the image
            in one row (D = channels * height * width), so that the head is the whole
            model; for features, which are 1 x 1 "images".
        image_shape: channels, height, width.
        num_classes: C.
        width: of the convnet, or of the first cells of the supernet.
        feature_dim: of resnet32.
        head: linear, cosine or two_layers.
        weights: file with a state dict for the backbone, from the user's disk.
        cells, partial, halvings: of the supernet; see `Supernet`.
        nodes, operations: of its cells; see `Space`.
        edge_normalised: its edges have weights too; see `Architecture`.

    Returns:
        The classifier, on the CPU.

    Raises:
        UserError: for an unknown name, an image that the network can't take, or
            weights that don't fit.
    """
    channels, height, breadth = image_shape
    if backbone != "linear" and min(height, breadth) < 8:
        raise UserError(
            f"images are {height} x {breadth} pixels; networks here need 8 x 8 (for "
            "features: backbone linear)"
        )
    if backbone == "convnet":
        body: nn.Module = convnet(channels, width)
        feature_dim = 2 * width
    elif backbone == "resnet32":
        body = resnet32(channels, feature_dim)
    elif backbone == "linear":
        body, feature_dim = nn.Flatten(), channels * height * breadth
    elif backbone == "supernet":
        architecture = Architecture(Space(nodes, operations), edge_normalised)
        body = Supernet(
            channels,
            architecture,
            width=width,
            cells=cells,
            partial=partial,
            halvings=halvings,
        )
        check_side(image_shape, cells, halvings)
        feature_dim = body.feature_dim
    elif backbone in TORCHVISION:
        if channels != 3:
            raise UserError(
                f"{backbone} needs colour images, but these are grey; pass channels=3 "
                "(--channels 3) to repeat the grey channel"
            )
        body, feature_dim = _torchvision_backbone(backbone)
    else:
        raise UserError(f"unknown backbone {backbone!r}; use {', '.join(BACKBONES)}")
    model = Classifier(body, feature_dim, make_head(head, feature_dim, num_classes))
    if weights is not None:
        load_weights(model, weights)
    return model


def build_from_cells(
    genotype: Genotype,
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: int,
    cells: int,
    halvings: int = 0,
    auxiliary: bool = False,
) -> Classifier:
    """A classifier of found cells, drawn from torch's global generator.

    Args:
        genotype: the cells.
        image_shape: channels, height, width.
        num_classes: C.
        width, cells, halvings: see `CellNetwork`.
        auxiliary: build the second head that it is trained with.

    Returns:
        The classifier, on the CPU.
    """
    body = CellNetwork(
        image_shape[0],
        genotype,
        width=width,
        cells=cells,
        halvings=halvings,
        classes=num_classes if auxiliary else None,
    )
    head = make_head("linear", body.feature_dim, num_classes)
    return Classifier(body, body.feature_dim, head)


def load_weights(model: Classifier, file: Path) -> None:
    """Load a backbone's state dict; a final layer `fc.*` in the file is left out.

    Args:
        model: its backbone is changed in place.
        file: the state dict, as `torch.save` writes it.

    Raises:
        UserError: if the file is missing, unreadable, or doesn't fit the backbone.
    """
    if not file.is_file():
        raise UserError(f"weights file {file} doesn't exist")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several unrelated types here
        raise UserError(f"{file} is no file of torch weights ({error})") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    try:
        model.backbone.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"{file} doesn't fit this backbone: {error}") from error
