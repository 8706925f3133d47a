"""Inverse noise correction as chains of flows: a corrector that makes better noise, then the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Chain:
    """One way to draw samples: `corrector_steps` on `path` (none for the base alone), then `base_steps` of the base."""

    base_steps: int
    path: str | None = None
    corrector_steps: int = 0

    @property
    def method(self) -> str:
        """The method's name in tables: base, inc_straight or inc_trigonometric; data for no flow at all."""
        if not self.base_steps:
            return "data"
        return f"inc_{self.path}" if self.path else "base"

    @property
    def name(self) -> str:
        """A key that is unique among the chains of an experiment, such as inc_straight_8_2."""
        return f"{self.method}_{self.base_steps}_{self.corrector_steps}"


DATA = Chain(base_steps=0)
"""The data themselves, which stand in tables beside the samples."""


def chains(step_counts: Sequence[int], paths: Sequence[str], corrector_steps: Sequence[int]) -> list[Chain]:
    """The rows of the experiment: the base alone at N, 2N and 4N, and every corrector for each base step count N."""
    alone = sorted({multiple * steps for steps in step_counts for multiple in (1, 2, 4)})
    corrected = [Chain(n, path, k) for n in sorted(step_counts) for path in paths for k in sorted(corrector_steps)]
    return [Chain(n) for n in alone] + corrected
