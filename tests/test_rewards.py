"""The user's own rewards: found, called for each sample, and what happens where one fails."""

import logging
import math
import sys

import numpy as np
import pytest

from graft.errors import UserError
from graft.rewards import check_failures, load_reward, per_sample

KNOWN = ("stability", "qed")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory of its own, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_reward_is_found_in_the_working_directory_and_in_installed_packages(folder):
    (folder / "a_reward_of_mine.py").write_text("def size(positions, numbers):\n    return len(numbers) / 2\n")
    assert load_reward("a_reward_of_mine:size", KNOWN)(None, [1, 2, 3]) == 1.5
    assert load_reward("math:hypot", KNOWN) is math.hypot


@pytest.mark.parametrize(
    ("text", "name", "messages"),
    [
        (None, "qedd", ["'qedd'", "stability", "qed", "module:function"]),
        (None, "no_such_module:f", ["no_such_module:f", "ModuleNotFoundError"]),
        ("def f(: pass", "broken_reward:f", ["broken_reward:f", "SyntaxError"]),
        ("import no_such_package", "broken_reward:f", ["broken_reward:f", "no_such_package"]),
        ("raise RuntimeError('first\\nsecond')", "broken_reward:f", ["broken_reward:f", "first second"]),
        ("def g(): pass", "broken_reward:f", ["broken_reward:f", "AttributeError"]),
        ("f = 3", "broken_reward:f", ["broken_reward:f", "no function"]),
    ],
)
def test_a_reward_that_is_none_is_one_line(folder, text, name, messages):
    if text is not None:
        (folder / "broken_reward.py").write_text(text)
    with pytest.raises(UserError) as error:
        load_reward(name, KNOWN)
    assert all(message in str(error.value) for message in messages), error.value
    assert "\n" not in str(error.value)


def test_each_sample_gets_its_reward_and_a_failure_is_nan_with_a_line_in_the_log(caplog):
    def reward(a, b):
        if a == 3:
            raise ZeroDivisionError("by design")
        return {1: np.float32(b), 2: np.inf, 4: math.nan, 5: "0.5", 6: np.array([b])[0]}[a]

    samples = [(1, 0.25), (2, 0), (3, 0), (4, 0), (5, 0), (6, 7), (6, 0)]
    with caplog.at_level(logging.WARNING):
        found = per_sample(reward, iter(samples))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [0.25, np.nan, np.nan, np.nan, 0.5, 7.0, 0.0])
    for number, message in ((1, "inf"), (2, "ZeroDivisionError: by design"), (3, "nan")):
        assert any(f"sample {number}:" in text and message in text for text in caplog.messages), caplog.messages
    assert len(caplog.messages) == 3


def test_what_is_no_number_is_a_failure():
    assert np.isnan(per_sample(lambda a: None, [(1,)])).all()
    assert np.isnan(per_sample(lambda a: np.zeros(2), [(1,)])).all()


@pytest.mark.parametrize(
    ("failed", "limit", "ends"), [(0, 0.0, False), (1, 0.0, True), (2, 0.2, False), (3, 0.2, True)]
)
def test_more_failures_than_allowed_end_the_job(failed, limit, ends):
    rewards = np.arange(10.0)
    rewards[:failed] = np.nan
    if not ends:
        check_failures(rewards, limit)
        return
    with pytest.raises(UserError) as error:
        check_failures(rewards, limit)
    for part in (f"{failed * 10:.1f}%", "10 samples", "max_failed", f"{limit:.1%}"):
        assert part in str(error.value)
