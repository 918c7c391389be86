"""What stands beside each table of the papers, as `paper_map.yaml` declares it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, field_validator

from needsaug_lite.experiments import registry
from needsaug_lite.experiments.ingredients import STRICT
from needsaug_lite.experiments.spec import Spec

ANY = "any"
DATA_LABELS = {
    "aircraft": "Aircraft",
    "birds": "Birds",
    "cars": "Cars",
    "celeba": "CelebA",
    "cifar10": "CIFAR-10",
    "cifar10_lt": "CIFAR-10-LT",
    "cifar10_noisy": "noisy CIFAR-10",
    "cifar100": "CIFAR-100",
    "cifar100_lt": "CIFAR-100-LT",
    "cifar100_noisy": "noisy CIFAR-100",
    "civilcomments": "CivilComments",
    "cmnist": "CMNIST",
    "dtd": "DTD",
    "fashion_mnist_lt": "Fashion-MNIST-LT",
    "flowers": "Flowers",
    "imagenet": "ImageNet",
    "imagenet_glt": "ImageNet-GLT",
    "imagenet_lt": "ImageNet-LT",
    "inat2018": "iNaturalist 2018",
    "mnist_lt": "MNIST-LT",
    "pets": "Pets",
    "waterbirds": "Waterbirds",
}


def _flat(value: Any) -> Any:
    """Lists of names may hold the lists that other tables have."""
    if not isinstance(value, list):
        return value
    return [name for one in value for name in (one if isinstance(one, list) else [one])]


Names = Annotated[tuple[str, ...], BeforeValidator(_flat)]


class Counterpart(BaseModel):
    """A method of this library, with the settings that a paper's line stands for.

    With several methods, the first is the paper's, the others come nearest to it.
    """

    model_config = STRICT

    method: Annotated[
        tuple[str, ...], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)
    ]
    hyperparameters: dict[str, Any] = {}

    @field_validator("method")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            registry.entry(name)
        return names

    def fits(self, spec: Spec) -> bool:
        """Whether a run is of this method with these settings."""
        return spec.method in self.method and _holds(
            spec.hyperparameters, self.hyperparameters
        )

    def unlike(self, spec: Spec) -> int:
        """How many settings of a run are neither asked for here nor the default."""
        usual = registry.hyperparameters(spec.method)().model_dump(mode="json")
        return _count_unlike(spec.hyperparameters, usual, self.hyperparameters)


def _holds(values: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    for name, value in wanted.items():
        given = values.get(name)
        if isinstance(value, Mapping):
            if not isinstance(given, Mapping) or not _holds(given, value):
                return False
        elif given != value:
            return False
    return True


def _count_unlike(
    values: Mapping[str, Any], usual: Mapping[str, Any], asked: Mapping[str, Any]
) -> int:
    count = 0
    for name, value in values.items():
        if isinstance(value, Mapping):
            inner = [part.get(name) or {} for part in (usual, asked)]
            count += _count_unlike(value, *inner)
        elif name not in asked and value != usual.get(name):
            count += 1
    return count


def _meaning(value: Any) -> Any:
    """A method by its name; any other text is the reason why there is none."""
    if isinstance(value, str) and " " not in value:
        return {"method": value}
    return value


Meaning = Annotated[Counterpart | str | None, BeforeValidator(_meaning)]


class Table(BaseModel):
    """A table of a paper; the fields are explained at the top of `paper_map.yaml`."""

    model_config = STRICT

    title: str
    reading: str
    see: str
    full: tuple[str, ...] = ()
    nearest: dict[str, Names] = {}
    at: str = ""
    names: dict[str, Meaning] = {}
    not_comparable: dict[str, str] = {}
    out_of_reach: dict[str, str] = {}

    def nearest_to(self, dataset: str) -> tuple[str, ...]:
        """Experiments whose data come nearest to a data set, nearest first."""
        return self.nearest.get(dataset, self.nearest.get(ANY, ()))

    def reason(self, kind: str, method: str, setting: Mapping[str, str]) -> str:
        """Why a number is out of reach or not comparable; "" if nothing is declared.

        Args:
            kind: "out_of_reach" or "not_comparable".
            method, setting: of the number.
        """
        reasons: dict[str, str] = getattr(self, kind)
        parts = [f"{name}={value}" for name, value in setting.items()]
        found = [reasons[key] for key in (method, *parts, ANY) if key in reasons]
        return found[0] if found else ""


class Paper(BaseModel):
    """The tables of a paper, and how they call the methods."""

    model_config = STRICT

    names: dict[str, Meaning]
    tables: dict[str, Table]

    def meaning(self, table: str, method: str) -> Counterpart | str | None:
        """What a table's name of a method is here, or a reason, or None.

        Raises:
            KeyError: if nobody has declared the name.
        """
        own = self.tables[table].names
        return own[method] if method in own else self.names[method]


class PaperMap(BaseModel):
    """Everything that is declared."""

    model_config = STRICT

    data: dict[str, str]
    papers: dict[str, Paper]

    def tables_with(self, experiment: str) -> set[tuple[str, str]]:
        """Paper and table wherever an experiment has the paper's own settings."""
        return {
            (name, table)
            for name, paper in self.papers.items()
            for table, entry in paper.tables.items()
            if experiment in entry.full
        }


@cache
def paper_map() -> PaperMap:
    """The declarations, read once and checked.

    Raises:
        UserError: if a method that is named isn't here.
    """
    source = files("needsaug_lite.experiments").joinpath("paper_map.yaml")
    return PaperMap.model_validate(yaml.safe_load(source.read_text(encoding="utf-8")))
