"""What may stand on an edge of a cell: the operations of DARTS, and parts of a cell."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad

from needsaug_lite.errors import UserError

NONE, SKIP = "none", "skip_connect"
OPERATIONS = (
    NONE,
    "max_pool_3x3",
    "avg_pool_3x3",
    SKIP,
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)


def operation(
    name: str, channels: int, stride: int, *, affine: bool, copies: int = 1
) -> nn.Module:
    """The operation of this name, which keeps the channels.

    Several copies with weights of their own see the same maps and answer at once, one
    after the other in the channels. What has no weights (pooling, identity, none)
    gives the same for every copy and is computed for one.

    Args:
        name: one of OPERATIONS.
        channels: C, of the maps and of what one copy answers.
        stride: 1, or 2 to halve the side (a half is rounded up).
        affine: batch norms have gain and offset, and pooling is not followed by one,
            as in an evaluation network; in a search network, the other way round.
        copies: how many.

    Raises:
        UserError: for an unknown name.

    Source: Liu et al. 2019 (DARTS), Sec. 3.1.
    """
    if name == NONE:
        return _Zero(stride)
    if name == SKIP:
        if stride == 1:
            return nn.Identity()
        return FactorisedReduction(channels, channels, affine=affine, copies=copies)
    if name not in OPERATIONS:
        raise UserError(f"unknown operation {name!r}; use {', '.join(OPERATIONS)}")
    if "pool" in name:
        pool: nn.Module = nn.MaxPool2d(3, stride, 1)
        if name.startswith("avg"):
            pool = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        return pool if affine else nn.Sequential(pool, _norm(channels, affine=False))
    size = int(name[-1])
    layers: list[nn.Module] = [nn.ReLU(), _Repeat(copies)]
    if name.startswith("sep"):
        layers += _separable(channels, copies, size, stride, 1, affine=affine)
        layers += [nn.ReLU()]
        layers += _separable(channels, copies, size, 1, 1, affine=affine)
    else:
        layers += _separable(channels, copies, size, stride, 2, affine=affine)
    return nn.Sequential(*layers)


def _norm(channels: int, *, affine: bool) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=affine)


def _separable(
    channels: int, copies: int, size: int, stride: int, dilation: int, *, affine: bool
) -> list[nn.Module]:
    """A convolution of every map by itself, one across maps, batch norm."""
    wide, margin = channels * copies, dilation * (size - 1) // 2
    return [
        nn.Conv2d(wide, wide, size, stride, margin, dilation, groups=wide, bias=False),
        nn.Conv2d(wide, wide, 1, groups=copies, bias=False),
        _norm(wide, affine=affine),
    ]


class _Zero(nn.Module):
    """Zeros, of half the side where stride is 2."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, maps: Tensor) -> Tensor:
        return torch.zeros_like(maps[:, :, :: self.stride, :: self.stride])


class _Repeat(nn.Module):
    """The same maps for every copy."""

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.copies = copies

    def forward(self, maps: Tensor) -> Tensor:
        return maps if self.copies == 1 else maps.repeat(1, self.copies, 1, 1)


class FactorisedReduction(nn.Module):
    """Half the side without a pixel left out: two strided 1 x 1 convolutions.

    One sees the even rows and columns, the other the odd ones; each gives half of the
    channels. Where the side is odd, zeros stand for the row and column beyond it.

    Args:
        before, after: channels; `after` is at least 2.
        affine: of the batch norm.
        copies: see `operation`.

    Raises:
        UserError: if one channel would have to be halved.

    Source: Liu et al. 2019 (DARTS), its code.
    """

    def __init__(
        self, before: int, after: int, *, affine: bool, copies: int = 1
    ) -> None:
        super().__init__()
        if after < 2:
            raise UserError(
                "a skip connection that halves the side needs at least 2 channels, "
                f"and it got {after}; use a larger width or a smaller partial"
            )
        self.copies = copies
        half = after // 2
        wide = copies * half, copies * (after - half)
        self.even = nn.Conv2d(before, wide[0], 1, 2, bias=False)
        self.odd = nn.Conv2d(before, wide[1], 1, 2, bias=False)
        self.norm = _norm(copies * after, affine=affine)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, copies * after, ⌈H/2⌉, ⌈W/2⌉) of maps (B, before, H, W)."""
        maps = maps.relu()
        height, width = maps.shape[2:]
        shifted = pad(maps, (0, width % 2, 0, height % 2))[:, :, 1:, 1:]
        halves = [self.even(maps), self.odd(shifted)]
        if self.copies > 1:
            halves = [half.unflatten(1, (self.copies, -1)) for half in halves]
            joined = torch.cat(halves, 2).flatten(1, 2)
        else:
            joined = torch.cat(halves, 1)
        found: Tensor = self.norm(joined)
        return found


class MixedEdges(nn.Module):
    """All edges that leave one state of a cell, at once.

    f_j(x) = shuffle( Σ_o α_jo o_j(x_1), x_2 ),   x_1 the first C/K channels of x

    Operations without weights are the same on all of these edges and are computed
    once. The shuffle is left to the node, as it may follow the sum over edges.

    Args:
        operations: their names, in the order of the columns of `strengths`.
        channels: C.
        stride: of all edges; with 2, x_2 is max-pooled.
        partial: K.
        count: edges that leave.

    Source: Xu et al. 2020 (PC-DARTS), Eq. 1.
    """

    def __init__(
        self,
        operations: tuple[str, ...],
        channels: int,
        stride: int,
        partial: int,
        count: int,
    ) -> None:
        super().__init__()
        self.stride, self.count = stride, count
        self.seen = channels // partial
        self.columns = {name: n for n, name in enumerate(operations)}
        self.operations = nn.ModuleDict(
            {
                name: operation(name, self.seen, stride, affine=False, copies=count)
                for name in operations
                if name != NONE
            }
        )

    def _alike(self, name: str) -> bool:
        return "pool" in name or (name == SKIP and self.stride == 1)

    def forward(
        self, maps: Tensor, strengths: Tensor, edges: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Both parts of β_j f_j.

        Args:
            maps: x, shape (B, C, H, W).
            strengths: β α of these edges, shape (count, |O|).
            edges: β of these edges, shape (count,).

        Returns:
            Sums over operations (B, count, C/K, H', W'), and what passed beside them
            (B, count, C - C/K, H', W'), None where K is 1.
        """
        seen = maps[:, : self.seen]
        total: Tensor | None = None
        for name, layer in self.operations.items():
            found = layer(seen)
            copies = 1 if self._alike(name) else self.count
            found = found.unflatten(1, (copies, self.seen))
            share = strengths[:, self.columns[name], None, None, None]
            total = share * found if total is None else total.addcmul(share, found)
        assert total is not None
        if self.seen == maps.shape[1]:
            return total, None
        beside = maps[:, self.seen :]
        if self.stride == 2:
            beside = max_pool2d(beside, 2, ceil_mode=True)
        return total, edges[:, None, None, None] * beside[:, None]


def shuffled(maps: Tensor, groups: int) -> Tensor:
    """Channels of the groups by turns: 0, C/K, 2C/K, ..., 1, C/K + 1, ..."""
    if groups == 1:
        return maps
    found: Tensor = maps.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
    return found


def preparation(before: int, after: int, *, halve: bool, affine: bool) -> nn.Module:
    """What brings an earlier cell's maps to the channels (and side) of a cell."""
    if halve:
        return FactorisedReduction(before, after, affine=affine)
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(before, after, 1, bias=False), _norm(after, affine=affine)
    )


def stem(channels: int, width: int, halvings: int) -> nn.Sequential:
    """3 x 3 convolutions from an image to `width` channels; see `check_sizes`."""
    layers: list[nn.Module] = []
    for step in range(max(halvings, 1)):
        layers += [nn.ReLU()] if step else []
        stride = 2 if halvings else 1
        layers += [
            nn.Conv2d(channels if not step else width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
        ]
    return nn.Sequential(*layers)


def reductions(cells: int) -> tuple[int, ...]:
    """Which cells halve the side and double the channels: after 1/3 and 2/3."""
    return tuple(sorted({cells // 3, 2 * cells // 3}))


def check_sizes(width: int, cells: int, halvings: int) -> None:
    """UserError unless a network of cells can have these sizes."""
    if min(width, cells) < 1:
        raise UserError(f"width is {width} and cells is {cells}; both are at least 1")
    if halvings not in (0, 1, 2):
        raise UserError(f"halvings is {halvings}; use 0, 1 or 2")


def check_side(maps: Tensor | tuple[int, ...], cells: int, halvings: int) -> None:
    """UserError if an image has no pixel left at the end of a network of cells.

    Args:
        maps: images (..., H, W), or their shape.
        cells, halvings: of the network.
    """
    shape = maps.shape if isinstance(maps, Tensor) else maps
    needed = 2 ** (halvings + len(reductions(cells)))
    if min(shape[-2:]) < needed:
        raise UserError(
            f"images are {shape[-2]} x {shape[-1]} pixels; {cells} cells after "
            f"{halvings} halvings need {needed} x {needed} (use fewer halvings)"
        )
