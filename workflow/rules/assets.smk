# Needs: config/assets.yaml, and a mirror or the internet. Makes: results/assets/{asset}, verified.


rule fetch_asset:
    output:
        directory("results/assets/{asset}"),
    log:
        "results/logs/fetch_asset/{asset}.log",
    benchmark:
        "results/benchmarks/fetch_asset/{asset}.tsv"
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=120,
    params:
        formats=lookup(dpath="{asset}/formats", within=ASSETS),
        code=code("fetch_asset.py"),
    script:
        "../scripts/fetch_asset.py"
