"""Shapes, sizes and invariances of the networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from needsaug_lite import models
from needsaug_lite.errors import UserError


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("backbone", "shape", "dim"),
    [
        ("convnet", (1, 8, 8), 32),
        ("convnet", (1, 28, 28), 32),
        ("resnet32", (3, 32, 32), 64),
        ("resnet18", (3, 32, 32), 512),
        ("resnet18_32", (3, 32, 32), 512),
    ],
)
def test_forward_is_head_of_features(
    backbone: str, shape: tuple[int, int, int], dim: int
) -> None:
    torch.manual_seed(0)
    model = models.build(backbone, shape, 7).eval()
    images = torch.randn(3, *shape)
    features = model.features(images)
    assert features.shape == (3, dim) == (3, model.feature_dim)
    assert torch.equal(model(images), model.head(features))
    assert model(images).shape == (3, 7)


def test_published_sizes() -> None:
    # He et al. 2016, Table 6: 0.46M parameters for ResNet-32.
    assert parameters(models.build("resnet32", (3, 32, 32), 10)) == 464_154
    # The classic counts with 1000 classes.
    assert parameters(models.build("resnet18", (3, 32, 32), 1000)) == 11_689_512
    assert parameters(models.build("resnet50", (3, 32, 32), 1000)) == 25_557_032
    assert parameters(models.build("resnext50", (3, 32, 32), 1000)) == 25_028_904


def test_small_images_keep_their_size_in_the_first_layers_of_resnet18_32() -> None:
    small = models.build("resnet18_32", (3, 32, 32), 10)
    # 7 x 7 kernels became 3 x 3: 64 * 3 * (49 - 9) weights less.
    usual = parameters(models.build("resnet18", (3, 32, 32), 10))
    assert parameters(small) == usual - 7680
    seen: list[torch.Size] = []
    first = small.backbone.get_submodule("layer1")
    first.register_forward_hook(lambda *found: seen.append(found[2].shape))
    small(torch.randn(2, 3, 32, 32))
    assert seen == [(2, 64, 32, 32)]


def test_wider_resnet32_has_the_asked_feature_length() -> None:
    model = models.build("resnet32", (3, 32, 32), 10, feature_dim=128)
    assert model.features(torch.randn(2, 3, 32, 32)).shape == (2, 128)
    with pytest.raises(UserError, match="divisible by 4"):
        models.build("resnet32", (3, 32, 32), 10, feature_dim=66)


def test_cosine_head_ignores_lengths_and_is_bounded() -> None:
    torch.manual_seed(0)
    head = models.CosineHead(5, 4, scale=30.0)
    features = torch.randn(6, 5)
    assert torch.allclose(head(features), head(7 * features), atol=1e-4)
    assert float(head(features).detach().abs().max()) <= 30 + 1e-4
    own = head.weight.detach()
    assert torch.allclose(head(own).diagonal(), torch.full((4,), 30.0), atol=1e-4)


def test_a_seed_repeats() -> None:
    built = []
    for _ in range(2):
        torch.manual_seed(5)
        built.append(models.build("convnet", (1, 8, 8), 10).state_dict())
    assert all(torch.equal(built[0][k], built[1][k]) for k in built[0])


def test_weights_from_disk(tmp_path: Path) -> None:
    torch.manual_seed(0)
    donor = models.build("resnet18", (3, 32, 32), 10)
    file = tmp_path / "w.pt"
    state = donor.backbone.state_dict()
    torch.save({**state, "fc.weight": torch.zeros(1000, 512)}, file)
    taker = models.build("resnet18", (3, 32, 32), 10, weights=file)
    assert all(torch.equal(v, taker.backbone.state_dict()[k]) for k, v in state.items())
    with pytest.raises(UserError, match="doesn't fit"):
        models.build("convnet", (3, 32, 32), 10, weights=file)
    file.write_text("not weights")
    with pytest.raises(UserError, match="no file of torch weights"):
        models.build("resnet18", (3, 32, 32), 10, weights=file)
    with pytest.raises(UserError, match="doesn't exist"):
        models.build("resnet18", (3, 32, 32), 10, weights=tmp_path / "none.pt")


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_linear_backbone_is_a_head_on_the_numbers_as_they_are(head: str) -> None:
    torch.manual_seed(0)
    for shape in ((24, 1, 1), (3, 4, 2)):
        model = models.build("linear", shape, 5, head=head)
        numbers = torch.randn(6, *shape)
        assert model.feature_dim == 24
        assert torch.equal(model.features(numbers), numbers.flatten(1))
        assert torch.equal(model(numbers), model.head(numbers.flatten(1)))
    assert "linear" in models.BACKBONES
    linear = models.build("linear", (24, 1, 1), 5)
    assert parameters(linear) == 24 * 5 + 5


def test_bad_requests_are_named() -> None:
    with pytest.raises(UserError, match="1 x 1 pixels.*backbone linear"):
        models.build("convnet", (512, 1, 1), 10)
    with pytest.raises(UserError, match="needs colour images"):
        models.build("resnet18", (1, 28, 28), 10)
    with pytest.raises(UserError, match="unknown backbone"):
        models.build("resnet19", (3, 32, 32), 10)
    with pytest.raises(UserError, match="unknown head"):
        models.build("convnet", (1, 8, 8), 10, head="square")
