"""What a run is: every value that its result depends on, checked beforehand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from needsaug_lite import data
from needsaug_lite.augment import StandardAugmentation
from needsaug_lite.data import Splits
from needsaug_lite.data.groups import WATERBIRDS
from needsaug_lite.errors import UserError
from needsaug_lite.experiments import registry
from needsaug_lite.experiments.ingredients import (
    STRICT,
    DataSpec,
    FeatureSpec,
    GeneratorSpec,
    ModelSpec,
    Seed,
)
from needsaug_lite.experiments.supernets import with_supernet
from needsaug_lite.training import Optimisation

Profile = Literal["smoke", "lite", "reduced", "full"]


class Spec(BaseModel):
    """One run: method, data, network, optimisation, length, seed.

    `run_id` is a hash of everything that differs from the defaults (but `deviations`,
    which is a remark) and of the version of the method's code; it names the run's
    row. A new option with a default leaves old rows valid, and because a row holds
    every value, a changed default shows as a hash that doesn't fit.

    With `learn_from` "train+meta" the meta images join the training images of a method
    that has no other use for them, so that it has seen what its rivals see.
    """

    model_config = STRICT

    experiment: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")] = "scratch"
    profile: Profile = "lite"
    method: str = "cross_entropy"
    hyperparameters: dict[str, Any] = {}
    data: DataSpec = DataSpec()
    model: ModelSpec = ModelSpec()
    features: FeatureSpec | None = None
    generator: GeneratorSpec | None = None
    optimisation: Optimisation = Optimisation()
    augment: StandardAugmentation = StandardAugmentation()
    epochs: PositiveInt = 20
    seed: Seed = 0
    evaluate_on: Literal["test", "val"] = "test"
    learn_from: Literal["train", "train+meta"] = "train"
    deviations: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        registry.entry(self.method)
        checked = registry.hyperparameters(self.method)(**self.hyperparameters)
        # All of them are written out, so that a row tells what it ran with.
        object.__setattr__(self, "hyperparameters", checked.model_dump(mode="json"))
        self.optimisation.check()
        if self.profile == "full" and self.deviations:
            raise ValueError(
                "a full run has no deviations from the paper; call it reduced"
            )
        if self.profile == "reduced" and not self.deviations:
            raise ValueError("a reduced run must list its deviations from the paper")
        published = self.data.name in WATERBIRDS
        brings_val = self.data.val_per_class > 0 or self.data.colour or published
        if self.evaluate_on == "val" and not brings_val:
            raise ValueError("to evaluate on val, hold out data.val_per_class images")
        if self.learn_from == "train+meta" and self.data.meta_per_class == 0:
            raise ValueError("to learn from train+meta, set data.meta_per_class")
        self._check_features()
        model = with_supernet(self.model, self.method)
        object.__setattr__(self, "model", model)
        self._check_generator()
        return self

    def _check_generator(self) -> None:
        method = registry.entry(self.method).load()
        whole = getattr(method, "needs_adversary", False)
        needed = whole or getattr(method, "needs_generator", False)
        if needed and self.features is not None:
            raise ValueError(
                f"{self.method} trains on generated images: leave out features"
            )
        if needed and self.generator is None:
            object.__setattr__(self, "generator", self._usual_generator(whole))
        if self.generator is None:
            return
        if not needed:
            raise ValueError(
                f"{self.method} uses no generated images: leave out generator"
            )
        kinds = registry.adversarial_kinds()
        if whole and self.generator.kind not in kinds:
            raise ValueError(
                f"{self.method} trains a generator against a discriminator, and "
                f"{self.generator.kind} has none: set generator.kind to one of "
                f"{', '.join(kinds)}"
            )
        kinds = getattr(method, "discriminator_kinds", kinds)
        if whole and self.generator.kind not in kinds:
            raise ValueError(
                f"{self.method} makes a discriminator of its own, one score for an "
                f"image and its label, and that of {self.generator.kind} is another: "
                f"set generator.kind to one of {', '.join(kinds)}"
            )

    def _usual_generator(self, whole: bool) -> GeneratorSpec:
        """The default; where networks may share a head, as wide as the classifier.

        A supernet shares its architecture and no head.
        """
        length = {
            "convnet": 2 * self.model.width,
            "resnet32": self.model.feature_dim,
        }.get(self.model.backbone)
        usual = GeneratorSpec()
        if not whole or length in (None, usual.hyperparameters["width"]):
            return usual
        return GeneratorSpec(hyperparameters={"width": length})

    def _check_features(self) -> None:
        if self.features is None:
            return
        if getattr(registry.entry(self.method).load(), "searches", False):
            raise ValueError(
                f"{self.method} searches a network for images: leave out features"
            )
        if self.model.backbone != "linear":
            raise ValueError(
                "features are vectors and no images: set model.backbone to linear "
                f"(given: {self.model.backbone}), or leave features out"
            )
        if self.augment != StandardAugmentation():
            raise ValueError(
                "features are made of images as they are, once: leave out augment, "
                "or features"
            )

    @property
    def data_seed(self) -> int:
        """What draws the parts of the data."""
        return self.seed if self.data.seed is None else self.data.seed

    def load_data(self, root: Path | None = None) -> Splits:
        """The data of the run; see `data.load`."""
        options = self.data.model_dump(exclude={"name", "seed"})
        return data.load(self.data.name, root, seed=self.data_seed, **options)

    @property
    def method_version(self) -> int:
        """Version of the method's code; a method raises it when its results change."""
        return int(registry.entry(self.method).load().version)

    @property
    def run_id(self) -> str:
        """Sixteen hexadecimal digits that name this run and its row."""
        default = Spec(method=self.method).model_dump(mode="json")
        values = self.model_dump(mode="json", exclude={"deviations"})
        named = {
            "method": self.method,
            "method_version": self.method_version,
            **_differences(values, default),
        }
        if self.features is not None:
            usual = FeatureSpec().model_dump(mode="json")
            named["features"] = _differences(values["features"], usual)
            named["features_version"] = FeatureSpec.version
        if self.generator is not None:
            usual = GeneratorSpec(kind=self.generator.kind).model_dump(mode="json")
            chosen = _differences(values["generator"], usual)
            version = self.generator.version
            named["generator"] = {**chosen, "kind": self.generator.kind}
            named["generator_version"] = version
        text = json.dumps(named, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @classmethod
    def checked(cls, values: dict[str, Any], source: str = "the settings") -> Spec:
        """A spec from plain values.

        Raises:
            UserError: naming every value that is unknown or impossible.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [_in_words(dict(problem)) for problem in error.errors()]
            raise UserError(
                f"{source} can't be run:\n  " + "\n  ".join(lines)
            ) from None

    @classmethod
    def from_file(cls, file: Path) -> Spec:
        """A spec from a JSON or YAML file."""
        return cls.checked(read_settings(file), str(file))


def read_settings(file: Path) -> dict[str, Any]:
    """Names with values from a JSON or YAML file, not yet checked.

    Raises:
        UserError: if the file can't be read or holds something else.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file} can't be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} holds no settings (names with values)")
    return values


def _differences(values: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """What of `values` isn't in `default`, through nested settings."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        usual = default.get(name)
        if isinstance(value, dict) and isinstance(usual, dict):
            inner = _differences(value, usual)
            if inner:
                found[name] = inner
        elif value != usual:
            found[name] = value
    return found


def _in_words(problem: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where}: unknown name"
    if problem["type"] in ("dataclass_type", "model_type"):
        return f"{where}: give names with values (given: {problem['input']!r})"
    message = str(problem["msg"]).removeprefix("Value error, ")
    given = f" (given: {problem['input']!r})" if where else ""
    return f"{where}: {message}{given}" if where else message
