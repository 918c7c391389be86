"""Networks that make features: convex weights, features outright, and their judge."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from needsaug_lite.data.splits import on_device

# Of what the papers don't state; GAMO's published code uses the slope.
HIDDEN, NOISE, SLOPE = 256, 100, 0.1


def three_layers(inputs: int, outputs: int, hidden: int = HIDDEN) -> nn.Sequential:
    """Three fully connected layers with leaky rectifiers between them."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.LeakyReLU(SLOPE),
        nn.Linear(hidden, hidden),
        nn.LeakyReLU(SLOPE),
        nn.Linear(hidden, outputs),
    )


def mix(weights: Tensor, features: Tensor) -> Tensor:
    """Convex combinations, one for each row.

    f̃ = Σ_i w_i f_i                                               (facog Sec. 3.3)

    Args:
        weights: shape (B, S).
        features: shape (B, S, D).

    Returns:
        Shape (B, D).
    """
    return torch.einsum("bs,bsd->bd", weights, features)


class Mixer(nn.Module, ABC):
    """A source of weights for S features: at least 0, each row adds up to 1."""

    @abstractmethod
    def noise(self, count: int, draw: torch.Generator) -> Tensor:
        """What is random in `count` rows, from a CPU generator."""

    @abstractmethod
    def forward(self, noise: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        """Weights (B, S) for labels (B,) and features (B, S, D)."""


class GaussianNoise(nn.Module):
    """A network that is fed with standard normal numbers."""

    def __init__(self, noise_dim: int = NOISE) -> None:
        super().__init__()
        self.noise_dim = noise_dim

    def noise(self, count: int, draw: torch.Generator) -> Tensor:
        """Standard normal n, shape (count, noise_dim), from a CPU generator."""
        found = torch.randn(count, self.noise_dim, generator=draw)
        return on_device(found, next(self.parameters()).device)


class ConvexGenerator(GaussianNoise, Mixer):
    """Weights from noise and label alone.

    w = softmax( MLP([n, e_c]) )                                   (facog Sec. 3.3)

    It doesn't see what it mixes (errata F4).

    Args:
        num_classes: C.
        slots: S, features that are mixed.
        noise_dim: length of n.
        hidden: width; the paper gives three layers and no width.
    """

    def __init__(
        self, num_classes: int, slots: int, noise_dim: int = NOISE, hidden: int = HIDDEN
    ) -> None:
        super().__init__(noise_dim)
        self.num_classes = num_classes
        self.layers = three_layers(noise_dim + num_classes, slots, hidden)

    def forward(self, noise: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        """Weights (B, S) from n (B, noise_dim) and labels (B,)."""
        weights: Tensor = self.layers(_with_class(noise, labels, self.num_classes))
        return weights.softmax(1)


class SeeingGenerator(GaussianNoise, Mixer):
    """Weights from noise, label and the very features that are mixed.

    w = softmax_i( MLP([n, e_c, f_i]) )

    The same network scores every slot, so that the order of the slots doesn't matter.

    Args:
        num_classes: C.
        feature_dim: D.
        noise_dim: length of n.
        hidden: width.

    Source: our extension; errata F4 of facog says what it is for.
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        noise_dim: int = NOISE,
        hidden: int = HIDDEN,
    ) -> None:
        super().__init__(noise_dim)
        self.num_classes = num_classes
        inputs = noise_dim + num_classes + feature_dim
        self.layers = three_layers(inputs, 1, hidden)

    def forward(self, noise: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        """Weights (B, S) from n (B, noise_dim), labels (B,), features (B, S, D)."""
        given = _with_class(noise, labels, self.num_classes)
        slots = given[:, None].expand(-1, features.shape[1], -1)
        scores: Tensor = self.layers(torch.cat([slots, features], 2))
        return scores.squeeze(2).softmax(1)


class InstanceGenerator(GaussianNoise):
    """Weights over all training images of the class, each with a place of its own.

    w = softmax over the rows of class c of MLP([n, e_c])

    Args:
        counts: images of each class, shape (C,); row r belongs to class 0 for
            r < n_0, then to class 1, and so on.
        noise_dim: length of n.
        hidden: width.

    Source: the convex generator of GAMO (Mullick et al. 2019), with one network for
    all classes.
    """

    owner: Tensor

    def __init__(
        self, counts: Tensor, noise_dim: int = NOISE, hidden: int = HIDDEN
    ) -> None:
        super().__init__(noise_dim)
        self.num_classes = len(counts)
        owner = torch.arange(len(counts)).repeat_interleave(counts.cpu())
        self.register_buffer("owner", owner)
        self.layers = three_layers(noise_dim + len(counts), len(owner), hidden)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Weights (B, N) from n (B, noise_dim) and labels (B,)."""
        scores: Tensor = self.layers(_with_class(noise, labels, self.num_classes))
        foreign = self.owner != labels[:, None]
        return scores.masked_fill(foreign, -torch.inf).softmax(1)


class DirichletWeights(Mixer):
    """Weights spread evenly over all mixtures; nothing is learned.

    w ~ Dirichlet(1, ..., 1) = x / Σ_i x_i,  x_i ~ Exponential(1);  E‖w‖² = 2 / (S + 1)

    Args:
        slots: S.
    """

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = slots

    def noise(self, count: int, draw: torch.Generator) -> Tensor:
        """Standard exponential numbers, shape (count, S), from a CPU generator."""
        return torch.empty(count, self.slots).exponential_(generator=draw)

    def forward(self, noise: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        """Weights (B, S)."""
        given = on_device(noise, features.device)
        return given / given.sum(1, keepdim=True)


class CopyWeights(Mixer):
    """All weight on the first slot: real features again, which is oversampling.

    Args:
        slots: S.
    """

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = slots

    def noise(self, count: int, draw: torch.Generator) -> Tensor:
        """Nothing is random here but the slots themselves; shape (count, 0)."""
        return torch.empty(count, 0)

    def forward(self, noise: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        """Weights (B, S): 1, 0, ..., 0."""
        return one_hot(torch.zeros_like(labels), self.slots).to(features.dtype)


class FeatureGenerator(GaussianNoise):
    """Features outright, from noise and label: a conditional GAN's generator.

    Args:
        num_classes: C.
        feature_dim: D.
        noise_dim: length of n.
        hidden: width.
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        noise_dim: int = NOISE,
        hidden: int = HIDDEN,
    ) -> None:
        super().__init__(noise_dim)
        self.num_classes = num_classes
        self.layers = three_layers(noise_dim + num_classes, feature_dim, hidden)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Features (B, D) from n (B, noise_dim) and labels (B,)."""
        features: Tensor = self.layers(_with_class(noise, labels, self.num_classes))
        return features


class ConditionalDiscriminator(nn.Module):
    """How real a feature looks for its class, a number without bounds.

    Args:
        num_classes: C.
        feature_dim: D.
        hidden: width; the paper gives three layers and no width.

    Source: facog Sec. 3.3; the label as a second input is needed because the two
    distributions that it compares are those of one class (errata F5).
    """

    def __init__(
        self, num_classes: int, feature_dim: int, hidden: int = HIDDEN
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.layers = three_layers(feature_dim + num_classes, 1, hidden)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Scores (B,) of features (B, D) with labels (B,)."""
        scores: Tensor = self.layers(_with_class(features, labels, self.num_classes))
        return scores.squeeze(1)


def _with_class(numbers: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The numbers of each row followed by its label as a unit vector."""
    return torch.cat([numbers, one_hot(labels, num_classes).to(numbers.dtype)], 1)
