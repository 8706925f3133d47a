"""Figure of unconditional images: quality against FLOPs for every chain, and samples from the same noises."""

import pandas as pd

from graft.figures import draw_quality, draw_samples, save, subplots_of_settings
from graft.jobs import run
from graft.shards import TensorFile


def main(job):
    table = pd.read_csv(job.input.table)
    figure, panels = subplots_of_settings(len(job.params.settings))
    for name, (quality, pictures), path in zip(job.params.settings, panels, job.input.samples, strict=True):
        rows = table[(table["setting"].str.split().str[0] == name) & table["metric"].str.startswith(("FD", "FID"))]
        draw_quality(quality, rows)
        draw_samples(pictures, rows, TensorFile(path))
    save(figure, job.output.png, job.output.pdf)


run(main, snakemake)
