"""Which parameters of a loss are searched for, and how few numbers describe them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict, get_args

import torch
from torch import Tensor

from needsaug_lite.errors import UserError

Design = Literal["none", "tau", "l", "delta", "delta_l"]
Initial = Literal["plain", "balanced_ce", "la"]

# σ(1) = 0.73, where the released code of AutoBalance starts.
RAW_START = 1.0


class LossParameters(TypedDict):
    """Keyword arguments of `losses.parametric_cross_entropy`."""

    class_weight: Tensor | None
    additive: Tensor | None
    multiplicative: Tensor | None


class LossDesign:
    """A search space for w, l and Δ of the parametric cross-entropy.

    l = D l',   Δ = σ(D Δ'),   or   l = τ log π   with one number τ

    D is the dictionary of the classes: `cluster_dictionary` while searching, in which
    classes of similar frequency share a number, `interpolating_dictionary` afterwards.
    With attributes, every cell (class, attribute) has numbers of its own.

    Designs: "none" searches nothing, "tau" the number τ, "l" the shifts, "delta" the
    factors, "delta_l" both. What isn't searched stays as it starts. Starts:

        plain        w = 1, l = 0
        balanced_ce  w = 1/(C π), l = 0; for cells w = 1/(C A π)
        la           w = 1, l = τ log π; for cells, which is Group-LA,
                     w = 1/(A π̄_g), l = τ log(π_yg / π̄_g)

    Attributes:
        hparams: what is searched, by name, float32 leaves that require a gradient:
            "tau" (), "additive" l' (K', A), "multiplicative" Δ' (K', A).

    Source: autobalance Sec. 2.2 and Table 1; starts by its errata A6 and A13.
    """

    def __init__(
        self,
        counts: Tensor,
        *,
        design: Design = "delta_l",
        initial: Initial = "la",
        tau: float = 1.0,
        cluster_size: int = 1,
    ) -> None:
        """Start the search.

        Args:
            counts: training images of every class and attribute, shape (C, A), each at
                least 1.
            design: what is searched.
            initial: where it starts.
            tau: strength of the logit adjustment that "la" and "tau" start from.
            cluster_size: classes that share a number.

        Raises:
            UserError: for an empty cell, clusters of cells, or an unknown setting.
        """
        for given, allowed in ((design, Design), (initial, Initial)):
            if given not in get_args(allowed):
                raise UserError(f"{given!r} is none of {', '.join(get_args(allowed))}")
        if cluster_size < 1:
            raise UserError(f"cluster_size is {cluster_size}; give at least 1 class")
        if int(counts.min()) < 1:
            raise UserError(
                "a loss with parameters for every class (and attribute) needs training "
                f"images of each, but the counts are {counts.tolist()}"
            )
        if cluster_size > 1 and counts.shape[1] > 1:
            raise UserError(
                f"cluster_size={cluster_size} clusters classes; with attributes every "
                "cell has its own numbers, use cluster_size=1"
            )
        self.shares = counts / counts.sum()
        self.searching = cluster_dictionary(counts.sum(1), cluster_size)
        self.interpolating = interpolating_dictionary(counts.sum(1), cluster_size)
        of_attribute = self.shares.sum(0, keepdim=True)
        self.log_prior = (self.shares / of_attribute).log()
        self.class_weight = None
        if initial == "balanced_ce":
            self.class_weight = 1 / (counts.numel() * self.shares)
        elif initial == "la" and counts.shape[1] > 1:
            equal = (of_attribute * counts.shape[1]).expand_as(self.shares)
            self.class_weight = 1 / equal
        start = tau * self.log_prior if initial == "la" else None
        self.additive = start
        self.hparams: dict[str, Tensor] = {}
        if design == "tau":
            self.hparams["tau"] = torch.tensor(float(tau) * (initial == "la"))
        if design in ("l", "delta_l"):
            middle = self._of_middle_classes(counts.sum(1), cluster_size)
            zero = torch.zeros(self.searching.shape[1], counts.shape[1])
            self.hparams["additive"] = zero if start is None else start.cpu()[middle]
        if design in ("delta", "delta_l"):
            clusters = (self.searching.shape[1], counts.shape[1])
            self.hparams["multiplicative"] = torch.full(clusters, RAW_START)
        for name, value in self.hparams.items():
            self.hparams[name] = value.clone().to(counts.device).requires_grad_()

    @staticmethod
    def _of_middle_classes(sizes: Tensor, cluster_size: int) -> Tensor:
        """The class in the middle of every cluster, shape (K',)."""
        order = sizes.cpu().argsort(descending=True, stable=True)
        middles = [part[len(part) // 2] for part in order.split(cluster_size)]
        return torch.stack(middles)

    def parameters(
        self, hparams: Mapping[str, Tensor] | None = None, *, interpolate: bool = False
    ) -> LossParameters:
        """w, l and Δ of every class, as the loss takes them.

        Args:
            hparams: values to use; None takes those of the search.
            interpolate: connect the mid-points of the clusters by lines, as the
                retraining does, instead of giving a cluster one value.

        Returns:
            Tensors of shape (C,), or (C, A) with attributes, or None.
        """
        values = self.hparams if hparams is None else hparams
        dictionary = self.interpolating if interpolate else self.searching
        additive, multiplicative = self.additive, None
        if "tau" in values:
            additive = values["tau"] * self.log_prior
        if "additive" in values:
            additive = dictionary @ values["additive"]
        if "multiplicative" in values:
            multiplicative = (dictionary @ values["multiplicative"]).sigmoid()
        return LossParameters(
            class_weight=self._shaped(self.class_weight),
            additive=self._shaped(additive),
            multiplicative=self._shaped(multiplicative),
        )

    @torch.no_grad()
    def detached(self, *, interpolate: bool = False) -> LossParameters:
        """What `parameters` gives, without a graph: for training with α fixed."""
        return self.parameters(interpolate=interpolate)

    def summary(self) -> dict[str, float]:
        """The l and Δ as they are, averaged over at most five clusters of classes.

        The l are centred, because a loss doesn't change if all of them move together.
        With attributes: of every cell. Names: additive_1 is the mean of the largest
        classes (of the first cell), and so on.
        """
        values = self.detached()
        additive, found = values["additive"], {}
        if additive is not None:
            found["additive"] = additive - additive.mean(0)
        if values["multiplicative"] is not None:
            found["multiplicative"] = values["multiplicative"]
        logged = {}
        for name, table in found.items():
            if table.dim() == 1:
                members = cluster_dictionary(
                    self.shares.sum(1), -(-len(self.shares) // 5)
                )
                table = (table @ members) / members.sum(0)
            for place, value in enumerate(table.flatten().tolist(), 1):
                logged[f"{name}_{place}"] = round(value, 5)
        return logged

    def _shaped(self, table: Tensor | None) -> Tensor | None:
        return table if table is None or table.shape[1] > 1 else table.squeeze(1)


def cluster_dictionary(sizes: Tensor, cluster_size: int) -> Tensor:
    """D with a one where a class (row) belongs to a cluster (column).

    Classes are sorted by size; the largest `cluster_size` of them are cluster 0.

    Args:
        sizes: training images of each class, shape (C,).
        cluster_size: classes in a cluster; the last one may have fewer.

    Returns:
        Shape (C, K') with K' = ceil(C / cluster_size), float32.

    Source: autobalance Sec. 2.2 and Fig. 3a.
    """
    rank = _rank(sizes)
    clusters = -(-len(sizes) // cluster_size)
    return torch.eye(clusters, device=sizes.device)[rank // cluster_size]


def interpolating_dictionary(sizes: Tensor, cluster_size: int) -> Tensor:
    """D whose rows interpolate linearly between the mid-points of the clusters.

    A class between two mid-points gets the two values in proportion to its place in the
    order of sizes; before the first and after the last mid-point the value is constant.

    Args:
        sizes: training images of each class, shape (C,).
        cluster_size: classes in a cluster.

    Returns:
        Shape (C, K'), rows sum to 1; for `cluster_size` 1 the cluster dictionary.

    Source: the released code of autobalance (ucr-optml/AutoBalance).
    """
    inside = cluster_dictionary(sizes, cluster_size)
    rank = _rank(sizes).to(inside.dtype)
    middles = (rank.unsqueeze(1) * inside).sum(0) / inside.sum(0)
    if len(middles) == 1:
        return inside
    left = torch.searchsorted(middles, rank, right=True) - 1
    left = left.clamp(0, len(middles) - 2)
    gap = middles[left + 1] - middles[left]
    along = ((rank - middles[left]) / gap).clamp(0, 1).unsqueeze(1)
    unit = torch.eye(len(middles), device=sizes.device)
    return (1 - along) * unit[left] + along * unit[left + 1]


def _rank(sizes: Tensor) -> Tensor:
    """Place of each class when sorted by size, the largest first, int64, (C,)."""
    order = sizes.argsort(descending=True, stable=True)
    return order.argsort()
