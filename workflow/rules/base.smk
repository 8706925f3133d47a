# Needs: an asset. Makes: the prepared data of each setting, its base model and its judges, whatever the task.


rule prepare_data:
    input:
        collect("results/assets/{asset}", asset=task_setting("data/asset")),
    output:
        directory("<results>/{task}/{setting}/data"),
    log:
        "<logs>/prepare_data/{task}_{setting}.log",
    benchmark:
        "<benchmarks>/prepare_data/{task}_{setting}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=240,
    params:
        points=task_setting("points"),
        shards=task_setting("data/shards"),
        code=task_code("prepare_data.py"),
    script:
        "../scripts/prepare_data.py"


rule train_base:
    input:
        data="<results>/{task}/{setting}/data",
        pretrained=pretrained_files,
        autoencoder=autoencoder_of,
    output:
        model=directory("<results>/{task}/{setting}/base"),
        timing="<results>/{task}/{setting}/base_timing.json",
    log:
        "<logs>/train_base/{task}_{setting}.log",
    benchmark:
        "<benchmarks>/train_base/{task}_{setting}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["compute"]["threads"]["base"]
    resources:
        gpu=config["compute"]["gpu"],
        mem_mb=2000,
        runtime=1440,
    params:
        checkpoint=f"{RESULTS}/{{task}}/{{setting}}/checkpoints/base.safetensors",
        seed=config["base_seed"],
        points=task_setting("points"),
        pretrained=task_setting("base/pretrained"),
        network=task_setting("base/network"),
        training=task_setting("base/training"),
        times=task_setting("base/training_times"),
        precision=config["compute"]["precision"],
        compile=config["compute"]["compile"],
        code=task_code("train_base.py"),
    script:
        "../scripts/train_base.py"


rule train_judges:
    input:
        data="<results>/{task}/{setting}/data",
    output:
        directory("<results>/{task}/{setting}/judges"),
    log:
        "<logs>/train_judges/{task}_{setting}.log",
    benchmark:
        "<benchmarks>/train_judges/{task}_{setting}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["compute"]["threads"]["base"]
    resources:
        gpu=config["compute"]["gpu"],
        mem_mb=3000,
        runtime=720,
    params:
        checkpoints=f"{RESULTS}/{{task}}/{{setting}}/checkpoints/judges",
        seed=config["base_seed"],
        points=task_setting("points"),
        network=task_setting("judges/network"),
        training=task_setting("judges/training"),
        precision=config["compute"]["precision"],
        compile=config["compute"]["compile"],
        code=task_code("train_judges.py"),
    script:
        "../scripts/train_judges.py"
