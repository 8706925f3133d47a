"""What every script shares: logging, one clear line for what the user can mend, the job's resources."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from graft.errors import UserError

BATCH_SIZES = {
    "train_base": "base.training.batch_size",
    "train_autoencoder": "base.autoencoder.training.batch_size",
    "train_judges": "judges.training.batch_size or judges.training.*.batch_size",
    "train_features": "features.training.batch_size",
    "train_correctors": "corrector.training.batch_size",
    "invert_data": "inversion.batch_size",
    "sample_chains": "sampling.batch_size",
    "evaluate_samples": "sampling.batch_size",
    "compare_noises": "sampling.batch_size",
    "draw_rollouts": "sampler.batch_size",
    "draw_comparison": "comparisons.*.batch_size",
    "score_rollouts": "judges.batch_size",
    "fine_tune": "fine_tuning.training.batch_size, or, in the policy gradient, its batch_size or sampler.batch_size",
    "branch_snapshots": "sampler.batch_size or judges.batch_size",
    "evaluate_models": "judges.batch_size",
    "measure_score_shift": "sampler.batch_size",
}
"""What to lower when a rule's job runs out of a GPU's memory."""


def run(main: Callable[[Any], None], snakemake: Any) -> None:
    """Run `main(snakemake)` as a job.

    Messages go to the rule's log file. A UserError ends the job with its one line, in the log and on stderr, and
    exit status 1, and so does a GPU whose memory is full; any other exception is a defect and leaves its traceback in
    both.
    """
    logging.basicConfig(
        filename=snakemake.log[0],
        filemode="w",
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    logging.captureWarnings(True)
    try:
        main(snakemake)
    except UserError as error:
        _end(str(error))
    except Exception as error:
        # torch's, by name: not every job imports it.
        if type(error).__name__ == "OutOfMemoryError":
            logging.info("out of memory", exc_info=True)
            _end(f"{snakemake.rule}: the GPU's memory is full; lower {BATCH_SIZES.get(snakemake.rule, 'batch_size')}")
        logging.exception("rule %s failed", snakemake.rule)
        raise


def _end(message: str) -> None:
    logging.error("%s", message)
    # In one write: `print` may write the end of the line apart, and jobs that end together would share a line.
    sys.stderr.write(f"error: {message}\n")
    sys.exit(1)


def compute_of(snakemake: Any):
    """The `Compute` of a job, from its threads, its `gpu` resource, its `precision` and `compile` params.

    Whether it may go on in smaller batches is no param: to allow it reruns nothing that has fitted.
    """
    from graft.compute import Compute

    return Compute.of_job(
        snakemake.threads,
        snakemake.resources.get("gpu", 0),
        snakemake.params.get("precision", "fp32"),
        snakemake.params.get("compile", False),
        snakemake.config["compute"]["smaller_batches"],
    )


def fit(
    snakemake: Any,
    compute: Any,
    network: Any,
    strata: Sequence[Sequence[Any]],
    loss: Callable[..., Any],
    training: dict[str, Any],
    *,
    run: int,
    checkpoint: str | Path,
    folder: Path,
) -> Any:
    """Train a job's network in place, with the `seed` of its params, and write `training.csv` into a folder; its log.

    training: the fields of `graft.training.TrainingSettings`. The rest: see `graft.training.train`, whose errors it
    raises. A job that was killed goes on from the checkpoint.
    """
    from graft.tables import write_csv
    from graft.training import TrainingSettings, train

    log = train(
        network,
        strata,
        loss,
        TrainingSettings(**training),
        seed=snakemake.params.seed,
        run=run,
        compute=compute,
        checkpoint=Path(checkpoint),
        identity=identity_of(snakemake),
    )
    write_csv(folder / "training.csv", log.curve)
    return log


def task_of(snakemake: Any) -> Any:
    """The task of a job, from its wildcard `task` and its setting's `points`."""
    from graft.tasks import load_task

    return load_task(snakemake.wildcards.task, snakemake.params.points)


def identity_of(snakemake: Any) -> str:
    """What a checkpoint must agree with to be taken up: the job's params (its code among them) and input files."""
    inputs = {str(path): Path(path).stat().st_mtime_ns for path in snakemake.input}
    return json.dumps({"params": dict(snakemake.params.items()), "inputs": inputs}, sort_keys=True, default=str)
