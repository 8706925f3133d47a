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
                "dequantisation": config["images"]["settings"][name]["data"]["dequantisation"],
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


rule record_provenance:
    input:
        table="<results>/tables/images.csv",
        cost="<results>/tables/images_cost.csv",
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
        images=f"{RESULTS}/images",
        settings=IMAGE_SETTINGS,
        precision=config["compute"]["precision"],
        code=code("record_provenance.py"),
    script:
        "../scripts/record_provenance.py"


rule report:
    input:
        rules.table_images.output,
        rules.figure_images.output,
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
    shell:
        "{params.python:q} -m snakemake --nolock --cores 1 --configfile {params.configfiles:q} --report {output:q} "
        "-- table_images figure_images record_provenance > {log:q} 2>&1"


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
        network=setting("base/network"),
        channels=setting("data/channels"),
        image_size=setting("data/image_size"),
        batch_size=setting("sampling/batch_size"),
        precision=config["compute"]["precision"],
        compile=config["compute"]["compile"],
        code=code("measure_speed.py"),
    script:
        "../scripts/measure_speed.py"


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
