"""Accept rollouts by their rewards, for each rejection method of a group, and de-duplicate where it says so."""

import numpy as np
import pandas as pd

from graft.errors import UserError
from graft.jobs import run
from graft.rejection import accept_by_condition, deduplicate, rule_from
from graft.seeding import Draw, numpy_generator
from graft.tables import write_csv

COLUMNS = ["method", "index", "reward", "key", "copies"]


def main(job):
    scores = pd.concat([pd.read_csv(path, dtype={"key": str}) for path in job.input.scores], ignore_index=True)
    tables = []
    for method, settings in job.params.methods.items():
        source = "base" if int(job.wildcards.round) == 1 else method
        rollouts = scores[scores["model"] == source].reset_index(drop=True)
        # One stream for all methods: equal rules accept equal rollouts.
        rng = numpy_generator(int(job.wildcards.seed), Draw.SELECTION, int(job.wildcards.round))
        tables.append(select(rollouts, method, settings, rng))
    write_csv(job.output[0], pd.concat([pd.DataFrame(columns=COLUMNS), *tables]))


def select(rollouts, method, settings, rng):
    """Rows of the accepted rollouts: method, index, reward, key and how many accepted ones shared the key."""
    known = np.flatnonzero(rollouts["reward"].notna())
    rewards, groups = rollouts["reward"].to_numpy()[known], rollouts["group"].to_numpy()[known]
    accepted = np.ones(len(known), dtype=bool)
    if settings["rule"] is not None:
        accepted = accept_by_condition(rule_from(settings["rule"]), rewards, groups, rng)
    copies = accepted.astype(int)
    if settings["deduplicate"]:
        # What has no key is the same as nothing else; nor are equal keys under two conditions the same.
        keys = rollouts["key"].fillna(rollouts.index.to_series().map("no key {}".format))
        keys = rollouts["group"].astype(str) + " " + keys
        accepted, copies = deduplicate(keys[known].to_list(), accepted, rng)
    if not accepted.any():
        raise UserError(
            f"method {method}: none of {len(known)} rollouts is accepted by {settings['rule']}; their rewards are "
            f"{np.min(rewards, initial=np.inf):.3g} to {np.max(rewards, initial=-np.inf):.3g}; relax the rule or draw "
            "more rollouts.samples"
        )
    chosen = known[accepted]
    rows = rollouts.loc[chosen, ["reward", "key"]]
    return rows.assign(method=method, index=chosen, copies=copies[accepted])[COLUMNS]


run(main, snakemake)
