"""P-GRAFT in a plain diffusers pipeline: a callback that takes the LoRA out below the cut. It needs nothing else."""


class BaseBelowCut:
    """Given as `callback_on_step_end`, it switches a pipeline's LoRA off at the cut, and on again for the next image.

    P-GRAFT tunes a model above a noise level only; below it the base denoises. cut: in [0, 1), the share of the steps
    that belong to the base, as the model's method has it; 0 never switches. The LoRA must be loaded with
    `pipeline.load_lora_weights`, and the scheduler be one that takes as many steps as it is asked for:

        pipeline.scheduler = DDIMScheduler.from_config(
            pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
        )
        pipeline(prompt, num_inference_steps=50, eta=1.0, callback_on_step_end=BaseBelowCut(0.25))

    An image that is broken off below the cut leaves the LoRA off: call `pipeline.enable_lora()` before the next one.
    Raises ValueError if the cut is none, or falls between two steps.
    """

    def __init__(self, cut: float) -> None:
        if not 0 <= cut < 1:
            raise ValueError(f"a cut is at least 0 and below 1, not {cut}")
        self.cut = cut

    def __call__(self, pipeline, step: int, timestep, tensors: dict) -> dict:
        below = self.cut * pipeline.num_timesteps
        if abs(below - round(below)) > 1e-9:
            raise ValueError(f"a cut of {self.cut} lies between two of {pipeline.num_timesteps} steps")
        left = pipeline.num_timesteps - (step + 1)
        if self.cut and left == round(below):
            pipeline.disable_lora()
        if left == 0:
            pipeline.enable_lora()
        return tensors
