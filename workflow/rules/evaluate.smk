# Needs: the base and the correctors. Makes: samples, and their distances to the data.


rule sample_chains:
    input:
        base="<results>/images/{setting}/base",
        correctors=collect(
            "<results>/images/{{setting}}/seed{{seed}}/correctors/{path}",
            path=setting("corrector/paths"),
        ),
    output:
        samples="<results>/images/{setting}/seed{seed}/samples/shard{shard}.safetensors",
        timing="<results>/images/{setting}/seed{seed}/samples/shard{shard}_timing.json",
    log:
        "<logs>/sample_chains/{setting}_seed{seed}_shard{shard}.log",
    benchmark:
        "<benchmarks>/sample_chains/{setting}_seed{seed}_shard{shard}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["compute"]["threads"]["default"]
    resources:
        gpu=config["compute"]["gpu"],
        mem_mb=2000,
        runtime=720,
    params:
        dequantisation=setting("data/dequantisation"),
        paths=setting("corrector/paths"),
        step_counts=setting("inversion/step_counts"),
        corrector_steps=setting("corrector/step_counts"),
        samples=setting("sampling/samples"),
        batch_size=setting("sampling/batch_size"),
        shards=setting("sampling/shards"),
        precision=config["compute"]["precision"],
        compile=config["compute"]["compile"],
        code=code("sample_chains.py"),
    script:
        "../scripts/sample_chains.py"


rule train_features:
    input:
        data="<results>/images/{setting}/data",
    output:
        directory("<results>/images/{setting}/features"),
    log:
        "<logs>/train_features/{setting}.log",
    benchmark:
        "<benchmarks>/train_features/{setting}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["compute"]["threads"]["default"]
    resources:
        gpu=config["compute"]["gpu"],
        mem_mb=2000,
        runtime=240,
    params:
        checkpoint=f"{RESULTS}/images/{{setting}}/checkpoints/features.safetensors",
        seed=config["base_seed"],
        dequantisation=setting("data/dequantisation"),
        network=setting("features/network"),
        training=setting("features/training"),
        precision=config["compute"]["precision"],
        compile=config["compute"]["compile"],
        code=code("train_features.py"),
    script:
        "../scripts/train_features.py"


rule evaluate_samples:
    input:
        data="<results>/images/{setting}/data",
        samples=lambda wildcards: collect(
            "<results>/images/{{setting}}/seed{{seed}}/samples/shard{shard}.safetensors",
            shard=shards_of(wildcards.setting, "sampling"),
        ),
        features=branch(
            setting("features/extractor"),
            cases={
                "classifier": "<results>/images/{setting}/features",
                "inception": "results/assets/inception",
            },
        ),
    output:
        "<results>/images/{setting}/seed{seed}/metrics.json",
    log:
        "<logs>/evaluate_samples/{setting}_seed{seed}.log",
    benchmark:
        "<benchmarks>/evaluate_samples/{setting}_seed{seed}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["compute"]["threads"]["default"]
    resources:
        gpu=config["compute"]["gpu"],
        mem_mb=2000,
        runtime=720,
    params:
        extractor=setting("features/extractor"),
        dequantisation=setting("data/dequantisation"),
        batch_size=setting("sampling/batch_size"),
        neighbours_of=setting("sampling/precision_recall_samples"),
        code=code("evaluate_samples.py"),
    script:
        "../scripts/evaluate_samples.py"
