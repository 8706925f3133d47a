"""Fetch one external asset, from the mirror or its public address, and verify it."""

from pathlib import Path

from graft.assets import fetch_asset
from graft.jobs import run


def main(job):
    # The mirror is no param: where the same bytes come from must not rerun what uses them.
    fetch_asset(job.wildcards.asset, job.params.formats, job.config["mirror"], Path(job.output[0]))


run(main, snakemake)
