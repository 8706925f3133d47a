"""Train the noise correctors of one path: for each base step count, a small flow to the law of the inverted noises."""

from pathlib import Path

from graft.correctors import train_corrector
from graft.files import write_json
from graft.jobs import compute_of, identity_of, run
from graft.paths import PATHS
from graft.shards import ShardedTensor
from graft.tables import write_csv


def main(job):
    compute, seed = compute_of(job), int(job.wildcards.seed)
    folder, checkpoints = Path(job.output.model), Path(job.params.checkpoints)
    rates = {}
    for steps in job.params.step_counts:
        network, log = train_corrector(
            ShardedTensor(job.input.noise, f"noise_{steps}"),
            PATHS[job.wildcards.path],
            job.params.network,
            job.params.training,
            seed=seed,
            run=steps,
            compute=compute,
            checkpoint=checkpoints / f"{steps}.safetensors",
            identity=identity_of(job),
        )
        network.save_pretrained(folder / f"base{steps}")
        write_csv(folder / f"base{steps}" / "training.csv", log.curve)
        rates[steps] = log.seconds_per_step and job.params.training["batch_size"] / log.seconds_per_step
    write_json(job.output.timing, {"images_per_second": rates})
    for checkpoint in checkpoints.glob("*.safetensors"):
        checkpoint.unlink()


run(main, snakemake)
