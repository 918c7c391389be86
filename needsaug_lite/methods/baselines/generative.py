"""Generated images in training: as data, as data for another head, or as a nudge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.func import functional_call

from needsaug_lite import losses
from needsaug_lite.augment import StrongAugmentation
from needsaug_lite.data import Batch, Normalisation, Splits, generator
from needsaug_lite.errors import UserError
from needsaug_lite.methods.baselines.supervised import Supervised, accuracy
from needsaug_lite.methods.baselines.synthetic_images import (
    SYNTHETIC,
    SyntheticSettings,
    check_generator,
)
from needsaug_lite.models import Classifier, Generator, features_with, unrecorded

# Each kind of draw has its own stream, so that adding one leaves the others alone.
_SYNTHETIC = 701

Params = Mapping[str, Tensor]
Views = dict[str, Tensor]


class Generative(Supervised, ABC):
    """Cross-entropy of real images plus λ times a loss of generated ones.

    min_θ  E ℓ(f_θ(x), y) + λ E ℓ_p(x_p, y_p; θ),   x_p = G(z, y_p)     (mgr Eq. 1, 2)

    z is standard normal, y_p uniform over the classes; both are new in every step. A
    subclass says what ℓ_p is. Generated images go through the network by themselves,
    are normalised by their own moments, and leave no trace in the running moments of
    batch norm, in all subclasses alike (errata M8).
    """

    needs_generator = True
    # Whether ℓ_p looks at y_p, which an unconditional generator doesn't.
    needs_labels = False

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        generator: Generator,
        synthetic: SyntheticSettings = SYNTHETIC,
        normalisation: Normalisation | None = None,
        **common: Any,
    ) -> None:
        """Prepare the source of images.

        Args:
            model: trained in place, on the device of `splits`.
            splits: `train` is learned from.
            generator: trained on no other images than those of `train`; it stays as it
                is.
            synthetic: number and weight of generated images.
            normalisation: default: moments of the training images.
            common: see `Supervised`.

        Raises:
            UserError: if the generator makes other classes or other images.
        """
        normal = normalisation or Normalisation.of(splits)
        super().__init__(model, splits, normalisation=normal, **common)
        check_generator(generator, splits)
        if self.needs_labels and not generator.conditional:
            raise UserError(
                f"{type(self).__name__} trains on the classes of generated images, and "
                "an unconditional generator has none; take a conditional one, or pcr "
                "or mgr, which don't look at them"
            )
        self.generator = generator.eval().requires_grad_(False)
        self.normalisation = normal
        self.synthetic = synthetic
        self.strong = StrongAugmentation(synthetic.operations, synthetic.magnitude)

    @abstractmethod
    def synthetic_loss(self, params: Params, views: Views, labels: Tensor) -> Tensor:
        """ℓ_p, mean over the generated images, a scalar.

        Args:
            params: θ, by the names of the model.
            views: what `views` returned.
            labels: y_p, shape (B_p,).
        """

    def views(self, images: Tensor) -> Views:
        """What the loss looks at, normalised: the images as they are.

        Args:
            images: x_p, floats in [0, 1], shape (B_p, channels, H, W).
        """
        return {"plain": self.normalisation.from_unit(images)}

    def latents(self) -> tuple[Tensor, Tensor]:
        """Z (B_p, d) and y_p (B_p,) of a step."""
        size = self.synthetic.batch_size
        made = self.generator
        both = made.noise(size, self.draw), made.labels(size, self.draw)
        # A generator without parameters doesn't know where the data are.
        device = next(self.model.parameters()).device
        return both[0].to(device), both[1].to(device)

    def begin_epoch(self, epoch: int) -> Mapping[str, float]:
        """Set the learning rate, and start the draws of the epoch."""
        self.draw = generator(self.batches.seed, _SYNTHETIC, epoch)
        return super().begin_epoch(epoch)

    def step(self, batch: Batch) -> Mapping[str, Tensor]:
        """One update of the weights on real and generated images."""
        self.model.train()
        latents, labels = self.latents()
        with torch.no_grad():
            views = self.views(self.generator.sample(latents, labels))
        logits = self.model(batch.images)
        real = self.batch_loss(logits, batch)
        self.optimiser.zero_grad(set_to_none=True)
        real.backward()
        made = self.add_synthetic_gradient(views, labels)
        self.optimiser.step()
        return {
            "loss": real.detach(),
            "accuracy": accuracy(logits, batch.labels),
            "synthetic_loss": made,
            **self.observed(),
        }

    def observed(self) -> Mapping[str, Tensor]:
        """What else to log of a step."""
        return {}

    def add_synthetic_gradient(self, views: Views, labels: Tensor) -> Tensor:
        """Add λ ∇_θ ℓ_p to the gradients that are there; returns ℓ_p, detached."""
        with unrecorded(self.model):
            made = self.synthetic_loss(self.parameters(), views, labels)
        (self.synthetic.strength * made).backward()
        return made.detach()

    def parameters(self) -> dict[str, Tensor]:
        """θ by name."""
        return dict(self.model.named_parameters())

    def logits_with(self, params: Params, images: Tensor) -> Tensor:
        """Logits (B, C) under given parameters."""
        found: Tensor = functional_call(self.model, dict(params), (images,))
        return found


class GDA(Generative):
    """Generated images are data like any other.

    ℓ_p = cross-entropy of f(x_p) and y_p                              (mgr Eq. 4)

    Source: "generative data augmentation" of mgr Sec. 2.2.
    """

    needs_labels = True

    def synthetic_loss(self, params: Params, views: Views, labels: Tensor) -> Tensor:
        """Eq. 4 of a batch."""
        return losses.cross_entropy(self.logits_with(params, views["plain"]), labels)


class GDAMultiHead(Generative):
    """Generated images train the features through a head of their own.

    ℓ_p = cross-entropy of h_p(g(x_p)) and y_p

    Source: GDA+MH of mgr Sec. 4.1. Like the model's head h_p is linear; it is optimised
    by the same SGD.
    """

    needs_labels = True

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        generator: Generator,
        synthetic: SyntheticSettings = SYNTHETIC,
        **common: Any,
    ) -> None:
        super().__init__(
            model, splits, generator=generator, synthetic=synthetic, **common
        )
        device = splits.train.labels.device
        head = nn.Linear(model.feature_dim, splits.num_classes)
        self.second_head = head.to(device)
        self.optimiser.add_param_group({"params": self.second_head.parameters()})

    def synthetic_loss(self, params: Params, views: Views, labels: Tensor) -> Tensor:
        """The loss of the second head."""
        features = features_with(self.model, params, views["plain"])
        return losses.cross_entropy(self.second_head(features), labels)

    def state_dict(self) -> dict[str, Any]:
        """Weights, second head and optimiser."""
        return {**super().state_dict(), "second_head": self.second_head.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        super().load_state_dict(state)
        self.second_head.load_state_dict(state["second_head"])


class Consistent(Generative):
    """A generated image and a strong transformation T of it are compared."""

    def views(self, images: Tensor) -> Views:
        """The images, and T of them."""
        draws = self.strong.draw(images.shape, self.draw)
        changed = self.strong(images, draws)
        normal = self.normalisation.from_unit
        return {"plain": normal(images), "changed": normal(changed)}


class GDASSL(Consistent):
    """Predictions for generated images must not depend on T; labels aren't used.

    ℓ_p = KL(q ‖ p(T(x_p))), see `losses.prediction_consistency`

    Source: GDA+SSL of mgr Sec. 4.1, after UDA (Xie et al. 2020), whose constants for
    CIFAR-10 are the defaults.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        generator: Generator,
        synthetic: SyntheticSettings = SYNTHETIC,
        sharpening: Annotated[float, Gt(0)] = 0.4,
        confidence: Annotated[float, Ge(0), Le(1)] = 0.8,
        **common: Any,
    ) -> None:
        super().__init__(
            model, splits, generator=generator, synthetic=synthetic, **common
        )
        self.sharpening, self.confidence = sharpening, confidence

    def synthetic_loss(self, params: Params, views: Views, labels: Tensor) -> Tensor:
        """UDA's loss of a batch."""
        with torch.no_grad():
            logits = self.logits_with(params, views["plain"])
        return losses.prediction_consistency(
            self.logits_with(params, views["changed"]),
            logits,
            sharpening=self.sharpening,
            confidence=self.confidence,
        )


class PCR(Consistent):
    """Features of generated images must not depend on T; the head never sees them.

    ℓ_p = ‖g(T(x_p)) - g(x_p)‖²                                         (mgr Eq. 5)

    Source: pseudo consistency regularisation, mgr Sec. 3.1.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        generator: Generator,
        synthetic: SyntheticSettings = SYNTHETIC,
        stop_gradient: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(
            model, splits, generator=generator, synthetic=synthetic, **common
        )
        self.stop_gradient = stop_gradient

    def synthetic_loss(self, params: Params, views: Views, labels: Tensor) -> Tensor:
        """Eq. 6 of a batch."""
        # What is held fixed are the weights of g(x_p), not x_p: the step that θ takes
        # still depends on x_p through g(x_p), and the derivative by φ needs that.
        held = {name: value.detach() for name, value in self.parameters().items()}
        changed = features_with(self.model, params, views["changed"])
        plain = features_with(
            self.model, held if self.stop_gradient else params, views["plain"]
        )
        self._features = plain.detach()
        return losses.pseudo_consistency(changed, plain)

    def observed(self) -> Mapping[str, Tensor]:
        """Variance of a feature: 0 if g tells no image from another (errata M8)."""
        return {"feature_variance": self._features.var(0).mean()}
