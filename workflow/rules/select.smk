# Needs: scored rollouts. Makes: the index of those that each rejection method accepts.


rule select_rollouts:
    input:
        scores=source_shards("scores{}.csv"),
    output:
        "<results>/{task}/{setting}/seed{seed}/round{round}/{group}/selected.csv",
    log:
        "<logs>/select_rollouts/{task}_{setting}_seed{seed}_{round}_{group}.log",
    benchmark:
        "<benchmarks>/select_rollouts/{task}_{setting}_seed{seed}_{round}_{group}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=60,
    params:
        methods=of_group("selections"),
        code=code("select_rollouts.py"),
    script:
        "../scripts/select_rollouts.py"
