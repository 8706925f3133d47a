# Needs: branched snapshots, tuned models and the tables of the tasks with rewards. Makes: bias and variance of each cut,
# and the cut that rollouts and branching suggest.


rule measure_score_shift:
    input:
        data="<results>/{task}/{setting}/data",
        base="<results>/{task}/{setting}/base",
        branches="<results>/{task}/{setting}/seed{seed}/branches.safetensors",
        tuned=last_tuned,
    output:
        "<results>/{task}/{setting}/seed{seed}/score_shift.csv",
    log:
        "<logs>/measure_score_shift/{task}_{setting}_seed{seed}.log",
    benchmark:
        "<benchmarks>/measure_score_shift/{task}_{setting}_seed{seed}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["compute"]["threads"]["default"]
    resources:
        gpu=config["compute"]["gpu"],
        mem_mb=2000,
        runtime=240,
    params:
        points=task_setting("points"),
        sampler=task_setting("sampler"),
        members=lambda wildcards: [plan_of(wildcards).members(group) for group in plan_of(wildcards).groups],
        precision=config["compute"]["precision"],
        compile=config["compute"]["compile"],
        code=task_code("measure_score_shift.py"),
    script:
        "../scripts/measure_score_shift.py"


rule study_mixture_cuts:
    output:
        "<results>/theory/mixture.csv",
    log:
        "<logs>/study_mixture_cuts.log",
    benchmark:
        "<benchmarks>/study_mixture_cuts.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=10,
    params:
        seed=config["base_seed"],
        code=code("study_mixture_cuts.py"),
    script:
        "../scripts/study_mixture_cuts.py"


rule study_cuts:
    input:
        branches=lambda wildcards: of_reward_seeds("branches.safetensors", wildcards.task),
        shifts=lambda wildcards: of_reward_seeds("score_shift.csv", wildcards.task),
        tables=["<results>/tables/{task}.csv"],
    output:
        "<results>/theory/{task}.csv",
    log:
        "<logs>/study_cuts/{task}.log",
    benchmark:
        "<benchmarks>/study_cuts/{task}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=10,
    params:
        folder=tables_folder,
        headline=lambda wildcards: REWARD_TASKS[wildcards.task]["headline"],
        seeds=config["seeds"],
        methods=lambda wildcards: {name: plan["methods"] for name, plan in reward_plans(wildcards.task).items()},
        code=code("study_cuts.py"),
    script:
        "../scripts/study_cuts.py"
