"""Methods by name, and what each of them can be told."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from needsaug_lite.errors import UserError

_BASELINES = "needsaug_lite.methods.baselines"
_AUTOBALANCE = "needsaug_lite.methods.autobalance"
_FACOG = "needsaug_lite.methods.facog"
_COMBINED = "needsaug_lite.methods.combined"
_SOURCES = f"{_BASELINES}.feature_sources"
_GENERATIVE = f"{_BASELINES}.generative"
_STRATEGIES = "needsaug_lite.methods.sampling_strategies"
_NEEDS = "needsaug_lite.methods.needs_aware"
_SEARCHES = "needsaug_lite.methods.search"
_DARTS = f"{_SEARCHES}.pc_darts"
_SEARCH = f"{_SEARCHES}.four_level_search"
_GENERATION = "needsaug_lite.methods.generation"
# Settings that every method takes and that a spec states elsewhere.
_COMMON = {"optimisation", "augment", "normalisation", "seed", "generator", "gan"}


@dataclass(frozen=True)
class Entry:
    """A method's place in the code and its name in tables.

    Attributes:
        path: module and class, "package.module:Class".
        label: name in tables and figures.
        fixed: hyperparameters that this name settles.
    """

    path: str
    label: str
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Any:
        """The class; its module is imported now."""
        module, name = self.path.split(":")
        return getattr(import_module(module), name)


METHODS: dict[str, Entry] = {
    "cross_entropy": Entry(f"{_BASELINES}.cross_entropy:CrossEntropy", "CE"),
    "cross_entropy_with_meta": Entry(
        f"{_BASELINES}.cross_entropy:CrossEntropyWithMeta", "CE + meta"
    ),
    "cross_entropy_on_meta": Entry(
        f"{_BASELINES}.cross_entropy:CrossEntropyOnMeta", "CE on meta"
    ),
    "resampling": Entry(f"{_BASELINES}.cross_entropy:Resampling", "Resampling"),
    "class_balanced": Entry(f"{_BASELINES}.reweighting:ClassBalanced", "CB-CE"),
    "focal": Entry(f"{_BASELINES}.reweighting:Focal", "Focal"),
    "class_balanced_focal": Entry(
        f"{_BASELINES}.reweighting:Focal", "CB-Focal", {"beta": 0.9999}
    ),
    "deferred_reweighting": Entry(
        f"{_BASELINES}.reweighting:DeferredReweighting", "CE-DRW"
    ),
    "ldam": Entry(f"{_BASELINES}.margins:LDAM", "LDAM", {"deferred": False}),
    "ldam_drw": Entry(f"{_BASELINES}.margins:LDAM", "LDAM-DRW", {"deferred": True}),
    "logit_adjustment": Entry(f"{_BASELINES}.logit_adjustment:LogitAdjustment", "LA"),
    "class_dependent_temperature": Entry(
        f"{_BASELINES}.logit_adjustment:ClassDependentTemperature", "CDT"
    ),
    "vector_scaling": Entry(f"{_BASELINES}.logit_adjustment:VectorScaling", "VS"),
    "isda": Entry(f"{_BASELINES}.implicit_augmentation:ISDA", "ISDA"),
    "meta_covariance": Entry(
        f"{_BASELINES}.implicit_augmentation:MetaCovariance", "MetaSAug-style"
    ),
    "meta_weight_net": Entry(
        f"{_BASELINES}.meta_weight_net:MetaWeightNet", "Meta-Weight-Net"
    ),
    "meta_iada": Entry("needsaug_lite.methods.meta_iada:MetaIADA", "Meta-IADA"),
    "up_weighting": Entry(f"{_BASELINES}.group_robust:UpWeighting", "UW"),
    "group_dro": Entry(f"{_BASELINES}.group_robust:GroupDRO", "GroupDRO"),
    "fair_balanced": Entry(
        f"{_BASELINES}.group_losses:FairLoss", "CE_bal^G", {"goal": "balanced"}
    ),
    "fair_deo": Entry(f"{_BASELINES}.group_losses:FairLoss", "CE_deo", {"goal": "deo"}),
    "group_logit_adjustment": Entry(
        f"{_BASELINES}.group_losses:GroupLogitAdjustment", "Group-LA"
    ),
    "autobalance_tau": Entry(
        f"{_AUTOBALANCE}:AutoBalance", "AutoBalance: τ of LA", {"design": "tau"}
    ),
    "autobalance_l": Entry(
        f"{_AUTOBALANCE}:AutoBalance", "AutoBalance: l", {"design": "l"}
    ),
    "autobalance_delta": Entry(
        f"{_AUTOBALANCE}:AutoBalance", "AutoBalance: Δ", {"design": "delta"}
    ),
    "autobalance_delta_l": Entry(
        f"{_AUTOBALANCE}:AutoBalance",
        "AutoBalance: Δ & l",
        {"design": "delta_l", "initial": "plain"},
    ),
    "autobalance": Entry(
        f"{_AUTOBALANCE}:AutoBalance",
        "AutoBalance: Δ & l, LA init",
        {"design": "delta_l", "initial": "la"},
    ),
    "madao": Entry(
        f"{_AUTOBALANCE}:AutoBalance",
        "MADAO",
        {"design": "none", "initial": "plain", "policy": "single"},
    ),
    "autobalance_pda": Entry(
        f"{_AUTOBALANCE}:AutoBalance",
        "AutoBalance: PDA",
        {"design": "none", "initial": "plain", "policy": "personal"},
    ),
    "autobalance_pda_delta_l": Entry(
        f"{_AUTOBALANCE}:AutoBalance",
        "AutoBalance: PDA, Δ & l",
        {"design": "delta_l", "initial": "plain", "policy": "personal"},
    ),
    "autobalance_grouped": Entry(
        f"{_AUTOBALANCE}:AutoBalance",
        "AutoBalance",
        {"design": "delta_l", "grouped": True},
    ),
    "trial_search": Entry(
        "needsaug_lite.methods.trial_search:TrialSearch", "TPE search"
    ),
    "facog": Entry(f"{_FACOG}:FACoG", "FACoG"),
    "facog_phase1": Entry(
        f"{_BASELINES}.contrastive_training:ContrastiveTraining", "Phase 1"
    ),
    "feature_copy": Entry(
        f"{_SOURCES}:FixedMixing", "Copied features", {"kind": "copy"}
    ),
    "feature_dirichlet": Entry(
        f"{_SOURCES}:FixedMixing", "Evenly mixed features", {"kind": "dirichlet"}
    ),
    "feature_smote": Entry(f"{_SOURCES}:FeatureSMOTE", "SMOTE"),
    "feature_gan": Entry(f"{_SOURCES}:FeatureGAN", "cGAN"),
    "gamo": Entry(f"{_SOURCES}:FeatureGAMO", "GAMO", {"judged": True}),
    "gamo_without_d": Entry(f"{_SOURCES}:FeatureGAMO", "GAMO w/o D", {"judged": False}),
    "hybrid_contrastive": Entry(
        f"{_BASELINES}.hybrid_contrastive:HybridContrastive", "Hybrid-SC"
    ),
    "facog_autobalance": Entry(
        f"{_COMBINED}.facog_loss_search:FACoGAutoBalance", "FACoG + AutoBalance"
    ),
    "facog_logit_adjustment": Entry(
        f"{_COMBINED}.facog_loss_search:FACoGLogitAdjustment", "FACoG + LA"
    ),
    "facog_needs": Entry(f"{_COMBINED}.needs_draws:FACoGNeeds", "FACoG + needs"),
    "feature_copy_needs": Entry(
        f"{_COMBINED}.needs_draws:FixedMixingNeeds",
        "Copied features + needs",
        {"kind": "copy"},
    ),
    "gda": Entry(f"{_GENERATIVE}:GDA", "GDA"),
    "gda_multi_head": Entry(f"{_GENERATIVE}:GDAMultiHead", "GDA+MH"),
    "gda_ssl": Entry(f"{_GENERATIVE}:GDASSL", "GDA+SSL"),
    "gda_mps": Entry("needsaug_lite.methods.mgr:SampledGDA", "GDA+MPS"),
    "pcr": Entry(f"{_GENERATIVE}:PCR", "PCR"),
    "mgr": Entry("needsaug_lite.methods.mgr:MGR", "MGR"),
    "mps_generator": Entry(f"{_STRATEGIES}:TunedGenerator", "MPS of the generator"),
    "hard_sampling_ce": Entry(
        f"{_STRATEGIES}:HardSampling", "Finder w/ CE", {"aim": "cross_entropy"}
    ),
    "hard_sampling_pcr": Entry(
        f"{_STRATEGIES}:HardSampling", "Finder w/ PCR", {"aim": "consistency"}
    ),
    "needs_aware": Entry(f"{_NEEDS}:NeedsAware", "Needs-aware"),
    "needs_aware_reduced": Entry(
        f"{_NEEDS}:NeedsAware",
        "Needs-aware, reduced",
        {"interval": 8, "tied": True, "decorrelation": 0.1},
    ),
    "needs_aware_unshared": Entry(
        f"{_NEEDS}:NeedsAware", "Needs-aware, A not in H", {"shared": False}
    ),
    "separate": Entry(
        f"{_NEEDS}:NeedsAware",
        "Separate",
        {"train_generator": False, "shared": False},
    ),
    "retrained_head": Entry(
        f"{_NEEDS}:NeedsAware",
        "Head on D_val, λ = 0",
        {"strength": 0.0, "train_generator": False, "shared": False},
    ),
    "sequential": Entry(f"{_BASELINES}.budgeted:Sequential", "Sequential"),
    "reciprocal": Entry(f"{_BASELINES}.budgeted:Reciprocal", "Reciprocal"),
    "equal": Entry(f"{_BASELINES}.budgeted:Equal", "Equal"),
    "mtl": Entry(f"{_BASELINES}.joint:Joint", "MTL"),
    "darts": Entry(f"{_DARTS}:DARTS", "DARTS"),
    "pc_darts": Entry(f"{_DARTS}:PCDARTS", "PC-DARTS"),
    "equal_search": Entry(f"{_DARTS}:EqualSearch", "Equal, search"),
    "mtl_search": Entry(f"{_DARTS}:JointSearch", "MTL, search"),
    "separate_search": Entry(
        f"{_SEARCH}:NeedsAwareSearch",
        "Separate, search",
        {"train_generator": False, "shared": False},
    ),
    "needs_aware_search": Entry(f"{_SEARCH}:NeedsAwareSearch", "Needs-aware search"),
    "needs_aware_search_reduced": Entry(
        f"{_SEARCH}:NeedsAwareSearch",
        "Needs-aware search, reduced",
        {"interval": 8, "tied": True, "decorrelation": 0.1, "halved": True},
    ),
    "random_architecture": Entry(
        f"{_SEARCHES}.random_cells:RandomArchitecture",
        "Random cells",
        {"candidates": 1},
    ),
    "random_search": Entry(
        f"{_SEARCHES}.random_cells:RandomArchitecture", "Best of random cells"
    ),
    "hyper_cleaning": Entry(
        f"{_BASELINES}.hyper_cleaning:HyperCleaning", "Hyper-cleaning"
    ),
}


GENERATORS: dict[str, Entry] = {
    "cgan": Entry(f"{_GENERATION}.adversarial:ConditionalGAN", "cGAN"),
    "acgan": Entry(f"{_GENERATION}.adversarial:ACGAN", "ACGAN"),
    "biggan": Entry(f"{_GENERATION}.adversarial:BigGAN", "BigGAN-style"),
    "unconditional": Entry(
        f"{_GENERATION}.adversarial:UnconditionalGAN", "Unconditional GAN"
    ),
    "edm": Entry(f"{_GENERATION}.diffusion:Diffusion", "EDM-style diffusion"),
    "replay": Entry(f"{_GENERATION}.replay:Replaying", "Training images again"),
}

Kind = Literal["method", "generator"]


def entry(name: str, kind: Kind = "method") -> Entry:
    """The entry of a method, or of a generator of images.

    Raises:
        UserError: for an unknown name, listing the known ones.
    """
    table = METHODS if kind == "method" else GENERATORS
    if name not in table:
        raise UserError(f"unknown {kind} {name!r}; use one of {', '.join(table)}")
    return table[name]


@cache
def adversarial_kinds() -> tuple[str, ...]:
    """Names of the generators that are trained against a discriminator."""
    from needsaug_lite.methods.generation.adversarial_frame import Adversarial

    return tuple(
        name
        for name, kind in GENERATORS.items()
        if issubclass(kind.load(), Adversarial)
    )


@cache
def searching_methods() -> tuple[str, ...]:
    """Names of the methods that search an architecture."""
    return tuple(
        name
        for name, method in METHODS.items()
        if getattr(method.load(), "searches", False)
    )


@cache
def hyperparameters(name: str, kind: Kind = "method") -> type[BaseModel]:
    """A model of the keyword arguments that the named method takes on its own.

    Names, types, bounds and defaults are read from the signature of its class, so
    that an unknown or impossible value is refused before anything runs.
    """
    chosen = entry(name, kind)
    method = chosen.load()
    hints = get_type_hints(method.__init__, include_extras=True)
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(method.__init__).parameters.values():
        own = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        if own and parameter.name not in _COMMON | chosen.fixed.keys():
            fields[parameter.name] = (hints[parameter.name], parameter.default)
    config = ConfigDict(extra="forbid", frozen=True)
    return create_model(f"{chosen.label} hyperparameters", __config__=config, **fields)


def arguments(
    name: str, values: Mapping[str, Any], kind: Kind = "method"
) -> dict[str, Any]:
    """Keyword arguments of the named method from plain values, as of a spec.

    Settings that a method takes as a dataclass are built.
    """
    checked = hyperparameters(name, kind)(**values)
    return {field: getattr(checked, field) for field in type(checked).model_fields}
