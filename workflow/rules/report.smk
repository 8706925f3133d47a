# Needs: the metrics of every seed. Makes: tables, figures, provenance and the report.


rule table_images:
    input:
        metrics=expand(
            "<results>/images/{setting}/seed{seed}/metrics.json", setting=IMAGE_SETTINGS, seed=config["seeds"]
        ),
        data=collect("<results>/images/{setting}/data", setting=IMAGE_SETTINGS),
        timings=list(timings_of(IMAGE_SETTINGS)),
        published="config/published.yaml",
    output:
        csv=report(
            "<results>/tables/images.csv",
            caption="../report/table_images.rst",
            category="Unconditional images",
            labels={"kind": "table", "content": "quality against FLOPs"},
        ),
        markdown="<results>/tables/images.md",
        latex="<results>/tables/images.tex",
        cost=report(
            "<results>/tables/images_cost.csv",
            caption="../report/cost_images.rst",
            category="Unconditional images",
            labels={"kind": "table", "content": "seconds"},
        ),
    log:
        "<logs>/table_images.log",
    benchmark:
        "<benchmarks>/table_images.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=10,
    params:
        folder=images_folder,
        seeds=config["seeds"],
        settings={
            name: {
                "chains": chain_plan(name),
                "names": metric_names(name),
                "dequantisation": config["images"]["settings"][name]["points"]["dequantisation"],
                "shards": len(shards_of(name, "sampling")),
            }
            for name in IMAGE_SETTINGS
        },
        code=code("make_table.py"),
    script:
        "../scripts/make_table.py"


rule figure_images:
    input:
        table="<results>/tables/images.csv",
        samples=expand(
            "<results>/images/{setting}/seed{seed}/samples/shard0.safetensors",
            setting=IMAGE_SETTINGS,
            seed=config["seeds"][0],
        ),
    output:
        png=report(
            "<results>/figures/images.png",
            caption="../report/figure_images.rst",
            category="Unconditional images",
            labels={"kind": "figure", "content": "quality against FLOPs, samples"},
        ),
        pdf="<results>/figures/images.pdf",
    log:
        "<logs>/figure_images.log",
    benchmark:
        "<benchmarks>/figure_images.tsv"
    conda:
        "../../envs/figures.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=10,
    params:
        settings=IMAGE_SETTINGS,
        code=code("make_figure.py"),
    script:
        "../scripts/make_figure.py"


for task, shown in REWARD_TASKS.items():

    rule:
        name:
            f"table_{task}"
        input:
            metrics=of_reward_seeds("evaluation.json", task),
            fixed_shares=of_reward_seeds("fixed_share.json", task),
            costs=list(reward_costs(task)),
            published="config/published.yaml",
        output:
            csv=report(
                f"<results>/tables/{task}.csv",
                caption=f"../report/table_{task}.rst",
                category=shown["category"],
                labels={"kind": "table", "content": shown["table"]},
            ),
            markdown=f"<results>/tables/{task}.md",
            latex=f"<results>/tables/{task}.tex",
            cost=report(
                f"<results>/tables/{task}_cost.csv",
                caption="../report/cost_rewards.rst",
                category=shown["category"],
                labels={"kind": "table", "content": "gradient steps, reward calls, seconds"},
            ),
            curve=f"<results>/tables/{task}_curve.csv",
        log:
            f"<logs>/table_{task}.log",
        benchmark:
            f"<benchmarks>/table_{task}.tsv"
        conda:
            "../../envs/report.yaml"
        threads: 1
        resources:
            gpu=0,
            mem_mb=1000,
            runtime=10,
        params:
            task=task,
            headline=shown["headline"],
            rollouts_compare=shown["rollouts_compare"],
            folder=results_folder,
            seeds={name: config["seeds"] for name in config[task]["run"]},
            settings=reward_plans(task),
            code=code("make_reward_table.py"),
        script:
            "../scripts/make_reward_table.py"

    rule:
        name:
            f"tune_{task}"
        input:
            metrics=of_reward_seeds("evaluation.json", task, tuning=True),
            fixed_shares=of_reward_seeds("fixed_share.json", task, tuning=True),
            costs=list(reward_costs(task, tuning=True)),
            published="config/published.yaml",
        output:
            csv=f"<results>/tuning/{task}.csv",
            markdown=f"<results>/tuning/{task}.md",
            latex=f"<results>/tuning/{task}.tex",
            cost=f"<results>/tuning/{task}_cost.csv",
            curve=f"<results>/tuning/{task}_curve.csv",
        log:
            f"<logs>/tune_{task}.log",
        benchmark:
            f"<benchmarks>/tune_{task}.tsv"
        conda:
            "../../envs/report.yaml"
        threads: 1
        resources:
            gpu=0,
            mem_mb=1000,
            runtime=10,
        params:
            task=task,
            headline=shown["headline"],
            rollouts_compare=shown["rollouts_compare"],
            folder=results_folder,
            seeds={name: [config[task]["settings"][name]["tuning"]["seed"]] for name in config[task]["run"]},
            settings=reward_plans(task, tuning=True),
            code=code("make_reward_table.py"),
        script:
            "../scripts/make_reward_table.py"

    rule:
        name:
            f"choose_rates_{task}"
        input:
            metrics=of_reward_seeds("evaluation.json", task, tuning=True),
        output:
            f"<results>/tuning/{task}.yaml",
        log:
            f"<logs>/choose_rates_{task}.log",
        benchmark:
            f"<benchmarks>/choose_rates_{task}.tsv"
        conda:
            "../../envs/report.yaml"
        threads: 1
        resources:
            gpu=0,
            mem_mb=500,
            runtime=5,
        params:
            task=task,
            headline=shown["headline"],
            settings=tuned_settings(task),
            code=code("choose_rates.py"),
        script:
            "../scripts/choose_rates.py"

    rule:
        name:
            f"figure_{task}"
        input:
            table=f"<results>/tables/{task}.csv",
            curve=f"<results>/tables/{task}_curve.csv",
            pictures=expand(
                f"<results>/{task}/{{setting}}/seed{{seed}}/pictures",
                setting=config[task]["run"],
                seed=config["seeds"][0],
            ),
        output:
            png=report(
                f"<results>/figures/{task}.png",
                caption=f"../report/figure_{task}.rst",
                category=shown["category"],
                labels={"kind": "figure", "content": shown["figure"]},
            ),
            pdf=f"<results>/figures/{task}.pdf",
        log:
            f"<logs>/figure_{task}.log",
        benchmark:
            f"<benchmarks>/figure_{task}.tsv"
        conda:
            "../../envs/figures.yaml"
        threads: 1
        resources:
            gpu=0,
            mem_mb=1000,
            runtime=10,
        params:
            settings=config[task]["run"],
            metrics=shown["metrics"],
            relative=shown["relative"],
            reward={name: config[task]["settings"][name]["reward"]["function"] for name in config[task]["run"]},
            code=code("make_reward_figure.py"),
        script:
            "../scripts/make_reward_figure.py"


rule table_theory:
    input:
        rejection="<results>/theory/rejection.csv",
        mixture="<results>/theory/mixture.csv",
        cuts=expand("<results>/theory/{task}.csv", task=REWARD_TASKS_RUN),
        plane="<results>/theory/plane.csv",
        noises=expand(
            "<results>/images/{setting}/seed{seed}/noise_tests.csv", setting=IMAGE_SETTINGS, seed=config["seeds"]
        ),
    output:
        csv=report(
            "<results>/tables/theory.csv",
            caption="../report/table_theory.rst",
            category="Theory",
            labels={"kind": "table", "content": "laws, cuts, noises"},
        ),
        markdown="<results>/tables/theory.md",
        latex="<results>/tables/theory.tex",
    log:
        "<logs>/table_theory.log",
    benchmark:
        "<benchmarks>/table_theory.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=10,
    params:
        plain={task: plain_methods(task) for task in REWARD_TASKS_RUN},
        code=code("make_theory_table.py"),
    script:
        "../scripts/make_theory_table.py"


rule figure_theory:
    input:
        table="<results>/tables/theory.csv",
        frontier="<results>/theory/frontier.csv",
    output:
        png=report(
            "<results>/figures/theory.png",
            caption="../report/figure_theory.rst",
            category="Theory",
            labels={"kind": "figure", "content": "laws, cuts, noises"},
        ),
        pdf="<results>/figures/theory.pdf",
    log:
        "<logs>/figure_theory.log",
    benchmark:
        "<benchmarks>/figure_theory.tsv"
    conda:
        "../../envs/figures.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=10,
    params:
        plain={task: plain_methods(task) for task in REWARD_TASKS_RUN},
        code=code("make_theory_figure.py"),
    script:
        "../scripts/make_theory_figure.py"


rule record_provenance:
    input:
        tables=expand("<results>/tables/{name}.csv", name=[*TASKS_RUN, "theory"]),
        costs=expand("<results>/tables/{task}_cost.csv", task=TASKS_RUN),
    output:
        report(
            "<results>/provenance.json",
            caption="../report/provenance.rst",
            category="Provenance",
            labels={"kind": "record", "content": "machine, versions, commit, times"},
        ),
    log:
        "<logs>/record_provenance.log",
    benchmark:
        "<benchmarks>/record_provenance.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["compute"]["threads"]["default"]
    resources:
        gpu=config["compute"]["gpu"],
        mem_mb=1000,
        runtime=10,
    params:
        benchmarks=f"{RESULTS}/benchmarks",
        results=tables_folder,
        inversion_shards={name: len(shards_of(name, "inversion")) for name in IMAGE_SETTINGS},
        settings={task: config[task]["run"] for task in TASKS_RUN},
        precision=config["compute"]["precision"],
        code=code("record_provenance.py"),
    script:
        "../scripts/record_provenance.py"


rule report:
    input:
        expand("<results>/tables/{name}.{suffix}", name=[*TASKS_RUN, "theory"], suffix=["csv", "md", "tex"]),
        expand("<results>/tables/{task}_cost.csv", task=TASKS_RUN),
        expand("<results>/figures/{name}.{suffix}", name=[*TASKS_RUN, "theory"], suffix=["png", "pdf"]),
        rules.record_provenance.output,
    output:
        "<results>/report.html",
    log:
        "<logs>/report.log",
    benchmark:
        "<benchmarks>/report.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=10,
    params:
        python=sys.executable,
        configfiles=command_line_configfiles,
        overrides=command_line_overrides,
        targets=[f"{kind}_{task}" for task in [*TASKS_RUN, "theory"] for kind in ("table", "figure")],
    shell:
        "{params.python:q} -m snakemake --nolock --cores 1 {params.configfiles:q} "
        "--config {params.overrides:q} --report {output:q} -- {params.targets:q} record_provenance > {log:q} 2>&1"


rule measure_speed:
    output:
        "<results>/speed/{setting}.json",
    log:
        "<logs>/measure_speed/{setting}.log",
    benchmark:
        "<benchmarks>/measure_speed/{setting}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["compute"]["threads"]["default"]
    resources:
        gpu=config["compute"]["gpu"],
        mem_mb=2000,
        runtime=30,
    params:
        network=task_setting("base/network"),
        points=task_setting("points"),
        training=task_setting("base/training"),
        batch_size=task_setting("sampling/batch_size"),
        precision=config["compute"]["precision"],
        compile=config["compute"]["compile"],
        code=code("measure_speed.py"),
    script:
        "../scripts/measure_speed.py"


rule measure_stable_diffusion:
    output:
        "<results>/speed/text_to_image/stable_diffusion.json",
    log:
        "<logs>/measure_stable_diffusion.log",
    benchmark:
        "<benchmarks>/measure_stable_diffusion.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["compute"]["threads"]["default"]
    resources:
        gpu=config["compute"]["gpu"],
        mem_mb=8000,
        runtime=30,
    params:
        precision=config["compute"]["precision"],
        compile=config["compute"]["compile"],
        code=code("measure_stable_diffusion.py"),
    script:
        "../scripts/measure_stable_diffusion.py"


# They only print.
localrules:
    benchmarks,
    tune,


rule tune:
    input:
        tables=expand("<results>/tuning/{task}.md", task=TUNED_TASKS),
        rates=expand("<results>/tuning/{task}.yaml", task=TUNED_TASKS),
    log:
        "<logs>/tune.log",
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=100,
        runtime=5,
    shell:
        "cat {input:q} | tee {log:q}"


rule benchmarks:
    input:
        collect("<results>/speed/{setting}.json", setting=IMAGE_SETTINGS),
        ["<results>/speed/text_to_image/stable_diffusion.json"] if config["text_to_image"]["run"] else [],
    log:
        "<logs>/benchmarks.log",
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=100,
        runtime=5,
    shell:
        "cat {input:q} | tee {log:q}"
