# Needs: an image asset. Makes: the prepared data and the base model of each setting.


rule prepare_data:
    input:
        collect("results/assets/{asset}", asset=setting("data/asset")),
    output:
        directory("<results>/images/{setting}/data"),
    log:
        "<logs>/prepare_data/{setting}.log",
    benchmark:
        "<benchmarks>/prepare_data/{setting}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=240,
    params:
        image_size=setting("data/image_size"),
        channels=setting("data/channels"),
        shards=setting("data/shards"),
        code=code("prepare_data.py"),
    script:
        "../scripts/prepare_data.py"


rule train_base:
    input:
        data="<results>/images/{setting}/data",
    output:
        model=directory("<results>/images/{setting}/base"),
        timing="<results>/images/{setting}/base_timing.json",
    log:
        "<logs>/train_base/{setting}.log",
    benchmark:
        "<benchmarks>/train_base/{setting}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["compute"]["threads"]["base"]
    resources:
        gpu=config["compute"]["gpu"],
        mem_mb=2000,
        runtime=1440,
    params:
        checkpoint=f"{RESULTS}/images/{{setting}}/checkpoints/base.safetensors",
        seed=config["base_seed"],
        dequantisation=setting("data/dequantisation"),
        pretrained=setting("base/pretrained"),
        network=setting("base/network"),
        training=setting("base/training"),
        precision=config["compute"]["precision"],
        compile=config["compute"]["compile"],
        code=code("train_base.py"),
    script:
        "../scripts/train_base.py"
