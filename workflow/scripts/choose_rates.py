"""The learning rate at which each method did best on the tuning seed, as an overlay for the configuration."""

import yaml

from graft.files import atomic, read_json
from graft.jobs import run
from graft.plan import RewardPlan

HEADER = """# The learning rate of the highest {headline} of each method; controls have that of what they control.
# To lay it over the configuration that it was tuned with, put it last after --configfile: {path}
"""


def main(job):
    settings = {}
    for (name, setting), path in zip(job.params.settings.items(), job.input.metrics, strict=True):
        plan, models = RewardPlan(setting, setting["tuning"]["seed"]), read_json(path)["models"]
        scores = {trial: models[trial]["metrics"][job.params.headline] for trial in plan.trials}
        rates = plan.best_rates(scores)
        settings[name] = {"methods": {method: {"learning_rate": rate} for method, rate in rates.items()}}
    header = HEADER.format(headline=job.params.headline, path=job.output[0])
    with atomic(job.output[0]) as scratch:
        scratch.write_text(header + yaml.safe_dump({job.params.task: {"settings": settings}}, sort_keys=False))


run(main, snakemake)
