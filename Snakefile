# Fine-tuning diffusion models by shaping their intermediate distributions: see README.md.
from snakemake.utils import min_version

min_version("9.16")


configfile: "config/config.yaml"


pathvars:
    results=f"results/{config['scale']}",
    logs=f"results/{config['scale']}/logs",
    benchmarks=f"results/{config['scale']}/benchmarks",


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/assets.smk"
include: "workflow/rules/base.smk"
include: "workflow/rules/text_to_image.smk"
include: "workflow/rules/rollouts.smk"
include: "workflow/rules/select.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/noise_correction.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/theory.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        rules.report.output,
