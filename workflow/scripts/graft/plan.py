"""What the reward chain of one setting and seed consists of: methods, the groups they are tuned in, rounds, cuts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


def is_plain(method: Mapping[str, Any]) -> bool:
    """Whether a method is tuned on selected rollouts as the paper does it: a rule, all that it accepts, no anchor."""
    return bool(method.get("rule")) and not method["deduplicate"] and not method.get("anchored")


POLICY_GRADIENT_LENGTH = 4
"""How many other methods take as long on a GPU: a policy gradient draws its own rollouts, again and again."""


@dataclass(frozen=True)
class RewardPlan:
    """The plan of one seed, from a setting's configuration.

    The tuning seed has, instead of each method, one of it for every learning rate that is tried. Methods are spread
    over groups (`fine_tuning.jobs`), each of which is one job in every stage. A stage is a round, round1 and so on,
    whose rollouts are selected from, or `final`, whose samples are evaluated.
    """

    setting: Mapping[str, Any]
    seed: int

    @property
    def methods(self) -> dict[str, dict[str, Any]]:
        """The methods with their settings, in the order of the configuration."""
        methods = dict(self.setting["methods"])
        if self.seed != self.setting["tuning"]["seed"]:
            return methods
        return {trial: {**methods[name], "learning_rate": rate} for trial, (name, rate) in self.trials.items()}

    @property
    def trials(self) -> dict[str, tuple[str, float]]:
        """(method, learning rate) of every method at every rate that is tried, by its name on the tuning seed."""
        return {
            f"{name}_{rate:g}".replace(".", "p").replace("-", "m"): (name, rate)
            for name in self.setting["methods"]
            for rate in self.setting["tuning"]["learning_rates"]
        }

    def best_rates(self, scores: Mapping[str, float]) -> dict[str, float]:
        """The learning rate at which each method has its highest score, of equal ones the first tried; scores by trial.

        An unselected control has the rate of what it controls, as it is to be tuned alike: that of the best trial with
        a rule at its cut, de-duplicated as it is and not anchored. Without one it has its own best.
        """
        methods = self.setting["methods"]
        best: dict[str, float] = {}
        selected: dict[tuple[float, bool], float] = {}
        for trial in sorted(self.trials, key=scores.__getitem__, reverse=True):
            name, rate = self.trials[trial]
            best.setdefault(name, rate)
            if methods[name].get("rule") and not methods[name].get("anchored"):
                selected.setdefault((methods[name]["cut"], methods[name]["deduplicate"]), rate)
        for name, method in methods.items():
            if method.get("rule", ...) is None:
                best[name] = selected.get((method["cut"], method["deduplicate"]), best[name])
        return {name: best[name] for name in methods}

    @property
    def groups(self) -> dict[str, list[str]]:
        """Names of the methods of each group, in the order of the configuration; all groups take about as long.

        The base is a group of its own and not among them.
        """
        groups: list[list[str]] = [[] for _ in range(min(self.setting["fine_tuning"]["jobs"], len(self.methods)))]
        lengths = [0] * len(groups)
        for name in sorted(self.methods, key=self._length, reverse=True):
            shortest = lengths.index(min(lengths))
            groups[shortest].append(name)
            lengths[shortest] += self._length(name)
        place = list(self.methods).index
        groups = sorted((sorted(names, key=place) for names in groups), key=lambda names: place(names[0]))
        return {f"jobs{number}": names for number, names in enumerate(groups)}

    def _length(self, name: str) -> int:
        return POLICY_GRADIENT_LENGTH if "iterations" in self.methods[name] else 1

    @property
    def rounds(self) -> int:
        """Rounds of rollouts and fine-tuning."""
        return self.setting["rollouts"]["rounds"]

    @property
    def cuts(self) -> list[float]:
        """All cuts of the methods, ascending: one pass of rollouts serves them all."""
        return sorted({method.get("cut", 0.0) for method in self.methods.values()})

    @property
    def levels(self) -> list[float]:
        """The noise levels, as shares of the time grid, whose snapshots are continued, ascending: 0 and every cut.

        Besides those of `evaluation.levels`, but for the tuning seed, which needs no more than what a table shows.
        """
        extra = [] if self.seed == self.setting["tuning"]["seed"] else self.setting["evaluation"]["levels"]
        return sorted({0.0, *self.cuts, *extra})

    def methods_of(self, group: str) -> dict[str, dict[str, Any]]:
        """The methods of a group, with their settings."""
        return {name: self.methods[name] for name in self.groups[group]}

    def selections(self, group: str) -> dict[str, dict[str, Any]]:
        """Rule and de-duplication of the rejection methods of a group: all that a selection depends on."""
        return {
            name: {key: method[key] for key in ("rule", "deduplicate")}
            for name, method in self.methods_of(group).items()
            if "rule" in method
        }

    def members(self, group: str) -> dict[str, float]:
        """The models that a group's rollouts come from, with their cuts."""
        if group == "base":
            return {"base": 0.0}
        return {name: method.get("cut", 0.0) for name, method in self.methods_of(group).items()}

    def stops(self, stage: str, group: str) -> dict[str, list[float]]:
        """The cuts at which a stage's rollouts of each model of a group leave snapshots, for the selection after it."""
        if stage == "final":
            return {name: [] for name in self.members(group)}
        return {name: self.cuts if group == "base" else [cut] for name, cut in self.members(group).items()}

    def sizes(self, stage: str) -> dict[str, int]:
        """`samples` and `shards` of a stage."""
        return self.setting["evaluation" if stage == "final" else "rollouts"]

    def round_before(self, stage: str) -> int:
        """The round whose tuned models a stage's rollouts come from; 0 is the base."""
        return self.rounds if stage == "final" else int(stage.removeprefix("round")) - 1

    def source(self, stage: str, group: str) -> str:
        """The group whose rollouts a round of a group selects from: the base's in the first."""
        return "base" if self.round_before(stage) == 0 else group

    def control(self, method: str) -> str | None:
        """The method that is fine-tuned alike but on unselected rollouts (`rule: null`); None without such a method.

        Alike is: at the same cut if there is one, and of these at the same learning rate if there is one. An anchored
        method without a selection would stay what it was, so that its control is the base.
        """
        mine = self.methods.get(method, {})
        if mine.get("anchored"):
            return "base"
        unselected = {name: other for name, other in self.methods.items() if other.get("rule", ...) is None}

        def differences(name: str) -> tuple[bool, bool]:
            other = unselected[name]
            return other["cut"] != mine.get("cut", 0.0), other["learning_rate"] != mine.get("learning_rate")

        return min(unselected, key=differences, default=None)

    def for_table(self) -> dict[str, Any]:
        """What a table says beside the results; controls first, then by cut, policy gradients last.

        An overlay's keys come before those that it leaves as they are, so the configuration's order says little.
        """

        def place(item: tuple[str, dict[str, Any]]) -> tuple[bool, bool, float]:
            method = item[1]
            return "iterations" in method, method.get("rule") is not None, method.get("cut", 0.0)

        return {
            "methods": dict(sorted(self.methods.items(), key=place)),
            "controls": {name: self.control(name) for name in ["base", *self.methods]},
            "groups": list(self.groups),
            "eta": self.setting["sampler"]["eta"],
            "rounds": self.rounds,
            **{name: self.setting["rollouts"][name] for name in ("samples", "shards")},
        }
