"""Which of our full rows stands beside which number of facog's tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from needsaug_lite.experiments.records import Record
from needsaug_lite.experiments.spec import Spec

# Methods whose row in Tables 1 and 2 is named by the method alone. SMOTE, cGAN and GAMO
# are missing: theirs make images, ours features of a frozen network.
_NAMED = {
    "CE": "cross_entropy",
    "Focal loss": "focal",
    "CB-Focal": "class_balanced_focal",
    "CE-DRW": "deferred_reweighting",
    "LDAM": "ldam",
    "Hybrid-SC": "hybrid_contrastive",
}
_GAMO = {"mnist_lt": "mnist", "fashion_mnist_lt": "fashion_mnist"}
_CIFAR = {"cifar10_lt": "cifar10", "cifar100_lt": "cifar100"}
# Weights of the adversarial and the contrastive loss in Table 4.
_LOSSES = {
    "Phase1+L_asc": (0.0, 0.1),
    "Phase1+L_adv": (1.0, 0.0),
    "Phase1+L_adv+L_asc": (1.0, 0.1),
}


def same_setting(line: Mapping[str, Any], record: Record) -> bool:
    """Whether a row has the data and the configuration of a number in facog's tables.

    Args:
        line: one line of `paper_results("facog")`.
        record: a row, of any profile.
    """
    data, setting = record.spec.data, _setting(line)
    if line["dataset"] in _GAMO:
        same = data.gamo and data.name == _GAMO[line["dataset"]]
    else:
        imbalance = float(setting.get("imbalance", "nan"))
        same = data.name == _CIFAR.get(line["dataset"]) and data.imbalance == imbalance
    return same and _same_configuration(line, setting, record.spec)


def _setting(line: Mapping[str, Any]) -> dict[str, str]:
    parts = (part.partition("=") for part in str(line["setting"]).split(";"))
    return {name: value for name, equals, value in parts if equals}


def _same_configuration(
    line: Mapping[str, Any], setting: Mapping[str, str], spec: Spec
) -> bool:
    table, method = line["table"], line["method"]
    if method in _NAMED:
        return spec.method == _NAMED[method]
    if table == "T5":
        wanted = "facog" if method == "FACoG" else "facog_phase1"
        chosen = (setting["rew"] == "1", setting["aug"] == "1")
        return spec.method == wanted and _phase1(spec) == chosen and _plain(spec)
    if table == "T4" and method == "Phase1":
        return spec.method == "facog_phase1" and _phase1(spec) == (False, True)
    if table == "T4":
        same = spec.method == "facog" and _phase1(spec) == (False, True)
        return same and _plain(spec, _LOSSES[method])
    if method != "FACoG":
        return False
    # The headline configuration, but for grey images, of which Sec. 4.2 names none.
    views = (False, False) if table == "T1" else (True, True)
    return spec.method == "facog" and _phase1(spec) == views and _plain(spec)


def _phase1(spec: Spec) -> tuple[bool, bool]:
    """Re-weighting and strong views of the first phase."""
    given = spec.hyperparameters["phase1"]
    return bool(given["reweight"]), bool(given["strong_views"])


def _plain(spec: Spec, weights: tuple[float, float] = (1.0, 0.1)) -> bool:
    """The published second phase, with these weights of its two losses."""
    if spec.method != "facog":
        return True
    changed = {
        "lambda_adv": weights[0],
        "lambda_asc": weights[1],
        "phase1": spec.hyperparameters["phase1"],
    }
    usual = Spec(method="facog").hyperparameters
    return spec.hyperparameters == {**usual, **changed}
