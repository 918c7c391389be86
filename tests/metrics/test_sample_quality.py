"""Scores of generated images against closed forms and second routes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from needsaug_lite import metrics
from needsaug_lite.errors import UserError
from needsaug_lite.metrics import (
    class_scores,
    frechet_distance,
    inception_style_score,
    label_agreement,
    precision_recall,
    sample_scores,
)

# After needsaug_lite, which makes torchmetrics importable.
from torchmetrics.image.inception import InceptionScore  # isort: skip


def normal(count: int, dim: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=draw, dtype=torch.float64)


def whitened(count: int, dim: int, seed: int) -> Tensor:
    """Samples with mean 0 and covariance 1 exactly."""
    x = normal(count, dim, seed)
    x = x - x.mean(0)
    root = torch.linalg.cholesky(x.T.cov())
    found: Tensor = torch.linalg.solve_triangular(root, x.T, upper=False).T
    return found


def by_singular_values(real: Tensor, generated: Tensor) -> float:
    """Tr (Σ Σ_p)^½ as the nuclear norm of Σ^½ Σ_p^½, from eigenvectors."""
    roots, traces = [], []
    for x in (real, generated):
        values, vectors = torch.linalg.eigh(x.T.cov())
        roots.append(vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T)
        traces.append(values.sum())
    shift = (real.mean(0) - generated.mean(0)).square().sum()
    overlap = torch.linalg.svdvals(roots[0] @ roots[1]).sum()
    return float(shift + traces[0] + traces[1] - 2 * overlap)


# --- Fréchet distance ---------------------------------------------------------------


def test_two_gaussians_with_known_moments() -> None:
    # Diagonal: the sum over features of (μ - μ_p)² + (σ - σ_p)².
    mu, sd = torch.tensor([1.0, -2, 0.5]).double(), torch.tensor([1.0, 3, 0.2]).double()
    other_mu, other_sd = mu + torch.tensor([0.5, 0, -1]), torch.tensor([2.0, 1, 0.2])
    real = whitened(60, 3, 0) * sd + mu
    generated = whitened(90, 3, 1) * other_sd + other_mu
    expected = (0.25 + 0 + 1) + (1 + 4 + 0)
    assert frechet_distance(real, generated) == pytest.approx(expected, rel=1e-10)


def test_covariances_that_do_not_commute() -> None:
    real = whitened(70, 4, 0) @ normal(4, 4, 2) + 1
    generated = whitened(50, 4, 1) @ normal(4, 4, 3)
    found = frechet_distance(real, generated)
    assert found == pytest.approx(by_singular_values(real, generated), rel=1e-9)
    # In two dimensions Tr M^½ = (Tr M + 2 (det M)^½)^½.
    real, generated = real[:, :2], generated[:, :2]
    one, other = real.T.cov(), generated.T.cov()
    product = one @ other
    root = (product.trace() + 2 * product.det().sqrt()).sqrt()
    shift = (real.mean(0) - generated.mean(0)).square().sum()
    expected = shift + one.trace() + other.trace() - 2 * root
    assert frechet_distance(real, generated) == pytest.approx(float(expected), rel=1e-9)
    assert float((product - product.T).abs().max()) > 0.1


def test_equal_sets_have_distance_zero_and_shifted_ones_its_square() -> None:
    real = normal(200, 5) @ normal(5, 5, 1)
    assert frechet_distance(real, real.flip(0)) == pytest.approx(0, abs=1e-9)
    shift = torch.tensor([3.0, 0, -4, 0, 12]).double()
    assert frechet_distance(real, real + shift) == pytest.approx(169, rel=1e-10)
    assert frechet_distance(real, 3 * real) == pytest.approx(
        float((2 * real.mean(0)).square().sum() + 4 * real.T.cov().trace()), rel=1e-9
    )


def test_rotation_and_exchange_change_nothing_and_scale_enters_squared() -> None:
    real, generated = normal(80, 6), 1.5 * normal(40, 6, 1) + 0.3
    once = frechet_distance(real, generated)
    turn, _ = torch.linalg.qr(normal(6, 6, 2))
    assert frechet_distance(real @ turn, generated @ turn) == pytest.approx(once)
    assert frechet_distance(generated, real) == pytest.approx(once)
    assert frechet_distance(7 * real, 7 * generated) == pytest.approx(49 * once)


def test_fewer_images_than_features() -> None:
    real, generated = normal(10, 40), normal(12, 40, 1)
    found = frechet_distance(real, generated)
    assert found == pytest.approx(by_singular_values(real, generated), rel=1e-5)
    assert 0 <= frechet_distance(real, real) < 1e-4


def test_the_bias_of_few_images_is_documented_because_it_is_there() -> None:
    few, many = (
        frechet_distance(normal(n, 20, 3), normal(n, 20, 4)) for n in (30, 3000)
    )
    assert few > 5 > 0.5 > many > 0


def test_single_precision_with_gradients_is_taken_too() -> None:
    real, generated = normal(50, 8).float(), normal(50, 8, 1).float()
    found = frechet_distance(real.requires_grad_(), generated)
    exact = by_singular_values(real.detach().double(), generated.double())
    assert found == pytest.approx(exact, rel=1e-9)


# --- inception-style score ----------------------------------------------------------


def test_score_is_one_for_a_constant_and_c_for_certain_balanced_classes() -> None:
    constant = normal(1, 7).expand(30, 7)
    assert inception_style_score(constant) == pytest.approx(1, abs=1e-12)
    certain = 200 * torch.eye(7).repeat(4, 1)
    assert inception_style_score(certain) == pytest.approx(7, rel=1e-12)
    # Two of the seven classes with shares 3/4 and 1/4: exp of their entropy.
    uneven = certain[torch.tensor([0, 0, 0, 1])]
    expected = (3 / 4) ** (-3 / 4) * (1 / 4) ** (-1 / 4)
    assert inception_style_score(uneven) == pytest.approx(expected, rel=1e-12)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torchmetrics, about one part
def test_score_is_that_of_its_definition_and_of_torchmetrics() -> None:
    logits = 2 * normal(300, 6)
    shares = logits.softmax(1)
    divergence = nn.functional.kl_div(
        shares.mean(0).log().expand_as(shares), shares, reduction="batchmean"
    )
    found = inception_style_score(logits)
    assert found == pytest.approx(float(divergence.exp()), rel=1e-10)
    other = InceptionScore(nn.Identity(), splits=1)
    other.update(logits)
    assert found == pytest.approx(float(other.compute()[0]), rel=1e-6)
    assert inception_style_score(logits + 1000) == pytest.approx(found)
    assert 1 < found < 6


def test_an_impossible_logit_is_refused_and_an_extreme_one_is_not() -> None:
    with pytest.raises(UserError, match="not a number"):
        inception_style_score(torch.tensor([[0.0, float("nan")]]))
    assert inception_style_score(torch.tensor([[1e4, -1e4], [-1e4, 1e4]])) == 2


# --- precision and recall -----------------------------------------------------------


def test_identical_sets_cover_each_other_and_distant_ones_do_not() -> None:
    real = normal(60, 4)
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 1000) == (0, 0)


def test_a_generator_of_one_mode_is_precise_and_covers_half() -> None:
    left, right = normal(50, 3), normal(50, 3, 1) + 100
    collapsed = left + 0.001
    precision, recall = precision_recall(torch.cat([left, right]), collapsed)
    assert precision == 1
    assert recall == 0.5


def test_the_balls_reach_to_the_kth_neighbour_without_the_centre() -> None:
    # On a line, centres 0, 1, 3, 10 have their nearest neighbour at 1, 1, 2, 7 and
    # their second at 3, 2, 3, 9.
    centres = torch.tensor([[0.0], [1], [3], [10]])
    points = torch.tensor([[-2.0], [-1], [2.5], [17], [17.5], [20]])
    assert precision_recall(centres, points, 1)[0] == pytest.approx(3 / 6)
    assert precision_recall(centres, points, 2)[0] == pytest.approx(5 / 6)


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_coverage_by_loops(neighbours: int) -> None:
    real, generated = normal(40, 5), 1.2 * normal(30, 5, 1) + 0.4

    def covered(points: Tensor, centres: Tensor) -> float:
        hits = 0
        for point in points:
            away = [float((point - centre).norm()) for centre in centres]
            radii = [
                sorted(float((centre - c).norm()) for c in centres)[neighbours]
                for centre in centres
            ]
            hits += any(a <= r for a, r in zip(away, radii, strict=True))
        return hits / len(points)

    found = precision_recall(real, generated, neighbours)
    assert found == pytest.approx((covered(generated, real), covered(real, generated)))
    assert 0 < found[0] < 1 or neighbours > 1


def test_rotation_shift_and_scale_change_no_coverage() -> None:
    real, generated = normal(50, 4), 1.1 * normal(50, 4, 1) + 0.5
    turn, _ = torch.linalg.qr(normal(4, 4, 2))
    found = precision_recall(3 * real @ turn + 7, 3 * generated @ turn + 7)
    assert found == precision_recall(real, generated)


# --- agreement with the label -------------------------------------------------------


def test_agreement_counts_the_images_of_their_class() -> None:
    logits = torch.eye(3)[[0, 1, 2, 2]]
    assert label_agreement(logits, torch.tensor([0, 1, 2, 0])) == 0.75
    assert label_agreement(logits, torch.tensor([1, 0, 0, 1])) == 0


# --- class by class -----------------------------------------------------------------


def test_a_class_of_one_opinion_has_score_one_and_of_two_certain_ones_two() -> None:
    certain = 200 * torch.eye(3).double()
    # Class 0: certain of itself. Class 1: half the images are taken for class 2, all
    # certainly. Class 2: of three images in four the judge is certain, and right; of
    # the fourth too, and it is wrong.
    opinions = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 0])
    found = class_scores(certain[opinions], torch.arange(3).repeat_interleave(4))
    entropy = (3 / 4) ** (-3 / 4) * (1 / 4) ** (-1 / 4)
    assert found["class_inception"] == pytest.approx([1, 2, entropy], rel=1e-12)
    assert found["class_agreement"] == [1, 0.5, 0.75]


def test_two_opinions_of_known_probabilities() -> None:
    # p and 1 - p in turn: E KL to (1/2, 1/2) is log 2 less the entropy of p.
    p = torch.tensor(0.9, dtype=torch.float64)
    two = torch.stack([torch.stack([p, 1 - p]), torch.stack([1 - p, p])]).log()
    never = torch.tensor([[0.3, 0.7], [0.3, 0.7]], dtype=torch.float64).log()
    found = class_scores(torch.cat([two, never]), torch.tensor([0, 0, 1, 1]))
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    expected = [2 * float((-entropy).exp()), 1]
    assert found["class_inception"] == pytest.approx(expected, rel=1e-12)
    assert found["class_agreement"] == [0.5, 1]


def test_a_class_is_scored_as_if_it_were_alone_and_in_any_order() -> None:
    logits = 2 * normal(60, 5)
    labels = torch.arange(60) % 5
    found = class_scores(logits, labels)
    for label in range(5):
        own = logits[labels == label]
        alone = inception_style_score(own)
        assert found["class_inception"][label] == pytest.approx(alone, rel=1e-12)
        agree = label_agreement(own, labels[labels == label])
        assert found["class_agreement"][label] == pytest.approx(agree, rel=1e-12)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    again = class_scores(logits[order], labels[order])
    for name, values in found.items():
        assert again[name] == pytest.approx(values, rel=1e-12)
    one_each = class_scores(logits[:5], labels[:5])
    assert one_each["class_inception"] == pytest.approx([1] * 5, abs=1e-12)


# --- together -----------------------------------------------------------------------


def test_all_scores_are_those_of_the_functions() -> None:
    real, generated, logits = normal(30, 4), normal(20, 4, 1), normal(20, 3, 2)
    labels = torch.arange(20) % 3
    found = sample_scores(real, generated, logits, labels)
    precision, recall = precision_recall(real, generated)
    assert found == {
        "frechet_distance": frechet_distance(real, generated),
        "inception_style_score": inception_style_score(logits),
        "precision": precision,
        "recall": recall,
        "label_agreement": label_agreement(logits, labels),
        "real_count": 30,
        "generated_count": 20,
    }
    without = sample_scores(real, generated, logits)
    assert found.keys() - without.keys() == {"label_agreement"}
    assert metrics.sample_scores is sample_scores


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(normal(1, 3), normal(9, 3)), "1 rows .*real.*2"),
        (lambda: frechet_distance(normal(9, 3), normal(1, 3)), "generated.*2"),
        (lambda: frechet_distance(normal(9, 3), normal(9, 4)), "3 features .* 4"),
        (lambda: frechet_distance(normal(9, 3)[0], normal(9, 3)), "one row"),
        (lambda: frechet_distance(normal(9, 3) / 0, normal(9, 3)), "infinite"),
        (lambda: inception_style_score(normal(0, 3)), "at least 1"),
        (lambda: precision_recall(normal(3, 3), normal(9, 3)), "at least 4"),
        (lambda: precision_recall(normal(9, 3), normal(9, 3), 0), "neighbours is 0"),
        (lambda: label_agreement(normal(3, 2), torch.arange(2)), "one label"),
        (lambda: label_agreement(normal(3, 2), torch.arange(3)), "from 0 to 1"),
        (lambda: class_scores(normal(3, 2), torch.arange(3) % 2), "from 1 to 2 gen"),
        (lambda: class_scores(normal(2, 3), torch.arange(2)), "from 0 to 1 generated"),
        (lambda: class_scores(normal(2, 2), torch.tensor([0, 2])), "from 0 to 1$"),
        (lambda: sample_scores(normal(9, 3), normal(9, 3), normal(8, 2)), "same"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
