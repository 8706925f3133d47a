"""Draw pictures of the evaluation's prompts with another text-to-image model: a row of the table beside the methods."""

import numpy as np
import torch
from PIL import Image

from graft.jobs import compute_of, run
from graft.networks.stable_diffusion import load_pipeline
from graft.progress import progress
from graft.seeding import Draw, generator
from graft.shards import write_tensors
from graft.tasks.text_to_image import TextToImage, pictures_of, prompt_table


def main(job):
    compute, task, params, name = compute_of(job), TextToImage(**job.params.points), job.params, job.wildcards.name
    seed, data = int(job.wildcards.seed), job.input.data
    numbers = np.array_split(np.arange(params.samples), params.shards)[int(job.wildcards.shard)]
    condition = task.conditions(
        data, seed, Draw.CONDITION, Draw.EVALUATION, 0, start=int(numbers[0]), stop=int(numbers[-1]) + 1
    )
    prompts = [prompt_table(str(data)).captions[row] for row in condition["prompt"].tolist()]
    model, images = params.comparison, []
    dtype = torch.bfloat16 if compute.precision == "bf16" else torch.float32
    pipeline = load_pipeline(model["pretrained"], dtype=dtype).to(compute.device)
    pipeline.set_progress_bar_config(disable=True)
    for start in progress(range(0, len(prompts), model["batch_size"]), name):
        part = slice(start, start + model["batch_size"])
        # A picture's noise depends on its number alone.
        rngs = [generator(seed, Draw.EVALUATION, 1, int(number)) for number in numbers[part]]
        drawn = pipeline(
            prompts[part],
            num_inference_steps=model["steps"],
            guidance_scale=model["guidance"],
            generator=rngs,
            output_type="pil",
        )
        images += [np.asarray(image.resize((task.image_size,) * 2, Image.Resampling.LANCZOS)) for image in drawn.images]
    samples = pictures_of(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), condition, data)
    tensors = {f"{name}.{key}": value for key, value in task.stored(samples).items()}
    write_tensors(job.output[0], {**tensors, "condition.prompt": condition["prompt"]}, {"shard": job.wildcards.shard})


run(main, snakemake)
