"""Inverse noise correction as chains: a corrector that makes better noise, then the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SHIFT_AND_SCALE = "shift_and_scale"
"""The control among the correctors: gives fresh noise the mean and the standard deviation of the inverted noises, in
every dimension by itself. What a flow gains beyond it is in the shape of their law."""


@dataclass(frozen=True)
class Chain:
    """One way to draw samples: a corrector of the noise (none for the base alone), then `base_steps` of the base.

    corrector: the path of a flow, which takes `corrector_steps`, or SHIFT_AND_SCALE, which takes none.
    """

    base_steps: int
    corrector: str | None = None
    corrector_steps: int = 0

    @property
    def method(self) -> str:
        """The method's name in tables: base, shift_and_scale, inc_straight or inc_trigonometric; data for no flow."""
        if not self.base_steps:
            return "data"
        if self.corrector in (None, SHIFT_AND_SCALE):
            return self.corrector or "base"
        return f"inc_{self.corrector}"

    @property
    def name(self) -> str:
        """A key that is unique among the chains of an experiment, such as inc_straight_8_2."""
        return f"{self.method}_{self.base_steps}_{self.corrector_steps}"


DATA = Chain(base_steps=0)
"""The data themselves, which stand in tables beside the samples."""


def chains(step_counts: Sequence[int], paths: Sequence[str], corrector_steps: Sequence[int]) -> list[Chain]:
    """The rows of the experiment: the base alone at N, 2N and 4N, and every corrector for each base step count N."""
    alone = sorted({multiple * steps for steps in step_counts for multiple in (1, 2, 4)})
    controls = [Chain(n, SHIFT_AND_SCALE) for n in sorted(step_counts)]
    flows = [Chain(n, path, k) for n in sorted(step_counts) for path in paths for k in sorted(corrector_steps)]
    return [*(Chain(n) for n in alone), *controls, *flows]
