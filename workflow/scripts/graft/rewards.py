"""Rewards: the user's own functions, and what to do where one fails."""

from __future__ import annotations

import importlib
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from graft.errors import UserError, one_line

logger = logging.getLogger(__name__)


def load_reward(name: str, known: Sequence[str]) -> Callable[..., float]:
    """The function that `module:function` names, from the working directory or an installed package.

    known: the names of built-in rewards, for the message. Raises UserError if there is no such function.
    """
    module, colon, function = name.partition(":")
    if not colon:
        raise UserError(f"reward.function: {name!r} is neither {' nor '.join(known)} nor module:function")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a user's module may raise anything
        raise UserError(f"reward.function {name}: cannot be imported ({one_line(error)}); mend the module") from error
    if not callable(found):
        raise UserError(f"reward.function {name}: is no function but a {type(found).__name__}")
    return found


def per_sample(reward: Callable[..., float], samples: Iterable[Sequence[Any]]) -> np.ndarray:
    """reward(*sample) of each sample, (n,) float64; NaN, with a line in the log, where it raises or is not finite."""
    return np.array([_guarded(reward, number, sample) for number, sample in enumerate(samples)], dtype=np.float64)


def _guarded(reward: Callable[..., float], number: int, sample: Sequence[Any]) -> float:
    try:
        value = float(reward(*sample))
    except Exception as error:  # a user's function may raise anything
        logger.warning("reward of sample %d: %s: %s", number, type(error).__name__, error)
        return math.nan
    if not math.isfinite(value):
        logger.warning("reward of sample %d: %s", number, value)
        return math.nan
    return value


def check_failures(rewards: np.ndarray, max_failed: float) -> None:
    """End the job if more than the share max_failed of the rewards (n,) is NaN. Raises UserError."""
    failed = float(np.isnan(rewards).mean())
    if failed > max_failed:
        raise UserError(
            f"reward: {failed:.1%} of {len(rewards)} samples have none (an exception, infinite or NaN; the log "
            f"names them), more than reward.max_failed = {max_failed:.1%}"
        )
