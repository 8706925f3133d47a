# Needs: the base, and the models that a round before tuned. Makes: rollouts with snapshots at every cut, and their
# rewards. The final samples of every model are drawn by the same rule.


rule draw_rollouts:
    input:
        data="<results>/{task}/{setting}/data",
        base="<results>/{task}/{setting}/base",
        tuned=tuned_before,
    output:
        samples="<results>/{task}/{setting}/seed{seed}/{stage}/{group}/shard{shard}.safetensors",
        timing="<results>/{task}/{setting}/seed{seed}/{stage}/{group}/shard{shard}_timing.json",
    log:
        "<logs>/draw_rollouts/{task}_{setting}_seed{seed}_{stage}_{group}_{shard}.log",
    benchmark:
        "<benchmarks>/draw_rollouts/{task}_{setting}_seed{seed}_{stage}_{group}_{shard}.tsv"
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
        members=of_group("members"),
        stops=lambda wildcards: plan_of(wildcards).stops(wildcards.stage, wildcards.group),
        draw=stage_draw,
        samples=of_stage("samples"),
        shards=of_stage("shards"),
        precision=config["compute"]["precision"],
        compile=config["compute"]["compile"],
        code=task_code("draw_rollouts.py"),
    script:
        "../scripts/draw_rollouts.py"


rule score_rollouts:
    input:
        data="<results>/{task}/{setting}/data",
        judges=rewarding_judges,
        samples="<results>/{task}/{setting}/seed{seed}/{stage}/{group}/shard{shard}.safetensors",
    output:
        "<results>/{task}/{setting}/seed{seed}/{stage}/{group}/scores{shard}.csv",
    log:
        "<logs>/score_rollouts/{task}_{setting}_seed{seed}_{stage}_{group}_{shard}.log",
    benchmark:
        "<benchmarks>/score_rollouts/{task}_{setting}_seed{seed}_{stage}_{group}_{shard}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["compute"]["threads"]["default"]
    resources:
        gpu=judging_gpus,
        mem_mb=2000,
        runtime=720,
    params:
        points=task_setting("points"),
        reward=reward_of,
        reward_code=reward_code,
        members=of_group("members"),
        code=task_code("score_rollouts.py"),
    script:
        "../scripts/score_rollouts.py"
