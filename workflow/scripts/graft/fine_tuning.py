"""Fine-tuning a diffusion model: on the snapshots that rejection sampling accepted, or by policy gradient."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graft.compute import Compute
from graft.errors import UserError
from graft.objectives import Anchor, FocusedTimes
from graft.policy_gradient import (
    Trajectory,
    advantages,
    clipped_objective,
    draw_trajectory,
    joined,
    log_density,
    step_weights,
)
from graft.progress import progress
from graft.rollouts import SamplerSettings
from graft.sampling import Ddim
from graft.seeding import CHUNK, ChunkedNormal, Draw, generator
from graft.shards import shard_batches
from graft.training import TrainingLog, TrainingSettings, TrainingState, train

logger = logging.getLogger(__name__)


def tune_on_snapshots(
    task: Any,
    network: nn.Module,
    snapshots: Tensor,
    cut_time: float,
    condition: dict[str, Tensor],
    settings: TrainingSettings,
    *,
    compute: Compute,
    times: FocusedTimes | None = None,
    anchor: Anchor | None = None,
    **training: Any,
) -> TrainingLog:
    """GRAFT (cut_time 0) and P-GRAFT: denoise above the cut, towards snapshots (n, ...) with their conditions (n, ...).

    times: the law of the times above the cut, uniform without one. anchor: a network that the snapshots came from and
    their odds (n,), by which they are then selected; the snapshots are all of its rollouts'. The network is changed in
    place. `training`: further arguments of `graft.training.train`.
    """
    names = list(condition)
    start = None if anchor is None else compute.compile(anchor.model)
    odds = [] if anchor is None else [anchor.odds]

    def loss(model: Callable[..., Tensor], x_c: Tensor, *values: Any) -> Tensor:
        *values, rng = values
        conditions, weights = values[: len(names)], values[len(names) :]
        anchored = Anchor(start, *weights) if weights else None
        return task.denoising_loss(
            model, x_c, cut_time, dict(zip(names, conditions, strict=True)), rng, times, anchored
        )

    return train(network, [[snapshots, *condition.values(), *odds]], loss, settings, compute=compute, **training)


@dataclass(frozen=True)
class PolicySettings:
    """DDPO's: rounds of `rollouts` trajectories, each followed by `gradient_steps` on batches of `batch_size` steps.

    clip: of the importance ratio, in (0, 1). learning_rate, ema_decay: see `graft.training.TrainingSettings`.
    """

    iterations: int
    rollouts: int
    gradient_steps: int
    batch_size: int
    clip: float
    learning_rate: float
    ema_decay: float


@dataclass(frozen=True)
class Moves:
    """Steps of rollouts: of which trajectory (b,) which step (b,), with its rollout's condition.

    advantage: (b,), the rollout's, times the step's weight. log_density: (b,), under the policy before the update that
    they are for.
    """

    rows: Tensor
    steps: Tensor
    condition: dict[str, Tensor]
    advantage: Tensor
    log_density: Tensor

    def split(self, size: int) -> Iterator[Moves]:
        """The same in parts of at most `size` rows."""
        for start in range(0, len(self.rows), size):
            part = slice(start, start + size)
            condition = {name: value[part] for name, value in self.condition.items()}
            yield Moves(self.rows[part], self.steps[part], condition, self.advantage[part], self.log_density[part])


@dataclass
class PolicyGradient:
    """DDPO (see `graft.policy_gradient`) for one network, which is changed in place.

    Rollouts are drawn in the precision of samples, so that what is rewarded is what will be evaluated. Likelihoods are
    float32 (`Compute.tensor_cores`), those of the policy before its update too: they divide by tau^2, which near the
    data makes rounding in bf16 as large as what a step of the policy changes, and the clip would act on that.
    draw_condition(iteration): conditions, on the CPU, of an iteration's rollouts. reward(x_0, condition): (B,) on the
    CPU, NaN where there is none; such rollouts teach nothing. seed, turn: of all that is drawn here.
    """

    task: Any
    network: nn.Module
    draw_condition: Callable[[int], dict[str, Tensor]]
    reward: Callable[[Tensor, dict[str, Tensor]], Tensor]
    settings: PolicySettings
    sampler: SamplerSettings
    seed: int
    turn: int
    compute: Compute

    def train(self, checkpoint: Path, identity: str) -> list[dict[str, float]]:
        """Run all iterations and leave the EMA weights in the network.

        Returns a point for each iteration: `reward_calls` spent so far, and their mean `reward` in this iteration. See
        `graft.training.train` for checkpoint and identity. Raises UserError if no rollout has a reward.
        """
        settings, every = self.settings, self.settings.gradient_steps
        self.network.to(self.compute.device).train()
        training = TrainingSettings(
            settings.iterations * every, settings.batch_size, settings.learning_rate, settings.ema_decay
        )
        state = TrainingState(self.network, training, identity=f"{identity} seed{self.seed} {settings} {self.sampler}")
        first, model = state.load(checkpoint) // every, self.compute.compile(self.network)
        largest = settings.batch_size
        for iteration in progress(range(first, settings.iterations), "policy gradient", settings.iterations, first):
            condition, trajectory, rewards = self._roll_out(model, iteration)
            known = rewards.isfinite()
            if not known.any():
                raise UserError(f"policy gradient: no rollout of iteration {iteration} has a reward; mend the reward")
            advantage = torch.zeros_like(rewards)
            advantage[known] = advantages(rewards[known], self.task.group(condition).cpu()[known])
            with self.compute.tensor_cores():
                batches = [self._batch(model, trajectory, advantage, condition, iteration, i) for i in range(every)]
                for moves in batches:
                    largest = self.compute.fitting(partial(self._backward, state, model, trajectory, moves), largest)
                    state.advance()
            # The loss is minus the expected reward, of which the rollouts are an estimate.
            state.record((iteration + 1) * every, -rewards[known].mean().item())
            state.save(checkpoint, (iteration + 1) * every)
        state.ema.copy_to(state.parameters)
        self.network.eval().requires_grad_(False)
        return [
            {"reward_calls": point["step"] // every * settings.rollouts, "reward": -point["loss"]}
            for point in state.curve
        ]

    def _roll_out(self, model: Callable[..., Tensor], iteration: int) -> tuple[dict[str, Tensor], Trajectory, Tensor]:
        condition = self.draw_condition(iteration)
        condition = {name: self.compute.to_device(value) for name, value in condition.items()}

        def drawn_in(batch_size: int) -> Trajectory:
            batches = shard_batches(self.settings.rollouts, batch_size, shard=0, shards=1)
            return joined([self._draw(model, iteration, condition, *batch) for batch in batches])

        trajectory = self.compute.fitting(drawn_in, self.sampler.batch_size, CHUNK)
        return condition, trajectory, self.reward(trajectory.x_0, condition).float()

    def _draw(
        self, model: Callable[..., Tensor], iteration: int, condition: dict[str, Tensor], start: int, stop: int
    ) -> Trajectory:
        """The trajectories [start, stop) of an iteration."""
        part = {name: value[start:stop] for name, value in condition.items()}
        normal = ChunkedNormal(
            self.seed,
            Draw.POLICY,
            0,
            self.turn,
            iteration,
            start=start,
            stop=stop,
            shape=self.task.shape,
            device=self.compute.device,
        )

        def projected() -> Tensor:
            return self.task.project(normal(), part)

        with self.compute.autocast():
            return draw_trajectory(self._update(model, part), projected(), self.sampler.times, projected)

    def _batch(
        self,
        model: Callable[..., Tensor],
        trajectory: Trajectory,
        advantage: Tensor,
        condition: dict[str, Tensor],
        iteration: int,
        number: int,
    ) -> Moves:
        """Random steps of random rollouts, for the gradient step of this number; before the policy is updated."""
        rng, size = generator(self.seed, Draw.POLICY, 1, self.turn, iteration, number), self.settings.batch_size
        rows = torch.randint(len(advantage), (size,), generator=rng)
        steps = torch.randint(len(trajectory.t), (size,), generator=rng)
        there = rows.to(self.compute.device)
        part = {name: value[there] for name, value in condition.items()}
        density = trajectory.log_density[steps.to(self.compute.device), there]
        weighted = advantage[rows] * step_weights(self.task.path, trajectory.t)[steps]
        moves = Moves(there, steps, part, weighted.to(self.compute.device), density)
        if self.compute.precision == "fp32":
            return moves

        @torch.no_grad()
        def density_in(parts: int) -> Tensor:
            return torch.cat([self._log_density(model, trajectory, part) for part in moves.split(parts)])

        return replace(moves, log_density=self.compute.fitting(density_in, size))

    def _backward(
        self,
        state: TrainingState,
        model: Callable[..., Tensor],
        trajectory: Trajectory,
        moves: Moves,
        size: int,
    ) -> int:
        """Leave the gradient of the clipped objective on a batch, taken in parts of at most `size` moves; that size."""
        state.forget_gradients()  # what a part that did not fit has left
        for part in moves.split(size):
            ratio = self._log_density(model, trajectory, part) - part.log_density
            loss = clipped_objective(ratio, part.advantage, self.settings.clip)
            (loss * (len(part.rows) / len(moves.rows))).backward()
        return size

    def _log_density(self, model: Callable[..., Tensor], trajectory: Trajectory, moves: Moves) -> Tensor:
        """Of what the rollouts did in their steps, under the policy; (b,)."""
        device, steps = self.compute.device, moves.steps
        place = steps.to(device), moves.rows
        t, s = trajectory.t[steps].to(device), trajectory.s[steps].to(device)
        mean, tau = self._update(model, moves.condition).transition(trajectory.before[place], t, s)
        return log_density(trajectory.after[place], mean, tau)

    def _update(self, model: Callable[..., Tensor], condition: dict[str, Tensor]) -> Ddim:
        return Ddim(self.task.denoiser(model, condition), self.task.path, self.sampler.eta)
