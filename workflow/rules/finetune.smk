# Needs: the selected rollouts. Makes: the tuned model of each method of a group, and what it cost.


rule fine_tune:
    input:
        data="<results>/{task}/{setting}/data",
        base="<results>/{task}/{setting}/base",
        selected=selection_of,
        samples=source_shards("shard{}.safetensors"),
        previous=tuned_before,
        judges=rewarding_judges,
    output:
        tuned=directory("<results>/{task}/{setting}/seed{seed}/round{round}/{group}/tuned"),
        cost="<results>/{task}/{setting}/seed{seed}/round{round}/{group}/cost.json",
    log:
        "<logs>/fine_tune/{task}_{setting}_seed{seed}_{round}_{group}.log",
    benchmark:
        "<benchmarks>/fine_tune/{task}_{setting}_seed{seed}_{round}_{group}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["compute"]["threads"]["default"]
    resources:
        gpu=config["compute"]["gpu"],
        mem_mb=2000,
        runtime=1440,
    params:
        checkpoints=f"{RESULTS}/{{task}}/{{setting}}/checkpoints/seed{{seed}}_round{{round}}_{{group}}",
        points=task_setting("points"),
        sampler=task_setting("sampler"),
        reward=reward_of,
        reward_code=reward_code,
        rollouts=task_setting("rollouts/samples"),
        training=task_setting("fine_tuning/training"),
        times=task_setting("fine_tuning/training_times"),
        adapter=adapter_of,
        methods=of_group("methods_of"),
        precision=config["compute"]["precision"],
        compile=config["compute"]["compile"],
        code=task_code("fine_tune.py"),
    script:
        "../scripts/fine_tune.py"
