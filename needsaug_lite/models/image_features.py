"""Features of images from a network that was trained on ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import URLError

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from needsaug_lite import _torchvision  # noqa: F401
from needsaug_lite.data import waterbirds
from needsaug_lite.errors import UserError
from needsaug_lite.files import digest
from needsaug_lite.models.classifiers import Classifier, build, load_weights

import torchvision  # isort: skip
from torchvision.models import ResNet18_Weights  # isort: skip

_WEIGHTS = ResNet18_Weights.IMAGENET1K_V1
_SHAPE = (3, 224, 224)


def imagenet_weights() -> Path:
    """The file of torchvision's ResNet-18 weights, downloaded unless it is there.

    It lies in torch's cache and is checked against the checksum in its name.

    Raises:
        UserError: if it can't be downloaded.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(_WEIGHTS.url).name
    try:
        _WEIGHTS.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"the weights can't be downloaded from {_WEIGHTS.url} ({error}); bring the "
            "file yourself and name it with --weights"
        ) from error
    return file


def resnet18(weights: Path) -> Classifier:
    """A ResNet-18 in eval mode whose `features` are 512 numbers per image.

    Args:
        weights: file with torchvision's state dict; its last layer isn't used.

    Raises:
        UserError: if the file is missing or doesn't fit.
    """
    model = build("resnet18", _SHAPE, num_classes=2)
    load_weights(model, weights)
    return model.eval()


def prepared(path: Path) -> Tensor:
    """Shorter side 256 pixels, centre 224 x 224, ImageNet's moments: (3, 224, 224).

    Raises:
        UserError: if the file can't be read as an image.
    """
    try:
        with Image.open(path) as picture:
            image = picture.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{path} can't be read as an image ({error}); unpack the archive again"
        ) from error
    found: Tensor = _WEIGHTS.transforms()(image)
    return found


def features_of_files(
    model: Classifier,
    paths: Sequence[Path],
    *,
    batch_size: int = 64,
    workers: int = 2,
    device: torch.device | str = "cpu",
    description: str = "features",
) -> Tensor:
    """Features of image files in their order, with a bar where a terminal is.

    Images are prepared as torchvision prepares them for these weights; see `prepared`.

    Args:
        model: in eval mode, so that an image's features depend on it alone.
        paths: N files.
        batch_size: images a step; changes no feature beyond rounding.
        workers: threads that decode.
        device: where the network runs.
        description: beside the bar.

    Returns:
        Features before the last layer, float32 on the CPU, shape (N, D).

    Raises:
        UserError: if an image can't be read, a number is below 1, or the model is in
            training mode.
    """
    if min(batch_size, workers) < 1:
        raise UserError(
            f"batch_size is {batch_size} and workers is {workers}; both are at least 1"
        )
    if model.training:
        raise UserError("the network is in training mode; call model.eval() first")
    model = model.to(device)
    found = []
    with (
        torch.inference_mode(),
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(paths), desc=description, unit="image", disable=None) as bar,
    ):
        for start in range(0, len(paths), batch_size):
            images = torch.stack(
                list(pool.map(prepared, paths[start : start + batch_size]))
            )
            found.append(model.features(images.to(device)).float().cpu())
            bar.update(len(images))
    return torch.cat(found)


def extract_waterbirds(
    root: Path,
    weights: Path | None = None,
    *,
    batch_size: int = 64,
    workers: int = 2,
    device: torch.device | str = "cpu",
) -> Path:
    """Write the features of all Waterbirds images to `root`, for `data.load`.

    Args:
        root: folder above that of the images; the file of features lies in it.
        weights: state dict of a ResNet-18; default: torchvision's, downloaded.
        batch_size, workers, device: see `features_of_files`.

    Returns:
        The file: x, y and g of train, val and test, and where they come from.

    Raises:
        UserError: if images or weights are missing or unreadable.

    Source: autobalance Sec. 4 trains on 512 features of a ResNet-18 from ImageNet.
    """
    parts = waterbirds.image_files(waterbirds.find(root))
    file = imagenet_weights() if weights is None else weights
    model = resnet18(file)
    found = {}
    for part, (paths, labels, groups) in parts.items():
        features = features_of_files(
            model,
            paths,
            batch_size=batch_size,
            workers=workers,
            device=device,
            description=part,
        )
        found[part] = (features, labels, groups)
    source = {
        "network": "resnet18",
        "weights": file.name,
        "weights_sha256": digest(file),
        "torchvision": torchvision.__version__,
    }
    target = root / waterbirds.FEATURES
    waterbirds.write_features(target, found, source)
    return target
