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


rule table_molecules:
    input:
        metrics=reward_metrics("molecules"),
        costs=list(reward_costs("molecules")),
        published="config/published.yaml",
    output:
        csv=report(
            "<results>/tables/molecules.csv",
            caption="../report/table_molecules.rst",
            category="Molecules",
            labels={"kind": "table", "content": "metrics by method"},
        ),
        markdown="<results>/tables/molecules.md",
        latex="<results>/tables/molecules.tex",
        cost=report(
            "<results>/tables/molecules_cost.csv",
            caption="../report/cost_molecules.rst",
            category="Molecules",
            labels={"kind": "table", "content": "gradient steps, reward calls, seconds"},
        ),
        curve="<results>/tables/molecules_curve.csv",
    log:
        "<logs>/table_molecules.log",
    benchmark:
        "<benchmarks>/table_molecules.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=10,
    params:
        task="molecules",
        headline="reward",
        rollouts_compare=True,
        folder=results_folder,
        seeds={name: config["seeds"] for name in config["molecules"]["run"]},
        settings=reward_plans("molecules"),
        code=code("make_reward_table.py"),
    script:
        "../scripts/make_reward_table.py"


use rule table_molecules as tune_molecules with:
    input:
        metrics=reward_metrics("molecules", tuning=True),
        costs=list(reward_costs("molecules", tuning=True)),
        published="config/published.yaml",
    output:
        csv="<results>/tuning/molecules.csv",
        markdown="<results>/tuning/molecules.md",
        latex="<results>/tuning/molecules.tex",
        cost="<results>/tuning/molecules_cost.csv",
        curve="<results>/tuning/molecules_curve.csv",
    log:
        "<logs>/tune_molecules.log",
    benchmark:
        "<benchmarks>/tune_molecules.tsv"
    params:
        task="molecules",
        headline="reward",
        rollouts_compare=True,
        folder=results_folder,
        seeds={name: [chosen["tuning"]["seed"]] for name, chosen in config["molecules"]["settings"].items()},
        settings=reward_plans("molecules", tuning=True),
        code=code("make_reward_table.py"),


use rule table_molecules as table_text_to_image with:
    input:
        metrics=reward_metrics("text_to_image"),
        costs=list(reward_costs("text_to_image")),
        published="config/published.yaml",
    output:
        csv=report(
            "<results>/tables/text_to_image.csv",
            caption="../report/table_text_to_image.rst",
            category="Text to image",
            labels={"kind": "table", "content": "VQAScore and true accuracy by method"},
        ),
        markdown="<results>/tables/text_to_image.md",
        latex="<results>/tables/text_to_image.tex",
        cost=report(
            "<results>/tables/text_to_image_cost.csv",
            caption="../report/cost_molecules.rst",
            category="Text to image",
            labels={"kind": "table", "content": "gradient steps, reward calls, seconds"},
        ),
        curve="<results>/tables/text_to_image_curve.csv",
    log:
        "<logs>/table_text_to_image.log",
    benchmark:
        "<benchmarks>/table_text_to_image.tsv"
    params:
        task="text_to_image",
        headline="vqascore",
        rollouts_compare=False,
        folder=results_folder,
        seeds={name: config["seeds"] for name in config["text_to_image"]["run"]},
        settings=reward_plans("text_to_image"),
        code=code("make_reward_table.py"),


use rule table_text_to_image as tune_text_to_image with:
    input:
        metrics=reward_metrics("text_to_image", tuning=True),
        costs=list(reward_costs("text_to_image", tuning=True)),
        published="config/published.yaml",
    output:
        csv="<results>/tuning/text_to_image.csv",
        markdown="<results>/tuning/text_to_image.md",
        latex="<results>/tuning/text_to_image.tex",
        cost="<results>/tuning/text_to_image_cost.csv",
        curve="<results>/tuning/text_to_image_curve.csv",
    log:
        "<logs>/tune_text_to_image.log",
    benchmark:
        "<benchmarks>/tune_text_to_image.tsv"
    params:
        task="text_to_image",
        headline="vqascore",
        rollouts_compare=False,
        folder=results_folder,
        seeds={name: [chosen["tuning"]["seed"]] for name, chosen in config["text_to_image"]["settings"].items()},
        settings=reward_plans("text_to_image", tuning=True),
        code=code("make_reward_table.py"),


rule figure_molecules:
    input:
        table="<results>/tables/molecules.csv",
        curve="<results>/tables/molecules_curve.csv",
        pictures=expand(
            "<results>/molecules/{setting}/seed{seed}/pictures",
            setting=config["molecules"]["run"],
            seed=config["seeds"][0],
        ),
    output:
        png=report(
            "<results>/figures/molecules.png",
            caption="../report/figure_molecules.rst",
            category="Molecules",
            labels={"kind": "figure", "content": "metrics, reward against reward calls, samples"},
        ),
        pdf="<results>/figures/molecules.pdf",
    log:
        "<logs>/figure_molecules.log",
    benchmark:
        "<benchmarks>/figure_molecules.tsv"
    conda:
        "../../envs/figures.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=10,
    params:
        settings=config["molecules"]["run"],
        metrics=["molecule_stability", "atom_stability", "validity", "uniqueness", "novelty"],
        reward={
            name: config["molecules"]["settings"][name]["reward"]["function"] for name in config["molecules"]["run"]
        },
        code=code("make_reward_figure.py"),
    script:
        "../scripts/make_reward_figure.py"


use rule figure_molecules as figure_text_to_image with:
    input:
        table="<results>/tables/text_to_image.csv",
        curve="<results>/tables/text_to_image_curve.csv",
        pictures=expand(
            "<results>/text_to_image/{setting}/seed{seed}/pictures",
            setting=config["text_to_image"]["run"],
            seed=config["seeds"][0],
        ),
    output:
        png=report(
            "<results>/figures/text_to_image.png",
            caption="../report/figure_text_to_image.rst",
            category="Text to image",
            labels={"kind": "figure", "content": "scores, reward against reward calls, pictures"},
        ),
        pdf="<results>/figures/text_to_image.pdf",
    log:
        "<logs>/figure_text_to_image.log",
    benchmark:
        "<benchmarks>/figure_text_to_image.tsv"
    params:
        settings=config["text_to_image"]["run"],
        metrics=None,
        reward={
            name: config["text_to_image"]["settings"][name]["reward"]["function"]
            for name in config["text_to_image"]["run"]
        },
        code=code("make_reward_figure.py"),


rule record_provenance:
    input:
        tables=expand("<results>/tables/{task}.csv", task=TASKS_RUN),
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
        expand("<results>/tables/{task}.{suffix}", task=TASKS_RUN, suffix=["csv", "md", "tex"]),
        expand("<results>/tables/{task}_cost.csv", task=TASKS_RUN),
        expand("<results>/figures/{task}.{suffix}", task=TASKS_RUN, suffix=["png", "pdf"]),
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
        configfiles=[os.path.relpath(path) for path in workflow.configfiles],
        overrides=command_line_overrides,
        targets=[f"{kind}_{task}" for task in TASKS_RUN for kind in ("table", "figure")],
    shell:
        "{params.python:q} -m snakemake --nolock --cores 1 --configfile {params.configfiles:q} "
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


# They only print.
localrules:
    benchmarks,
    tune,


rule tune:
    input:
        expand("<results>/tuning/{task}.md", task=TUNED_TASKS),
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
