"""AutoAugment's published policies, written as parameters of `AugmentationPolicy`."""

from __future__ import annotations

import re
from itertools import product

import torch

from needsaug_lite.augment.operations import OPERATIONS
from needsaug_lite.augment.policies import AugmentationPolicy
from needsaug_lite.errors import UserError

_Entry = tuple[str, float, int | None]
_Line = tuple[str, float, int | None, int]  # and the sign
_SIGNS = tuple(product((1, -1), repeat=2))
_TOP = 9  # the strongest of AutoAugment's ten bins
_BLENDS = ("brightness", "color", "contrast", "sharpness")
# The paper's 150 pixels of 331, in the unit of `operations`: 0.45 of the side.
_SHIFT = 150 / 331 / 0.45


def published_policy(name: str, channels: int) -> AugmentationPolicy:
    """A policy of AutoAugment, for `sample`: one operation a stage, no gradient.

    An operation is drawn by its weight, 1 or 0; p and m are those of the table. The
    table gives a bin k of 0..9, and m (see `operations`) follows from it:

        shear, rotate                  m = k/9, and a sign that is drawn
        translate                      m = min(1, (150/331)/0.45 · k/9), and a sign
        brightness, color, contrast,   m = 1/2 ± k/18: factor 0.1 + 1.8 m = 1 ± k/10
            sharpness
        posterize                      m = 1 - k/9: round(8 - 4 k/9) bits
        solarize                       m = (t - 1/2)/256, t = ⌈255 (9 - k)/9⌉: inverts
                                       the bytes of at least t

    The sign of the four blends is no draw of `AugmentationPolicy`; each of the 25
    sub-policies therefore stands there four times, once for every pair of signs.

    What differs from torchvision's `AutoAugment`: warps are bilinear, not nearest; a
    shear of +m is that of -m there, about the centre of the first pixel and not its
    corner; a translation is not cut to whole pixels and at bin 9 is 0.45 of the side
    instead of 0.453; nothing is rounded to bytes between the two stages. Operations
    that need colour keep grey images.

    Args:
        name: "cifar10", "svhn" or "imagenet".
        channels: of the images.

    Returns:
        One cluster, 100 sub-policies, two stages, the operations of the table.

    Raises:
        UserError: if there is no policy of this name.

    Source: AutoAugment (Cubuk et al. 2019) Table 7 for cifar10; bins, ranges and
    the ± of the blends as in torchvision.
    """
    rows = [
        [(_named(operation), p, level, sign) for (operation, p, level), sign in pair]
        for stages in _table(name)
        for pair in (zip(stages, signs, strict=True) for signs in _SIGNS)
    ]
    used = {operation for row in rows for operation, *_ in row}
    names = [
        key
        for key, operation in OPERATIONS.items()
        if key in used and (channels == 3 or not operation.needs_colour)
    ]
    policy = AugmentationPolicy(
        1, channels, sub_policies=len(rows), operations=names
    ).requires_grad_(False)
    _write(rows, policy)
    return policy


def _write(rows: list[list[_Line]], policy: AugmentationPolicy) -> None:
    """Set the parameters; what the policy has no operation for is never applied."""
    names = policy.operation_names
    weights = torch.zeros(policy.operation_logits.shape, dtype=torch.float64)
    magnitudes, probabilities = torch.full_like(weights, 0.5), weights.clone()
    for s, row in enumerate(rows):
        for stage, (operation, p, level, sign) in enumerate(row):
            fits = operation in names
            here = (0, s, stage, names.index(operation) if fits else 0)
            weights[here] = 1
            probabilities[here] = p if fits else 0
            magnitudes[here] = _magnitude(operation, level, sign)
    policy.operation_logits.copy_(weights.log())
    policy.magnitude_logits.copy_(magnitudes.logit())
    policy.probability_logits.copy_(probabilities.logit())


def _table(name: str) -> list[tuple[_Entry, _Entry]]:
    """Sub-policies of two (operation, probability, bin), as torchvision has them."""
    from needsaug_lite import _torchvision  # noqa: F401

    from torchvision.transforms import AutoAugment, AutoAugmentPolicy  # isort: skip

    known = [policy.value for policy in AutoAugmentPolicy]
    if name not in known:
        raise UserError(
            f"there is no published policy {name!r}; choose one of {', '.join(known)}"
        )
    table: list[tuple[_Entry, _Entry]] = AutoAugment(AutoAugmentPolicy(name)).policies
    return table


def _named(operation: str) -> str:
    """Our name of torchvision's operation: "ShearX" is "shear_x"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", operation).lower()


def _magnitude(operation: str, level: int | None, sign: int) -> float:
    """From a bin of torchvision's to m in [0, 1]; operations without m get 1/2."""
    if level is None:
        return 0.5
    share = level / _TOP
    if operation in _BLENDS:
        return (1 + sign * share) / 2
    if operation == "posterize":
        return 1 - share
    if operation == "solarize":
        # Half a byte below the threshold, where rounding can't move a pixel across.
        threshold = -(-255 * (_TOP - level) // _TOP)
        return max(0.0, (threshold - 0.5) / 256)
    if operation.startswith("translate"):
        return min(1.0, _SHIFT * share)
    return share
