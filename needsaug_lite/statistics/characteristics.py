"""How a sample fares in training, as fifteen numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, one_hot

#: Names of the characteristics: the ten of Zhou et al. (CLP), in their order, and five
#: of ours; see `training_characteristics`.
CHARACTERISTICS = (
    "loss",
    "margin",
    "gradient_norm",
    "cosine",
    "entropy",
    "class_share",
    "class_loss",
    "class_weight_norm",
    "loss_above_class",
    "margin_above_class",
    "label_logit",
    "label_probability",
    "class_margin",
    "feature_norm",
    "loss_change",
)


class SampleMemory:
    """Loss and margin of every training sample when it was last seen.

    A value stays until its sample is seen again: with batches that go through the
    data once an epoch, what `recall` returns comes from the epoch before.

    Attributes:
        loss, margin: shape (N,); not a number for a sample not yet seen.
    """

    def __init__(self, labels: Tensor, num_classes: int) -> None:
        """Nothing seen yet.

        Args:
            labels: of all training samples, int64, shape (N,).
            num_classes: C.
        """
        self.labels, self.num_classes = labels, num_classes
        self.loss = torch.full(labels.shape, torch.nan, device=labels.device)
        self.margin = self.loss.clone()
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Take the class means of what was seen so far; `recall` uses them."""
        self.class_loss = self._class_mean(self.loss)
        self.class_margin = self._class_mean(self.margin)

    def _class_mean(self, values: Tensor) -> Tensor:
        """Mean over the seen samples of each class, shape (C,); 0 where none is."""
        seen = ~values.isnan()
        sums = torch.zeros(self.num_classes, device=values.device)
        counts = sums.clone()
        sums.index_add_(0, self.labels, values.nan_to_num())
        counts.index_add_(0, self.labels, seen.to(counts.dtype))
        return sums / counts.clamp(min=1)

    @torch.no_grad()
    def remember(self, index: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Store loss and margin of the samples at `index`, shape (B,)."""
        logits = logits.detach().float()
        self.loss[index] = cross_entropy(logits, labels, reduction="none")
        self.margin[index] = margins(logits.softmax(1), labels)

    def state_dict(self) -> dict[str, Any]:
        """The values, and the class means of the epoch at hand."""
        names = ("loss", "margin", "class_loss", "class_margin")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put them back."""
        for name, value in state.items():
            getattr(self, name).copy_(value)


def margins(probability: Tensor, labels: Tensor) -> Tensor:
    """Probability of the label less the largest other one, in [-1, 1], shape (B,).

    Args:
        probability: shape (B, C).
        labels: int64, shape (B,).
    """
    own = probability.gather(1, labels[:, None]).squeeze(1)
    label = one_hot(labels, probability.shape[1]).bool()
    return own - probability.masked_fill(label, -1.0).amax(1)


@torch.no_grad()
def training_characteristics(
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    index: Tensor,
    head_weight: Tensor,
    class_prior: Tensor,
    memory: SampleMemory,
) -> Tensor:
    """Fifteen numbers about each sample, from which its perturbation is chosen.

    meta_iada uses fifteen and names two of them, loss and margin. The first ten here
    are those of Zhou et al. (CLP, the same first author); the last five are ours. In
    the order of `CHARACTERISTICS`, with p the softmax:

        1  loss, -log p_y
        2  margin, p_y - max_{k≠y} p_k
        3  ||onehot - p||, norm of the gradient by the logits
        4  cos(h, w_y)
        5  entropy of p
        6  share of the class
        7  mean loss of the class in the epoch before
        8  ||w_y||
        9  loss less 7
        10 margin less 13
        11 logit of the label
        12 p_y
        13 mean margin of the class in the epoch before
        14 ||h||
        15 loss less the sample's own loss when last seen; 0 if never

    Args:
        features: h, shape (B, D).
        logits: shape (B, C).
        labels: int64, shape (B,).
        index: positions of the samples in the training set, shape (B,).
        head_weight: W, shape (C, D).
        class_prior: shares of the training images, shape (C,).
        memory: what was seen before; it isn't changed.

    Returns:
        Shape (B, 15), float32, without a graph.

    Source: meta_iada Sec. 4.
    """
    logits = logits.float()
    probability = logits.softmax(1)
    own = labels[:, None]
    loss = cross_entropy(logits, labels, reduction="none")
    margin = margins(probability, labels)
    class_loss = memory.class_loss[labels]
    class_margin = memory.class_margin[labels]
    weight = head_weight[labels].float()
    features = features.float()
    label_probability = probability.gather(1, own).squeeze(1)
    before = memory.loss[index]
    found = (
        loss,
        margin,
        (probability - one_hot(labels, logits.shape[1])).norm(dim=1),
        cosine_similarity(features, weight),
        -torch.special.xlogy(probability, probability).sum(1),
        class_prior[labels],
        class_loss,
        weight.norm(dim=1),
        loss - class_loss,
        margin - class_margin,
        logits.gather(1, own).squeeze(1),
        label_probability,
        class_margin,
        features.norm(dim=1),
        (loss - before).nan_to_num(),
    )
    return torch.stack(found, dim=1)


def standardised(characteristics: Tensor) -> Tensor:
    """Zero mean and unit deviation of every column over the batch.

    A column that is the same for all samples becomes zero: it tells nothing about
    which of them to perturb.

    Args:
        characteristics: of B samples, shape (B, K).

    Returns:
        Shape (B, K).
    """
    centred = characteristics - characteristics.mean(0)
    scale = characteristics.abs().amax(0)
    deviation = centred.square().mean(0).sqrt()
    # Below this, a deviation is what rounding leaves of equal numbers.
    constant = deviation <= 1e-6 * scale
    return centred / deviation.masked_fill(constant, torch.inf)
