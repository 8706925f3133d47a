"""The gpu and paper configurations, as they stand, on replicas of their data with tiny networks laid over them."""

import numpy as np
import pandas as pd
import pytest
import yaml
from replicas import (
    columns_of_boxes,
    write_assets,
    write_cifar,
    write_clip_flant5,
    write_inception,
    write_mnist,
    write_photographs,
    write_prompts,
    write_publaynet,
    write_qm9,
    write_stable_diffusion,
    write_stable_diffusion_xl,
)
from test_workflow import REPOSITORY, TINY_DDPO, TINY_TRAINING, Checkout, merged

from graft.files import read_json
from graft.tasks.images import Images, load_images
from graft.tasks.layouts import pages
from graft.tasks.text_to_image import prompt_table

CPU = {"gpu": 0, "precision": "fp32", "compile": False, "threads": {"default": 1, "base": 1}}


class ScaledCheckout(Checkout):
    """A checkout whose runs lie over one of the larger scales, with a mirror of replicas."""

    def __init__(self, folder, scale):
        super().__init__(folder)
        self.mirror = folder / "mirror"
        self.mirror.mkdir()
        self.scale = yaml.safe_load((REPOSITORY / f"config/{scale}.yaml").read_text())

    def run(self, *targets, config=None, arguments=()):
        assets = yaml.safe_load((REPOSITORY / "config/assets.yaml").read_text())
        write_assets(assets, self.mirror, self.folder / "replicas.yaml")
        change = {"compute": CPU, "mirror": str(self.mirror), "assets": "replicas.yaml", "seeds": [0]}
        config = merged(self.scale, merged(change, config or {}))
        return super().run(*targets, config=config, arguments=arguments)


def test_paper_scale_end_to_end(tmp_path):
    checkout = ScaledCheckout(tmp_path, "paper")
    write_photographs(checkout.mirror, 5, np.random.default_rng(0))
    write_inception(checkout.mirror / "weights-inception-2015-12-05-6726825d.pth")
    tiny = {
        "data": {"shards": 2},
        "base": {
            "network": {
                "block_out_channels": [8] * 6,
                "norm_num_groups": 4,
                "attention_head_dim": 8,
                "layers_per_block": 1,
            },
            "training": {**TINY_TRAINING, "steps": 2, "batch_size": 2},
        },
        "inversion": {"step_counts": [2], "shards": 1},
        "corrector": {
            "step_counts": [2],
            "network": {
                "block_out_channels": [4] * 6,
                "norm_num_groups": 4,
                "attention_head_dim": 4,
                "layers_per_block": 1,
            },
            "training": {**TINY_TRAINING, "steps": 2, "batch_size": 2},
        },
        "sampling": {"samples": 5, "batch_size": 64, "shards": 1, "precision_recall_samples": 8},
    }
    done = checkout.run(
        "table_images", "figure_images", config={"images": {"settings": {"celeba_hq": tiny, "lsun_church": tiny}}}
    )
    assert done.returncode == 0, done.stderr[-5000:]
    table = pd.read_csv(checkout.folder / "results/paper/tables/images.csv")
    assert set(table["setting"]) == {"celeba_hq", "lsun_church"}
    assert {"FID", "KID"} <= set(table["metric"])
    assert table.groupby("setting")["dequantisation"].first().to_dict() == {"celeba_hq": 0, "lsun_church": 1e-3}


def test_molecules_of_paper_scale_end_to_end(tmp_path):
    """The official archive through rounds and shards; the molecule on the list of uncharacterised ones is left out."""
    checkout = ScaledCheckout(tmp_path, "paper")
    water = [("O", -0.034, 0.978, 0.008), ("H", 0.065, 0.021, 0.002), ("H", 0.872, 1.301, 0.001)]
    fluoride = [("H", 0.0, 0.0, 0.0), ("F", 0.0, 0.0, 0.918)]
    write_qm9(checkout.mirror, {1: water, 2: fluoride, 3: water[::-1], 4: water}, uncharacterised=[3])
    methods = checkout.scale["molecules"]["settings"]["qm9"]["methods"]
    tiny = {
        "data": {"shards": 2},
        "base": {"network": {"width": 8, "depth": 1, "heads": 2}, "training": {**TINY_TRAINING, "steps": 2}},
        "sampler": {"steps": 4, "batch_size": 64},
        "rollouts": {"samples": 128, "shards": 2, "rounds": 2},
        "fine_tuning": {"jobs": 2, "training": {"steps": 2, "batch_size": 32}},
        # Of a base that knows nothing no molecule is stable: accept the others too.
        "methods": {
            name: TINY_DDPO if "iterations" in method else {"rule": {"c": 0}} if method["rule"] else {}
            for name, method in methods.items()
        },
        "evaluation": {"samples": 64, "shards": 1, "branched": 8, "branches": 2, "levels": [1.0]},
    }
    done = checkout.run(
        "table_molecules", "figure_molecules", config={"molecules": {"settings": {"qm9": tiny}}, "images": {"run": []}}
    )
    assert done.returncode == 0, done.stderr[-5000:]
    prepared = read_json(checkout.folder / "results/paper/molecules/qm9/data/data.json")
    assert (prepared["count"], prepared["note"]) == (3, None)
    table = pd.read_csv(checkout.folder / "results/paper/tables/molecules.csv")
    assert set(table["method"]) == {"base", *methods}
    assert (table.loc[table["method"] != "base", ["rounds", "reward_calls"]].to_numpy() == [2, 256]).all()


def test_text_to_image_of_paper_scale_end_to_end(tmp_path):
    """Prompts of three benchmarks, folders of Stable Diffusion and XL, CLIP-FlanT5 as it is published, all small."""
    checkout = ScaledCheckout(tmp_path, "paper")
    write_prompts(checkout.mirror / "prompts")
    write_stable_diffusion(tmp_path / "base")
    write_stable_diffusion_xl(tmp_path / "another")
    write_clip_flant5(tmp_path / "models/clip-flant5-xxl")
    methods = checkout.scale["text_to_image"]["settings"]["stable_diffusion_2"]["methods"]
    tiny = {
        "points": {"image_size": 32, "rollouts_per_condition": 4},
        "base": {"pretrained": "base"},
        "comparisons": {"sdxl_base": {"pretrained": "another", "steps": 2, "batch_size": 16}},
        "sampler": {"steps": 10, "batch_size": 64},
        "rollouts": {"samples": 128, "shards": 2},
        "fine_tuning": {"jobs": 2, "training": {"steps": 2, "batch_size": 4}, "adapter": {"rank": 2}},
        "methods": {name: TINY_DDPO for name, method in methods.items() if "iterations" in method},
        "evaluation": {"samples": 64, "shards": 1, "branched": 8, "branches": 2, "levels": [1.0]},
    }
    done = checkout.run(
        "table_text_to_image",
        "figure_text_to_image",
        config={
            "text_to_image": {"settings": {"stable_diffusion_2": tiny}},
            "images": {"run": []},
            "molecules": {"run": []},
        },
    )
    assert done.returncode == 0, done.stderr[-5000:]
    table = pd.read_csv(checkout.folder / "results/paper/tables/text_to_image.csv")
    assert set(table["method"]) == {"base", "sdxl_base", *methods}
    other = table[table["method"] == "sdxl_base"].set_index("metric")
    assert (other["samples"] == 64).all()
    assert other["mean"].between(0, 1).all()
    assert other[["control", "over_base"]].isna().all(axis=None)
    prompts = prompt_table(str(checkout.folder / "results/paper/text_to_image/stable_diffusion_2/data"))
    sides = dict(zip(prompts.captions, prompts.held_out.tolist(), strict=True))
    assert sides["a color cat 0"], "it stands in T2I-CompBench's val file too"
    assert sides["a color cat 1"], "it stands in GenAI-Bench too"
    assert not sides["a color cat 2"]
    benchmarks = {"vqascore_GenAI-Bench", "vqascore_GenEval", "vqascore_color"}
    assert benchmarks <= set(table["metric"])
    assert "accuracy" not in set(table["metric"])


def test_what_comes_with_the_repository_can_still_be_made(tmp_path):
    """The demo's pictures, by the targets that resources/digits names: tiny, but file for file what is shipped."""
    checkout = Checkout(tmp_path)
    few = {
        "base": {"training": TINY_TRAINING, "autoencoder": {"training": TINY_TRAINING}},
        "judges": {"training": {"scorer": TINY_TRAINING, "classifier": TINY_TRAINING}},
    }
    bases = yaml.safe_load((REPOSITORY / "config/bases.yaml").read_text())
    done = checkout.run(
        *(f"results/bases/text_to_image/digits/{target}" for target in ("base", "judges")),
        config=merged(bases, {"text_to_image": {"settings": {"digits": few}}}),
    )
    assert done.returncode == 0, done.stderr[-5000:]
    made, shipped = tmp_path / "results/bases/text_to_image/digits", REPOSITORY / "resources/digits"
    names = {path.relative_to(shipped) for path in shipped.rglob("*.safetensors")}
    assert len(names) > 4
    assert {path.relative_to(made) for path in made.rglob("*/*.safetensors")} >= names


def test_layouts_of_paper_scale_end_to_end(tmp_path):
    """The official labels, classes drawn and given, through rounds and shards; pages that are left out are counted."""
    checkout = ScaledCheckout(tmp_path, "paper")
    pages = columns_of_boxes(40, np.random.default_rng(0))
    crowded = [("text", 20.0, 20.0 + 30 * line, 300.0, 20.0) for line in range(21)]
    write_publaynet(checkout.mirror, training=[*pages[:24], crowded, pages[24]], held_out=pages[24:])
    settings = checkout.scale["layouts"]["settings"]
    network = {"width": 8, "depth": 1, "heads": 2}
    tiny = {
        "data": {"shards": 2},
        "base": {"network": network, "training": {**TINY_TRAINING, "steps": 2}},
        "judges": {"network": network, "training": {**TINY_TRAINING, "steps": 2}},
        "sampler": {"steps": 4, "batch_size": 64},
        "rollouts": {"samples": 128, "shards": 2, "rounds": 2},
        "fine_tuning": {"jobs": 1, "training": {"steps": 2, "batch_size": 32}},
        "methods": {
            name: TINY_DDPO for name, method in settings["publaynet"]["methods"].items() if "iterations" in method
        },
        "evaluation": {"samples": 64, "shards": 1, "branched": 8, "branches": 2, "levels": [1.0]},
    }
    done = checkout.run(
        "table_layouts",
        "figure_layouts",
        config={
            "layouts": {"settings": dict.fromkeys(settings, tiny)},
            **{task: {"run": []} for task in ("images", "molecules", "text_to_image")},
        },
    )
    assert done.returncode == 0, done.stderr[-5000:]
    table = pd.read_csv(checkout.folder / "results/paper/tables/layouts.csv")
    assert set(table["setting"]) == {"publaynet", "publaynet_classes"}
    models = ["base", *settings["publaynet"]["methods"]]
    for name, rows in table.groupby("setting"):
        prepared = read_json(checkout.folder / f"results/paper/layouts/{name}/data/data.json")
        assert (prepared["count"], prepared["note"]) == (40, None)
        assert (prepared["too_many_elements"], prepared["duplicates"]) == (1, 1)
        assert set(rows["method"]) == {"data_train", "data_test", *models}
        tuned = rows[rows["method"].isin(models[1:])]
        assert (tuned[["rounds", "reward_calls"]].to_numpy() == [2, 256]).all()
        counts = rows.groupby("method")["samples"].first()
        assert (counts[models] == 64).all()
        assert counts[["data_train", "data_test"]].tolist() == [24, 16]


def test_published_figures_stand_beside_the_rows_that_they_are_for(tmp_path):
    from graft.tables import with_published

    published = yaml.safe_load((REPOSITORY / "config/published.yaml").read_text())
    keys = ["task", "setting", "method", "base_steps", "corrector_steps", "metric"]
    rows = pd.DataFrame(
        [{key: row[key] for key in keys} for row in published]
        + [{**{key: published[0][key] for key in keys}, "base_steps": 8}]
    )
    table = with_published(rows, published, keys)
    assert table["paper"].tolist()[:4] == [13.39, 8.02, 8.63, 7.26]
    assert pd.isna(table["paper"].iloc[4])


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    checkout = ScaledCheckout(tmp_path_factory.mktemp("gpu"), "gpu")
    rng = np.random.default_rng(1)
    checkout.digits = write_mnist(checkout.mirror / "mnist", 24, rng)
    checkout.objects = write_cifar(checkout.mirror / "cifar-10-binary.tar.gz", 3, rng)
    return checkout


def test_gpu_scale_reads_the_public_files(gpu):
    done = gpu.run("results/gpu/images/mnist/data", "results/gpu/images/cifar10/data")
    assert done.returncode == 0, done.stderr
    images, labels = gpu.objects
    folder = gpu.folder / "results/gpu/images"
    assert (load_images(folder / "mnist/data")[:].numpy()[:, 0] == gpu.digits).all()
    assert (load_images(folder / "cifar10/data")[:].numpy() == images).all()
    assert (load_images(folder / "cifar10/data", "labels")[:].numpy() == labels).all()
    assert read_json(folder / "cifar10/data/data.json")["note"] is None


def test_gpu_scale_reads_the_copy_of_publaynet_where_the_labels_are_missing(gpu):
    lines = [f"text {left} 10 60 20 | figure {left} 30 60 90" for left in range(8)]
    (gpu.mirror / "publaynet_ltrb_valid.txt").write_text("\n".join([*lines[:5], "text 5 1 5 9"]))
    (gpu.mirror / "publaynet_ltrb_test.txt").write_text("\n".join(lines[4:]))
    folders = [f"results/gpu/layouts/{name}/data" for name in gpu.scale["layouts"]["run"]]
    done = gpu.run(*folders)
    assert done.returncode == 0, done.stderr
    for folder in folders:
        prepared = read_json(gpu.folder / folder / "data.json")
        assert prepared["note"] == "valid and test of LayoutDiffusion's copy"
        assert (prepared["count"], prepared["duplicates"], prepared["degenerate_boxes"]) == (8, 1, 1)
        training, held_out = (pages(str(gpu.folder / folder), held_out=held_out)[0] for held_out in (False, True))
        assert (len(training), len(held_out)) == (4, 4)
        edges = (held_out[:, 0, 0] - held_out[:, 0, 2] / 2) * 127
        assert sorted(edges.round().int().tolist()) == [4, 5, 6, 7]


def test_a_base_of_another_setting_is_trained_first(gpu):
    own, rounds = (f"results/gpu/molecules/{setting}/base" for setting in ("qm9", "qm9_rounds"))
    done = gpu.run(rounds, arguments=["--dry-run"])
    assert done.returncode == 0, done.stderr
    assert f"{own}, results/gpu/molecules/qm9/base_timing.json" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("mnist/train-images-idx3-ubyte.gz", "missing", "asset mnist: the mirror"),
        ("cifar-10-binary.tar.gz", "changed", "does not have the sha256"),
    ],
)
def test_a_missing_or_changed_asset_is_named(tmp_path, file, damage, message):
    checkout = ScaledCheckout(tmp_path, "gpu")
    rng = np.random.default_rng(1)
    write_mnist(checkout.mirror / "mnist", 4, rng)
    write_cifar(checkout.mirror / "cifar-10-binary.tar.gz", 1, rng)
    write_assets(
        yaml.safe_load((REPOSITORY / "config/assets.yaml").read_text()), checkout.mirror, tmp_path / "frozen.yaml"
    )
    place = checkout.mirror / file
    place.unlink() if damage == "missing" else place.write_bytes(place.read_bytes() + b" ")
    name = "mnist" if "mnist" in file else "cifar10"
    done = checkout.run(f"results/assets/{name}", config={"assets": "frozen.yaml"})
    assert done.returncode != 0
    assert any(line.startswith("error: ") and message in line for line in done.stderr.splitlines()), done.stderr
    assert not (tmp_path / "results/assets" / name).exists()


def test_the_corrector_costs_at_most_a_quarter_of_the_base():
    from graft.networks.flows import build_network, count_flops

    for scale in ("config", "gpu", "paper"):
        settings = yaml.safe_load((REPOSITORY / f"config/{scale}.yaml").read_text())["images"]["settings"]
        for name, setting in settings.items():
            shape = Images(**setting["points"]).shape
            base, corrector = (
                count_flops(build_network(setting[part]["network"], shape, seed=0, run=0))
                for part in ("base", "corrector")
            )
            assert corrector <= base / 4, (scale, name)
