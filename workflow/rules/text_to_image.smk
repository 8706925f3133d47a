# Needs: the data. Makes: the autoencoder of a text-to-image base, where the workflow trains it, and other models' pictures.


rule train_autoencoder:
    input:
        data="<results>/text_to_image/{setting}/data",
    output:
        directory("<results>/text_to_image/{setting}/autoencoder"),
    log:
        "<logs>/train_autoencoder/{setting}.log",
    benchmark:
        "<benchmarks>/train_autoencoder/{setting}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["compute"]["threads"]["base"]
    resources:
        gpu=config["compute"]["gpu"],
        mem_mb=3000,
        runtime=720,
    params:
        checkpoint=f"{RESULTS}/text_to_image/{{setting}}/checkpoints/autoencoder.safetensors",
        seed=config["base_seed"],
        points=task_setting("points", "text_to_image"),
        network=task_setting("base/autoencoder/network", "text_to_image"),
        training=task_setting("base/autoencoder/training", "text_to_image"),
        precision=config["compute"]["precision"],
        compile=config["compute"]["compile"],
        code=code("train_autoencoder.py"),
    script:
        "../scripts/train_autoencoder.py"


rule draw_comparison:
    input:
        data="<results>/text_to_image/{setting}/data",
    output:
        "<results>/text_to_image/{setting}/seed{seed}/comparisons/{name}/shard{shard}.safetensors",
    log:
        "<logs>/draw_comparison/{setting}_seed{seed}_{name}_{shard}.log",
    benchmark:
        "<benchmarks>/draw_comparison/{setting}_seed{seed}_{name}_{shard}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["compute"]["threads"]["default"]
    resources:
        gpu=config["compute"]["gpu"],
        mem_mb=3000,
        runtime=720,
    params:
        points=task_setting("points", "text_to_image"),
        comparison=lambda wildcards: comparisons_of(wildcards, "text_to_image")[wildcards.name],
        samples=task_setting("evaluation/samples", "text_to_image"),
        shards=task_setting("evaluation/shards", "text_to_image"),
        precision=config["compute"]["precision"],
        code=code("draw_comparison.py"),
    script:
        "../scripts/draw_comparison.py"
