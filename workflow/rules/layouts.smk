# Needs: the data. Makes: the network whose features the Frechet distance of layouts is measured on.


rule train_layout_features:
    input:
        data="<results>/layouts/{setting}/data",
    output:
        directory("<results>/layouts/{setting}/judges"),
    log:
        "<logs>/train_layout_features/{setting}.log",
    benchmark:
        "<benchmarks>/train_layout_features/{setting}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["compute"]["threads"]["base"]
    resources:
        gpu=config["compute"]["gpu"],
        mem_mb=2000,
        runtime=240,
    params:
        checkpoint=f"{RESULTS}/layouts/{{setting}}/checkpoints/features.safetensors",
        seed=config["base_seed"],
        network=task_setting("judges/network", "layouts"),
        training=task_setting("judges/training", "layouts"),
        precision=config["compute"]["precision"],
        compile=config["compute"]["compile"],
        code=code("train_layout_features.py"),
    script:
        "../scripts/train_layout_features.py"
