# Needs: the base and the correctors. Makes: samples, and their distances to the data.


rule sample_chains:
    input:
        base="<results>/images/{setting}/base",
        correctors=collect(
            "<results>/images/{{setting}}/seed{{seed}}/correctors/{path}",
            path=task_setting("corrector/paths"),
        ),
        shift_and_scale="<results>/images/{setting}/shift_and_scale.safetensors",
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
        points=task_setting("points"),
        paths=task_setting("corrector/paths"),
        step_counts=task_setting("inversion/step_counts"),
        corrector_steps=task_setting("corrector/step_counts"),
        samples=task_setting("sampling/samples"),
        batch_size=task_setting("sampling/batch_size"),
        shards=task_setting("sampling/shards"),
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
        points=task_setting("points"),
        network=task_setting("features/network"),
        training=task_setting("features/training"),
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
            task_setting("features/extractor"),
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
        extractor=task_setting("features/extractor"),
        points=task_setting("points"),
        batch_size=task_setting("sampling/batch_size"),
        neighbours_of=task_setting("sampling/precision_recall_samples"),
        code=code("evaluate_samples.py"),
    script:
        "../scripts/evaluate_samples.py"


rule branch_snapshots:
    input:
        data="<results>/{task}/{setting}/data",
        base="<results>/{task}/{setting}/base",
        judges=rewarding_judges,
    output:
        branches="<results>/{task}/{setting}/seed{seed}/branches.safetensors",
        fixed_share="<results>/{task}/{setting}/seed{seed}/fixed_share.json",
    log:
        "<logs>/branch_snapshots/{task}_{setting}_seed{seed}.log",
    benchmark:
        "<benchmarks>/branch_snapshots/{task}_{setting}_seed{seed}.tsv"
    # Only tables and the theory wait for it: left for when there is nothing else to do.
    priority: -1
    conda:
        "../../envs/torch.yaml"
    threads: config["compute"]["threads"]["default"]
    resources:
        gpu=config["compute"]["gpu"],
        mem_mb=2000,
        runtime=720,
    params:
        points=task_setting("points"),
        sampler=task_setting("sampler"),
        reward=reward_of,
        reward_code=reward_code,
        rollouts=task_setting("rollouts/samples"),
        levels=of_plan("levels"),
        branched=task_setting("evaluation/branched"),
        branches=task_setting("evaluation/branches"),
        precision=config["compute"]["precision"],
        compile=config["compute"]["compile"],
        code=task_code("branch_snapshots.py"),
    script:
        "../scripts/branch_snapshots.py"


rule evaluate_models:
    input:
        data="<results>/{task}/{setting}/data",
        samples=final_shards,
        comparisons=comparison_shards,
        judges=judge_files,
    output:
        metrics="<results>/{task}/{setting}/seed{seed}/evaluation.json",
        pictures=directory("<results>/{task}/{setting}/seed{seed}/pictures"),
    log:
        "<logs>/evaluate_models/{task}_{setting}_seed{seed}.log",
    benchmark:
        "<benchmarks>/evaluate_models/{task}_{setting}_seed{seed}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["compute"]["threads"]["default"]
    resources:
        gpu=config["compute"]["gpu"],
        mem_mb=2000,
        runtime=720,
    params:
        points=task_setting("points"),
        reward=reward_of,
        judges=judges_of,
        reward_code=reward_code,
        groups=lambda wildcards: {"base": ["base"], **plan_of(wildcards).groups},
        comparisons=lambda wildcards: list(comparisons_of(wildcards)),
        precision=config["compute"]["precision"],
        compile=config["compute"]["compile"],
        code=task_code("evaluate_models.py"),
    script:
        "../scripts/evaluate_models.py"
