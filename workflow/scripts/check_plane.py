"""Correct the noise of a planar sampler whose laws are known, and measure its distance from the data in both spaces."""

from functools import partial
from pathlib import Path

from graft.correctors import train_corrector
from graft.flow_maps import FlowMap, distances, pushed, standard_normal
from graft.grids import Grid
from graft.jobs import compute_of, identity_of, run
from graft.mixture import PLANE
from graft.networks.flows import velocity_of
from graft.noise_correction import Chain
from graft.paths import PATHS
from graft.seeding import Draw, generator
from graft.tables import write_csv

GRIDS = {"noise_grid": Grid(extent=7.0, cells=90, points=1), "data_grid": Grid(extent=5.0, cells=70, points=1)}
"""They share neither extent nor nodes, so that agreement between the spaces is a finding."""


def main(job):
    params, compute, rows = job.params, compute_of(job), []
    base = FlowMap(partial(PLANE.velocity, PATHS["straight"]), params.base_steps)
    # The base alone has no network, hence no seed: it is the same in all of them.
    alone = distances(base, standard_normal, PLANE.log_density, **GRIDS)
    for seed in params.seeds:
        rows.append(row(Chain(params.base_steps), seed, alone))
        for path in PATHS:
            network = corrector(job, compute, base, path, seed)
            for steps in params.step_counts:
                noise = partial(pushed, FlowMap(planar(network), steps), standard_normal)
                measured = distances(base, noise, PLANE.log_density, **GRIDS)
                rows.append(row(Chain(params.base_steps, path, steps), seed, measured))
    write_csv(job.output[0], rows)


def corrector(job, compute, base, path, seed):
    """The network of a flow to the inverted noises of draws from the plane, shaped as images (2, 1, 1)."""
    params = job.params
    noises, found = base.inverse(PLANE.sample(params.samples, generator(seed, Draw.REFERENCE)))
    checkpoint = Path(params.checkpoints) / f"seed{seed}_{path}.safetensors"
    network, _ = train_corrector(
        noises[found].float()[..., None, None],
        PATHS[path],
        params.network,
        params.training,
        seed=seed,
        run=0,
        compute=compute,
        checkpoint=checkpoint,
        identity=identity_of(job),
    )
    checkpoint.unlink()
    return network


def planar(network):
    """The velocity of a network of images (2, 1, 1), for points (B, 2) of any precision."""
    velocity = velocity_of(network)
    return lambda x, t: velocity(x.float()[..., None, None], t.float()).flatten(1).to(x.dtype)


def row(chain, seed, measured):
    return {
        "seed": seed,
        "method": chain.method,
        "base_steps": chain.base_steps,
        "corrector_steps": chain.corrector_steps,
        **measured,
    }


run(main, snakemake)
