"""What a run is made of: data, network, features, generator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

from needsaug_lite.data.attributes import ATTRIBUTES
from needsaug_lite.data.groups import check_options
from needsaug_lite.experiments import registry
from needsaug_lite.models.cell_operations import OPERATIONS

STRICT = ConfigDict(extra="forbid", frozen=True)
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class DataSpec(BaseModel):
    """Which data, and which biases are made in them; see `data.load`.

    `seed` draws the parts, the tail and the noise; None: that of the run. Runs of
    several seeds on data of one seed are conditional on these images.
    """

    model_config = STRICT

    name: str = "digits"
    seed: Seed | None = None
    imbalance: Annotated[float, Field(ge=1)] | None = None
    n_max: PositiveInt | None = None
    counts: tuple[PositiveInt, ...] | None = None
    shuffle_classes: bool = False
    val_per_class: NonNegativeInt = 0
    meta_per_class: NonNegativeInt = 0
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    noise_kind: Literal["uniform", "flip", "flip2"] = "uniform"
    colour: bool = False
    attribute_imbalance: Annotated[float, Field(ge=1)] | None = None
    attributes: Annotated[int, Field(ge=2)] = ATTRIBUTES
    group_counts: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] | None = (
        None
    )
    gamo: bool = False
    kept: Annotated[float, Field(gt=0, le=1)] | None = None
    image_size: Annotated[int, Field(ge=8)] | None = None
    channels: Literal[1, 3] | None = None
    skip_broken: bool = False

    @model_validator(mode="after")
    def _possible_together(self) -> Self:
        check_options(self.model_dump())
        return self


class ModelSpec(BaseModel):
    """Which network; see `models.build`.

    What stands below `weights` describes a supernet, the backbone of methods that
    search an architecture, and no other network.
    """

    model_config = STRICT

    backbone: str = "convnet"
    width: PositiveInt = 16
    feature_dim: PositiveInt = 64
    weights: Path | None = None
    cells: PositiveInt = 3
    nodes: PositiveInt = 4
    operations: tuple[str, ...] = tuple(OPERATIONS)
    partial: PositiveInt = 4
    halvings: Literal[0, 1, 2] = 0

    @field_validator("operations")
    @classmethod
    def _a_choice(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in OPERATIONS]
        if unknown:
            raise ValueError(
                f"unknown operation {unknown[0]!r}; use some of {', '.join(OPERATIONS)}"
            )
        if len(set(names)) < len(names):
            raise ValueError("name every operation once")
        if not set(names) - {"none"}:
            raise ValueError("name at least one operation beside none")
        return names


class FeatureSpec(BaseModel):
    """Frozen features in place of images; see `features.frozen_features`."""

    # Of the code that makes the features; it is raised when the features change.
    version: ClassVar[int] = 1
    model_config = STRICT

    width: PositiveInt = 16
    feature_dim: PositiveInt = 512
    epochs: PositiveInt = 4
    batch_size: Annotated[int, Field(ge=2)] = 128
    lr: Annotated[float, Field(gt=0)] = 0.1


class GeneratorSpec(BaseModel):
    """Which generator of images a method is given; see `generators.trained_generator`.

    Attributes:
        kind: a name of `registry.GENERATORS`.
        steps: updates in training, in full hundreds.
        hyperparameters: of its training, by the names of its class.
        seed: of its weights and draws; None: that of the data. Runs of several seeds
            that share a generator are conditional on it.
    """

    model_config = STRICT

    kind: str = "biggan"
    steps: Annotated[int, Field(ge=100, multiple_of=100)] = 2000
    hyperparameters: dict[str, Any] = {}
    seed: Seed | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        fields = registry.hyperparameters(self.kind, "generator")
        checked = fields(**self.hyperparameters)
        object.__setattr__(self, "hyperparameters", checked.model_dump(mode="json"))
        return self

    @property
    def version(self) -> int:
        """Version of the code that trains it."""
        return int(registry.entry(self.kind, "generator").load().version)
