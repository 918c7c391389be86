"""How epochs are divided, where features lie, and what trains the adversaries."""

from __future__ import annotations

import pytest
import torch
from helpers.shared_phases import changed, make, parts

from needsaug_lite import training
from needsaug_lite.errors import UserError


@pytest.mark.parametrize("epochs", range(2, 12))
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 0.99])
def test_both_phases_have_an_epoch(epochs: int, share: float) -> None:
    first, second = make("feature_copy", phase1={"share": share}).stages(epochs)
    assert first.epochs + second.epochs == epochs
    assert min(first.epochs, second.epochs) >= 1
    alone = make("facog_phase1", phase1={"share": share}).stages(epochs)
    assert [stage.epochs for stage in alone] == [first.epochs]


@pytest.mark.parametrize(("epochs", "share"), [(1, 0.8), (10, 1.0)])
def test_a_run_without_a_second_phase_is_refused(epochs: int, share: float) -> None:
    with pytest.raises(UserError, match="at least 2 epochs and a share below 1"):
        make("facog", phase1={"share": share}).stages(epochs)
    (only,) = make("facog_phase1", phase1={"share": share}).stages(epochs)
    assert only.epochs == epochs


def test_features_on_disk_train_the_same() -> None:
    found = []
    for on_disk in (False, True):
        phase2 = {"on_disk": on_disk, "rebuild": True}
        method = make("facog", phase1={"share": 0.5}, phase2=phase2)
        training.fit(method, 4)
        assert method.dictionary.features.shape[0] == len(method.examples)
        found.append(parts(method))
    assert not changed(*found)
    assert method.folder is not None
    assert torch.equal(
        method.dictionary.features, method.extracted(method.epochs - 1).features
    )


@pytest.mark.parametrize("name", ["facog", "feature_gan", "gamo"])
def test_adversaries_by_adam_leave_the_classifier_to_sgd(name: str) -> None:
    method = make(name, phase2={"adversaries": "adam"})
    for optimiser in (method.source_optimiser, method.discriminator_optimiser):
        assert isinstance(optimiser, torch.optim.Adam)
        assert optimiser.defaults["lr"] == 2e-4
        assert optimiser.defaults["betas"] == (0.5, 0.999)
    assert isinstance(method.head_optimiser, torch.optim.SGD)
    usual = make(name)
    assert isinstance(usual.source_optimiser, torch.optim.SGD)
    assert usual.source_optimiser.defaults["lr"] == 0.005
