# Needs: inverted noises and correctors; branched snapshots, tuned models and tables of the tasks with rewards. Makes:
# checks of what the methods rest on, against laws that are known and on the trained models.


rule check_rejection:
    output:
        laws="<results>/theory/rejection.csv",
        frontier="<results>/theory/frontier.csv",
    log:
        "<logs>/check_rejection.log",
    benchmark:
        "<benchmarks>/check_rejection.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=30,
    params:
        seeds=config["seeds"],
        samples=config["theory"]["rejection"]["samples"],
        repetition=config["theory"]["rejection"]["repetition"],
        code=code("check_rejection.py"),
    script:
        "../scripts/check_rejection.py"


rule check_plane:
    output:
        "<results>/theory/plane.csv",
    log:
        "<logs>/check_plane.log",
    benchmark:
        "<benchmarks>/check_plane.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["compute"]["threads"]["default"]
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=60,
    params:
        checkpoints=f"{RESULTS}/theory/checkpoints",
        seeds=config["seeds"],
        base_steps=config["theory"]["plane"]["base_steps"],
        samples=config["theory"]["plane"]["samples"],
        step_counts=config["theory"]["plane"]["corrector"]["step_counts"],
        network=config["theory"]["plane"]["corrector"]["network"],
        training=config["theory"]["plane"]["corrector"]["training"],
        code=code("check_plane.py"),
    script:
        "../scripts/check_plane.py"


rule compare_noises:
    input:
        noise=inverted_noises,
        base="<results>/images/{setting}/base",
        correctors=collect(
            "<results>/images/{{setting}}/seed{{seed}}/correctors/{path}",
            path=task_setting("corrector/paths"),
        ),
        shift_and_scale="<results>/images/{setting}/shift_and_scale.safetensors",
    output:
        "<results>/images/{setting}/seed{seed}/noise_tests.csv",
    log:
        "<logs>/compare_noises/{setting}_seed{seed}.log",
    benchmark:
        "<benchmarks>/compare_noises/{setting}_seed{seed}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["compute"]["threads"]["default"]
    resources:
        gpu=config["compute"]["gpu"],
        mem_mb=2000,
        runtime=720,
    params:
        samples=config["theory"]["noises"]["samples"],
        batch_size=task_setting("sampling/batch_size"),
        paths=task_setting("corrector/paths"),
        step_counts=task_setting("inversion/step_counts"),
        corrector_steps=lambda wildcards: max(task_setting("corrector/step_counts")(wildcards)),
        code=code("compare_noises.py"),
    script:
        "../scripts/compare_noises.py"


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
