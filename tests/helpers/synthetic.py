"""Methods with a small frozen generator, and their steps written out as one graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from helpers.meta_methods import doubled, load
from needsaug_lite import models
from needsaug_lite.data import Batch, Splits
from needsaug_lite.methods.baselines.generative import Generative
from needsaug_lite.methods.baselines.synthetic_images import SyntheticSettings
from needsaug_lite.methods.pseudo_sampling import (
    MetaPseudoSampling,
    Searched,
    SearchSettings,
)
from needsaug_lite.models import Adapted, Classifier
from needsaug_lite.training import Optimisation

LATENT = 6
# Too small to move a number in float32, and not zero.
STANDSTILL = 1e-30


class Painter(nn.Module):
    """Smooth random images that depend on z and y; nobody trained it."""

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        self.side = side
        self.classes = nn.Embedding(classes, LATENT)
        self.first = nn.Linear(LATENT, 4 * side * side)
        self.last = nn.Conv2d(4, channels, 3, padding=1)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        hidden = self.first(latents + self.classes(labels)).tanh()
        images: Tensor = self.last(hidden.view(-1, 4, self.side, self.side))
        return images.tanh()


def painter(
    channels: int = 1, side: int = 8, classes: int = 10, *, conditional: bool = True
) -> Adapted:
    torch.manual_seed(17)
    network = Painter(channels, side, classes)
    return Adapted(network, LATENT, classes, conditional=conditional)


def make(
    kind: Callable[..., Any],
    splits: Splits | None = None,
    *,
    seed: int = 0,
    source: Adapted | None = None,
    model: Classifier | None = None,
    synthetic: Mapping[str, Any] | None = None,
    search: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """A method for the digits with sixteen generated images in a step."""
    splits = splits or load().without_true_labels()
    source = source or painter(splits.image_shape[0])
    torch.manual_seed(seed)
    model = model or models.build("convnet", splits.image_shape, 10, width=4)
    if search is not None:
        settings["search"] = SearchSettings(**{"width": 12, **search})
    return kind(
        model,
        splits,
        generator=source,
        synthetic=SyntheticSettings(**{"batch_size": 16, **(synthetic or {})}),
        optimisation=Optimisation(lr=0.05, batch_size=32, warmup=0),
        seed=seed,
        **settings,
    )


# --- mathematics in float64 ---------------------------------------------------


def smooth_model() -> Classifier:
    """A network with batch norm and without kinks."""
    torch.manual_seed(5)
    body = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.Softplus(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return Classifier(body, 6, nn.Linear(6, 10))


class Smudge:
    """A smooth T: for finite differences through it."""

    def draw(self, shape: torch.Size, source: torch.Generator) -> Tensor:
        return torch.rand(shape[0], 1, 1, 1, generator=source, dtype=torch.float64)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        return 0.1 + 0.8 * draws * images.roll(1, 3) + 0.1 * images.square()


class _Same:
    """The same meta images again and again."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def begin_epoch(self, epoch: int) -> None: ...

    def __next__(self) -> Batch:
        return self.batch


@dataclass
class Scene:
    """All that one step of a method sees."""

    method: Any
    batch: Batch
    clean: Batch | None
    latents: Tensor
    labels: Tensor
    draws: Any

    def images(self, phi: Mapping[str, Tensor]) -> Tensor:
        """G(F(z), y)."""
        moved = functional_call(self.method.finder, dict(phi), (self.latents,))
        found: Tensor = self.method.generator.sample(moved, self.labels)
        return found

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The images and T of them, normalised."""
        normal = self.method.normalisation.from_unit
        return normal(images), normal(self.method.strong(images, self.draws))

    def theta(self) -> dict[str, Tensor]:
        """Weights as fresh leaves."""
        return {
            name: value.detach().clone().requires_grad_()
            for name, value in self.method.model.named_parameters()
        }

    def phi(self) -> dict[str, Tensor]:
        """Weights of the finder as fresh leaves."""
        return {
            name: value.detach().clone().requires_grad_()
            for name, value in self.method.finder.named_parameters()
        }

    def logits(self, theta: Mapping[str, Tensor], images: Tensor) -> Tensor:
        found: Tensor = functional_call(self.method.model, dict(theta), (images,))
        return found

    def features(self, theta: Mapping[str, Tensor], images: Tensor) -> Tensor:
        body = {
            name.removeprefix("backbone."): value
            for name, value in theta.items()
            if name.startswith("backbone.")
        }
        found: Tensor = functional_call(self.method.model.backbone, body, (images,))
        return found

    def consistency(self, theta: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Mgr Eq. 5 and 6; with `stop_gradient` g(x_p) has other weights."""
        plain, changed = self.both(images)
        target = theta
        if getattr(self.method, "stop_gradient", False):
            target = {name: value.detach() for name, value in theta.items()}
        gap = self.features(theta, changed) - self.features(target, plain)
        return (gap**2).sum() / len(images)

    def supervision(self, theta: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Mgr Eq. 4."""
        plain, _ = self.both(images)
        return cross_entropy(self.logits(theta, plain), self.labels)

    def after_step(
        self,
        images: Tensor,
        loss: Callable[[Mapping[str, Tensor], Tensor], Tensor],
        *,
        eta: float,
        strength: float,
    ) -> Tensor:
        """L_val(θ'), θ' = θ - η ∇_θ( L(θ) + λ L_p(θ) ) (mgr Eq. 8), one graph."""
        assert self.clean is not None
        theta = self.theta()
        real = cross_entropy(self.logits(theta, self.batch.images), self.batch.labels)
        total = real + strength * loss(theta, images)
        slopes = torch.autograd.grad(total, list(theta.values()), create_graph=True)
        moved = {
            name: value - eta * slope
            for (name, value), slope in zip(theta.items(), slopes, strict=True)
        }
        return cross_entropy(self.logits(moved, self.clean.images), self.clean.labels)


def scene(method: Generative, *, smooth: bool = True, epoch: int = 0) -> Scene:
    """Bring a method into float64, with a finder that isn't the identity."""
    method.model.double().train()
    method.generator.double()
    if smooth:
        changed: Any = Smudge()
        method.strong = changed
    if isinstance(method, Searched):
        method.finder.double()
        torch.manual_seed(23)
        for value in method.finder.parameters():
            value.data = 0.4 * torch.randn_like(value)
    own = method.latents

    def latents() -> tuple[Tensor, Tensor]:
        z, y = own()
        return z.double(), y

    method.latents = latents  # type: ignore[method-assign]
    method.stages(10)
    method.begin_epoch(epoch)
    clean = None
    if isinstance(method, MetaPseudoSampling):
        clean = doubled(next(method.meta))
        always: Any = _Same(clean)
        method.meta = always
    state = method.draw.get_state()
    z, y = method.latents()
    shape = (len(z), *method.batches.examples.images.shape)
    draws = method.strong.draw(torch.Size(shape), method.draw)
    method.draw.set_state(state)
    batch = doubled(next(method.batches.epoch(epoch)))
    return Scene(method, batch, clean, z, y, draws)


def flat(tensors: Any) -> Tensor:
    """All entries in one row."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
