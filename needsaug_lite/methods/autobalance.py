"""AutoBalance: a loss whose parameters are learned on a share of the training set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor
from torch.func import functional_call

from needsaug_lite import hypergrad
from needsaug_lite.data import Batch, Splits
from needsaug_lite.errors import UserError
from needsaug_lite.hypergrad import Hypergradient
from needsaug_lite.methods.endless import Endless
from needsaug_lite.methods.fair_objective import Goal
from needsaug_lite.methods.learned_augmentation import LearnedAugmentation, Personal
from needsaug_lite.methods.loss_design import Design, Initial
from needsaug_lite.methods.loss_search import LossSearch, Share
from needsaug_lite.models import Classifier
from needsaug_lite.training import Stage
from needsaug_lite.training.schedules import set_learning_rate

Positive = Annotated[float, Gt(0)]
Count = Annotated[int, Gt(0)]


class AutoBalance(LossSearch):
    """Bilevel search for the parameters of a loss (Li et al. 2021).

        min_α L_fair(θ*(α))   with   θ*(α) = argmin_θ L_train(θ, α)      (Eq. 2.3)

    α are the numbers of a `LossDesign`. The training images are divided. On the larger
    part the network is trained, at first with α fixed (warm-up), then with a step of α
    after the first and every `interval`-th later step of the network:

        θ <- θ - SGD(∇_θ L_train(θ, α))                                 (line 6)
        α <- α + SGD(∇_α⟨∇_θ L_train(θ, α), u⟩),   H u = ∇_θ L_fair(θ)  (lines 8, 9)

    L_train is the parametric cross-entropy plus weight decay, H its Hessian by θ, u a
    truncated Neumann series. L_fair, see `FairObjective`, is taken on the smaller part.
    Then the network starts again from its first weights and is trained on all training
    images with α as it ended (lines 11, 12), values between the mid-points of clusters
    interpolated.

    Where the text is silent: the step of the series follows the curvature of the
    batches at hand (`hypergrad.safe_neumann`); validation batches hold equally many
    images of every class or cell, aren't augmented, and meet batch norm in evaluation
    mode; training batches meet it in training mode, in which they are trained.

    Source: autobalance Algorithm 1, with the minus sign of errata A1; the released code
    for `interval`, `terms` and `largest_step` (ucr-optml/AutoBalance).
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        design: Design = "delta_l",
        initial: Initial = "la",
        tau: float = 1.0,
        cluster_size: Count = 1,
        goal: Goal = "balanced",
        fairness: Annotated[float, Ge(0), Le(1)] = 1.0,
        grouped: bool = False,
        validation_share: Share = 0.2,
        search_length: Positive = 1.0,
        start: Annotated[float, Ge(0), Le(1)] = 0.4,
        outer_lr: Positive = 0.05,
        outer_momentum: Annotated[float, Ge(0), Lt(1)] = 0.9,
        outer_decay: Annotated[float, Ge(0)] = 1e-4,
        outer_batches: Count = 1,
        interval: Count = 20,
        terms: Annotated[int, Ge(1), Le(10)] = 5,
        largest_step: Positive = 1.0,
        policy: Personal = "none",
        sub_policies: Count = 10,
        policy_lr: Positive = 1e-3,
        **common: Any,
    ) -> None:
        """Divide the training images and start the search space.

        Args:
            model: trained in place, on the device of `splits`.
            splits: `train` is learned from; other parts aren't looked at.
            design, initial, tau, cluster_size: see `LossDesign`.
            goal, fairness: see `FairObjective`; the goal "deo" needs `grouped`.
            grouped, validation_share: see `LossSearch`.
            search_length: epochs of the search, as a multiple of those of retraining.
            start: share of the search with α fixed.
            outer_lr, outer_momentum, outer_decay: of SGD for α; its rate follows the
                schedule of the network's.
            outer_batches: training batches, and validation batches, that a
                hypergradient is averaged over.
            interval: steps of the network for each step of α.
            terms, largest_step: of `hypergrad.safe_neumann`.
            policy: "personal" learns an augmentation policy for every cluster of
                classes as well, "single" one for all classes.
            sub_policies: see `LearnedAugmentation`.
            policy_lr: rate of Adam for the policies.
            common: see `Supervised`.

        Raises:
            UserError: see `LossSearch`.
        """
        super().__init__(
            model,
            splits,
            design=design,
            initial=initial,
            tau=tau,
            cluster_size=cluster_size,
            goal=goal,
            fairness=fairness,
            grouped=grouped,
            validation_share=validation_share,
            **common,
        )
        self.search_length, self.start = search_length, start
        self.outer_batches, self.interval = outer_batches, interval
        self.solver = hypergrad.safe_neumann(terms, largest_step)
        self.hparams: dict[str, Tensor] = dict(self.space.hparams)
        # Optimisers of the hyperparameters, each with its rate before it falls.
        self.outer: list[tuple[torch.optim.Optimizer, float]] = []
        if self.hparams:
            optimiser = torch.optim.SGD(
                list(self.hparams.values()),
                lr=outer_lr,
                momentum=outer_momentum,
                weight_decay=outer_decay,
            )
            self.outer.append((optimiser, outer_lr))
        self.augmentation: LearnedAugmentation | None = None
        if policy != "none":
            shared = cluster_size if policy == "personal" else self.cells.classes
            self.augmentation = LearnedAugmentation(
                splits.class_counts,
                splits.image_shape,
                self.batches.normalisation,
                cluster_size=shared,
                sub_policies=sub_policies,
                seed=self.batches.seed,
            )
            learned = self.augmentation.hparams
            self.hparams |= learned
            adam = torch.optim.Adam(list(learned.values()), lr=policy_lr)
            self.outer.append((adam, policy_lr))
        steps = outer_batches * -(-len(self.search_batches) // interval)
        again = self.batches_of_rest(self.batches.seed + 1)
        self.inner, self.validation = Endless(again, steps), Endless(self.strata, steps)
        self.outer_loss = torch.zeros((), device=splits.train.labels.device)
        self.steps = 0

    def step(self, batch: Batch) -> Mapping[str, Tensor]:
        """One update of the network (lines 5 and 6), with α as it is."""
        if self.augmentation is not None:
            batch = replace(batch, images=self.augmentation.augmented(batch))
        return super().step(batch)

    def hypergradient(
        self, training: Sequence[Batch], validation: Sequence[Batch]
    ) -> Hypergradient:
        """Derivative of L_fair by α at the weights as they are (line 8).

        Args:
            training: batches of the larger part of the training images.
            validation: stratified batches of the smaller part.

        Returns:
            One entry for every tensor of `hparams`; its report says how far the weights
            are from stationary ("gradient_norm"), and what curvature was met.
        """
        mode = self.model.training
        estimate = hypergrad.implicit(
            [self._inner_loss(batch) for batch in training],
            [self._outer_loss(batch) for batch in validation],
            dict(self.model.named_parameters()),
            self.hparams,
            solver=self.solver,
        )
        self.model.train(mode)
        return estimate

    def _inner_loss(self, batch: Batch) -> Callable[..., Tensor]:
        learned = self.augmentation
        images = learned.images_of(batch) if learned else lambda h: batch.images
        decay: float = self.optimiser.param_groups[0]["weight_decay"]

        def loss(params: Mapping[str, Tensor], h: Mapping[str, Tensor]) -> Tensor:
            self.model.train()
            logits = functional_call(self.model, dict(params), (images(h),))
            squares = torch.stack([p.square().sum() for p in params.values()]).sum()
            fit = self.train_loss(logits, batch, self.space.parameters(h))
            return fit + 0.5 * decay * squares

        return loss

    def _outer_loss(self, batch: Batch) -> Callable[..., Tensor]:
        def loss(params: Mapping[str, Tensor], h: Mapping[str, Tensor]) -> Tensor:
            self.model.eval()
            logits = functional_call(self.model, dict(params), (batch.images,))
            return self.fair_loss(logits, batch)

        return loss

    def search_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """Algorithm 1, lines 4 to 9; α waits for its turn."""
        logged = self.step(batch)
        if self.steps % self.interval == 0:
            number = range(self.outer_batches)
            training = [next(self.inner) for _ in number]
            validation = [next(self.validation) for _ in number]
            estimate = self.hypergradient(training, validation)
            estimate.set_grad(self.hparams)
            for optimiser, _ in self.outer:
                optimiser.step()
            self.alpha = self.space.detached()
            self.outer_loss = estimate.outer_loss
        self.steps += 1
        return {**logged, "outer_loss": self.outer_loss}

    def search_stages(self, epochs: int) -> Sequence[Stage]:
        """Lines 2 and 3: warm-up and search on the larger part."""
        if not self.hparams:
            raise UserError(
                "design='none' leaves nothing to search for; search for a design or a "
                "policy"
            )
        search = max(1, round(self.search_length * epochs))
        warm = round(self.start * search)
        if warm == search and self.start < 1:
            raise UserError(
                f"a search of {search} epochs with start={self.start} is all warm-up; "
                "train longer or start earlier"
            )
        name, batches = type(self).__name__, self.search_batches

        def begin_epoch(epoch: int) -> Mapping[str, float]:
            self.epochs = search
            self.inner.begin_epoch(epoch)
            self.validation.begin_epoch(epoch)
            self.alpha = self.space.detached()
            logged = self.begin_epoch(epoch)
            for optimiser, lr in self.outer:
                set_learning_rate(optimiser, lr * logged["lr"] / self.optimisation.lr)
            return {**logged, **self.space.summary()}

        return [
            Stage(f"{name}, warm-up", warm, batches, self.step, begin_epoch),
            Stage(
                f"{name}, search",
                search - warm,
                batches,
                self.search_step,
                begin_epoch,
                first=warm,
            ),
        ]

    def state_dict(self) -> dict[str, Any]:
        """What the frame keeps, and the upper level."""
        return {
            **super().state_dict(),
            "augmentation": self.augmentation and self.augmentation.state_dict(),
            "outer": [optimiser.state_dict() for optimiser, _ in self.outer],
            "outer_loss": self.outer_loss,
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        super().load_state_dict(state)
        if self.augmentation is not None:
            self.augmentation.load_state_dict(state["augmentation"])
        for (optimiser, _), saved in zip(self.outer, state["outer"], strict=True):
            optimiser.load_state_dict(saved)
        self.outer_loss, self.steps = state["outer_loss"], state["steps"]
