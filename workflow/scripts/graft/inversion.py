"""The exact inverse of the Euler sampler: from an image back to the very noise that samples to it.

One Euler step is x_{i+1} = x_i - h v(x_i, t_i). Its inverse is the fixed point x_i = x_{i+1} + h v(x_i, t_i), not a
step of the backward-time flow. The fixed point is found by Anderson acceleration (Walker and Ni 2011, type II),
each sample for itself, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graft.sampling import Velocity, uniform_times

MEMORY = 5
"""Differences kept by Anderson acceleration; more gained nothing."""

ROUNDING = torch.finfo(torch.float32).eps / 2
"""Relative error of a rounded number: what a residual of zero still hides."""

MAX_GROWTH = 1e4
"""Factor that the residual may grow by over its best before a sample is sent back to plain iteration."""


@dataclass(frozen=True)
class Inversion:
    """Outcome for a batch of B samples and N steps.

    noise: (B, ...) at t = 1. error: (B, N), the estimated relative error of each step's solution, in sampling order
    (step 0 is the one from t = 1). evaluations: velocity evaluations spent, as a sum over samples.
    """

    noise: Tensor
    error: Tensor
    evaluations: int

    def converged(self, tolerance: float) -> Tensor:
        """(B,) bool: the samples whose every step was solved to `tolerance`; NaN does not count as solved."""
        return (self.error <= tolerance).all(dim=1)


@torch.no_grad()
def invert(x: Tensor, velocity: Velocity, steps: int, tolerance: float, max_iterations: int) -> Inversion:
    """Noise (B, ...) that `steps` Euler steps of `velocity` send to x (B, ...) float32.

    tolerance is relative, on the estimated error of x_i (see `solve_step`). The steps are undone from the last
    (t = h) to the first (t = 1). A sample that misses the tolerance is carried on and marked in `error`.
    """
    errors, evaluations = [], 0
    for time in reversed(uniform_times(steps)[:-1]):
        x, error, spent = solve_step(x, velocity, time, 1 / steps, tolerance, max_iterations)
        errors.append(error)
        evaluations += spent
    return Inversion(noise=x, error=torch.stack(errors[::-1], dim=1), evaluations=evaluations)


def largest_error(x: Tensor, truth: Tensor) -> float | None:
    """The largest |x - truth| / |truth| over the samples of both (B, ...); None where there are none."""
    errors = (x - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)
    return errors.max().item() if len(errors) else None


def solve_step(
    target: Tensor, velocity: Velocity, time: float, h: float, tolerance: float, max_iterations: int
) -> tuple[Tensor, Tensor, int]:
    """Solve x = target + h v(x, time) for each sample of target (B, ...).

    Returns x, the estimated relative error (B,) and the number of velocity evaluations, summed over samples. With the
    residual f(x) = target + h v(x) - x, the error of x is (I - h J)^{-1} f to first order; a small f alone promises
    nothing where h J has eigenvalues near one (the last steps). So the error is estimated as |f|, or the rounding of x
    if that is larger, times the largest |dx| / |df| among the differences of the iteration, which point into the
    directions that converge slowly; and it is relative to the smaller of x and target, so that an iterate that ran away
    to where the target is lost in its rounding does not pass for a solution.
    Samples leave the iteration once converged, so that the rest of the batch costs only what it needs.
    """
    shape, y, scale = target.shape, target.flatten(1), target.flatten(1).norm(dim=1)
    solution, error = y.clone(), torch.full((len(y),), torch.inf, device=y.device)
    active = torch.arange(len(y), device=y.device)
    anderson = AndersonAcceleration(y)
    evaluations = 0
    for _ in range(max_iterations):
        x = anderson.x
        t = torch.full((len(x),), time, device=x.device)
        residual = y[active] + h * velocity(x.unflatten(1, shape[1:]), t).float().flatten(1) - x
        evaluations += len(x)
        anderson.observe(residual)
        size = x.norm(dim=1)
        floor = torch.maximum(residual.norm(dim=1), ROUNDING * size)
        estimate = anderson.amplification() * floor / torch.minimum(size, scale[active])
        better = estimate < error[active]
        solution[active[better]], error[active[better]] = x[better], estimate[better]
        keep = ~(estimate <= tolerance) & residual.isfinite().all(dim=1)
        if not keep.any():
            break
        anderson.keep(keep)
        active = active[keep]
        anderson.advance()
    return solution.unflatten(1, shape[1:]), error, evaluations


class AndersonAcceleration:
    """Batched Anderson acceleration of x <- x + f(x) over rows; x is (B, d)."""

    def __init__(self, x: Tensor) -> None:
        self.x = x.clone()
        self.residual: Tensor | None = None
        self.best = torch.full((len(x),), torch.inf, device=x.device)
        self.last_x: Tensor | None = None
        self.last_residual: Tensor | None = None
        self.dx: list[Tensor] = []
        self.df: list[Tensor] = []

    def observe(self, residual: Tensor) -> None:
        """Take f(x) (B, d) of the current x."""
        if self.last_x is not None:
            self.dx = [*self.dx[-MEMORY + 1 :], self.x - self.last_x]
            self.df = [*self.df[-MEMORY + 1 :], residual - self.last_residual]
        self.residual = residual
        self.best = torch.minimum(self.best, residual.norm(dim=1))

    def amplification(self) -> Tensor:
        """(B,): the largest |dx| / |df| seen, a lower bound of |(I - h J)^{-1}|; infinite before the second point.

        An iterate that repeats itself (0 / 0) says nothing and counts as 1.
        """
        if not self.dx:
            return torch.full((len(self.x),), torch.inf, device=self.x.device)
        ratios = [dx.norm(dim=1) / df.norm(dim=1) for dx, df in zip(self.dx, self.df, strict=True)]
        return torch.stack(ratios).nan_to_num(nan=1, posinf=torch.inf).amax(dim=0).clamp(min=1)

    def keep(self, mask: Tensor) -> None:
        """Drop the rows outside mask (B,)."""
        if mask.all():
            return
        self.x, self.residual, self.best = self.x[mask], self.residual[mask], self.best[mask]
        self.dx, self.df = [d[mask] for d in self.dx], [d[mask] for d in self.df]

    def advance(self) -> None:
        """Move x to the next iterate: x + f - (dX + dF) gamma, gamma = argmin |f - dF gamma|."""
        self.last_x, self.last_residual = self.x, self.residual
        step = self.residual
        if self.dx:
            dx, df = torch.stack(self.dx, dim=2), torch.stack(self.df, dim=2)
            step = step - ((dx + df) @ self._mixing(df)).squeeze(2)
            lost = self.residual.norm(dim=1) > MAX_GROWTH * self.best
            step = torch.where(lost[:, None], self.residual, step)
        self.x = self.x + step

    def _mixing(self, df: Tensor) -> Tensor:
        # Scaled normal equations: the columns differ by orders of magnitude, and a batched QR is slow on a GPU.
        scale = df.norm(dim=1, keepdim=True).clamp(min=torch.finfo(df.dtype).tiny)
        columns = (df / scale).double()
        gram = columns.mT @ columns + 1e-10 * torch.eye(df.shape[2], device=df.device, dtype=torch.double)
        gamma = torch.linalg.solve(gram, columns.mT @ self.residual.double().unsqueeze(2))
        return gamma.to(df.dtype) / scale.mT
