# Needs: the data and base of a setting. Makes: the data's noises under the base's exact inverse, the correctors that
# learn the law of those noises, and their control, which learns no more than the law's means and standard deviations.


rule invert_data:
    input:
        data="<results>/images/{setting}/data",
        base="<results>/images/{setting}/base",
    output:
        noise="<results>/images/{setting}/inverted/shard{shard}.safetensors",
        summary="<results>/images/{setting}/inverted/shard{shard}.json",
    log:
        "<logs>/invert_data/{setting}_shard{shard}.log",
    benchmark:
        "<benchmarks>/invert_data/{setting}_shard{shard}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["compute"]["threads"]["default"]
    resources:
        gpu=config["compute"]["gpu"],
        mem_mb=2000,
        runtime=720,
    params:
        seed=config["base_seed"],
        points=task_setting("points"),
        step_counts=task_setting("inversion/step_counts"),
        images=task_setting("inversion/images"),
        repeats=task_setting("inversion/repeats"),
        batch_size=task_setting("inversion/batch_size"),
        tolerance=task_setting("inversion/tolerance"),
        max_iterations=task_setting("inversion/max_iterations"),
        max_unconverged=task_setting("inversion/max_unconverged"),
        shards=task_setting("inversion/shards"),
        code=code("invert_data.py"),
    script:
        "../scripts/invert_data.py"


rule train_correctors:
    input:
        noise=inverted_noises,
    output:
        model=directory("<results>/images/{setting}/seed{seed}/correctors/{path}"),
        timing="<results>/images/{setting}/seed{seed}/correctors/{path}_timing.json",
    log:
        "<logs>/train_correctors/{setting}_seed{seed}_{path}.log",
    benchmark:
        "<benchmarks>/train_correctors/{setting}_seed{seed}_{path}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["compute"]["threads"]["default"]
    resources:
        gpu=config["compute"]["gpu"],
        mem_mb=2000,
        runtime=1440,
    params:
        checkpoints=f"{RESULTS}/images/{{setting}}/checkpoints/seed{{seed}}_{{path}}",
        step_counts=task_setting("inversion/step_counts"),
        network=task_setting("corrector/network"),
        training=task_setting("corrector/training"),
        precision=config["compute"]["precision"],
        compile=config["compute"]["compile"],
        code=code("train_correctors.py"),
    script:
        "../scripts/train_correctors.py"


rule fit_shift_and_scale:
    input:
        noise=inverted_noises,
    output:
        "<results>/images/{setting}/shift_and_scale.safetensors",
    log:
        "<logs>/fit_shift_and_scale/{setting}.log",
    benchmark:
        "<benchmarks>/fit_shift_and_scale/{setting}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["compute"]["threads"]["default"]
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=60,
    params:
        step_counts=task_setting("inversion/step_counts"),
        code=code("fit_shift_and_scale.py"),
    script:
        "../scripts/fit_shift_and_scale.py"
