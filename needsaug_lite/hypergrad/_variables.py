"""The tensors that a derivative is taken by, apart from those that stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from needsaug_lite.errors import UserError


@dataclass(frozen=True)
class Variables:
    """A dictionary of tensors at one point.

    Free tensors are those that require a gradient, or every floating-point tensor if
    none does. The others (frozen weights, buffers, integers) are handed on as they are.

    Attributes:
        tensors: what a closure is given.
        free: names of the free tensors, in order.
        buffers: the caller's tensors that are neither free nor frozen `nn.Parameter`s:
            a closure may write to them, and gets them back as they were.
    """

    tensors: Mapping[str, Tensor]
    free: tuple[str, ...]
    buffers: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], role: str) -> Variables:
        """Check what the caller has given.

        Raises:
            UserError: if it isn't a dictionary of tensors, or nothing in it is free.
        """
        if not isinstance(tensors, Mapping):
            raise UserError(
                f"{role} is a {type(tensors).__name__}; give a dictionary of tensors, "
                "such as dict(model.named_parameters())"
            )
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor):
                raise UserError(
                    f"{role}[{name!r}] is a {type(tensor).__name__}; give a tensor"
                )
            if tensor.is_complex():
                raise UserError(
                    f"{role}[{name!r}] is complex; give its real and imaginary parts "
                    "(torch.view_as_real), and join them in the closure"
                )
        floating = [name for name, t in tensors.items() if t.is_floating_point()]
        asked = [name for name in floating if tensors[name].requires_grad]
        if not floating:
            raise UserError(f"{role} holds no floating-point tensor")
        free = tuple(asked or floating)
        twins: dict[int, str] = {}
        for name in free:
            twin = twins.setdefault(id(tensors[name]), name)
            if twin != name:
                raise UserError(
                    f"{role}[{name!r}] and {role}[{twin!r}] are the same tensor, and "
                    "would be treated as two. Give it once, and tie it in the closure "
                    "(functional_call does)"
                )
        others = (t for name, t in tensors.items() if name not in free)
        buffers = tuple(t for t in others if not isinstance(t, nn.Parameter))
        return cls(tensors, free, buffers).fixed()

    @property
    def values(self) -> list[Tensor]:
        """The free tensors."""
        return [self.tensors[name] for name in self.free]

    def at(self, values: Sequence[Tensor], *, requires_grad: bool = False) -> Variables:
        """The same with other values of the free tensors."""
        moved = dict(self.tensors)
        for name, value in zip(self.free, values, strict=True):
            moved[name] = value.detach().requires_grad_(requires_grad)
        return Variables(moved, self.free, self.buffers)

    def fixed(self) -> Variables:
        """The same values without a gradient, frozen tensors included."""
        detached = {name: tensor.detach() for name, tensor in self.tensors.items()}
        return Variables(detached, self.free, self.buffers)

    def leaves(self) -> Variables:
        """The same values, the free ones as new leaves of a graph."""
        return self.at(self.values, requires_grad=True)

    def shaped(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """A derivative by name, zero for what is not free."""
        found = dict(zip(self.free, values, strict=True))
        return {
            name: found[name] if name in found else tensor.new_zeros(tensor.shape)
            for name, tensor in self.tensors.items()
        }
