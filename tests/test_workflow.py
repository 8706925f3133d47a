"""The workflow as its users run it: whole runs on tiny budgets in copies of the repository."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from replicas import TINY_TEXT, TINY_UNET

from graft.tasks import TASKS

REPOSITORY = Path(__file__).parents[1]

TINY_TRAINING = {"steps": 8, "batch_size": 32, "learning_rate": 1e-3, "ema_decay": 0.9}
DEFAULTS = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text())
TINY_DDPO = {"iterations": 2, "gradient_steps": 2, "batch_size": 32}
TINY_TEXT_MODELS = {
    "base": {
        "pretrained": None,
        "autoencoder": {
            "network": {
                "block_out_channels": [8, 8],
                "down_block_types": ["DownEncoderBlock2D"] * 2,
                "up_block_types": ["UpDecoderBlock2D"] * 2,
                "layers_per_block": 1,
                "norm_num_groups": 4,
            },
            "training": TINY_TRAINING,
        },
        "network": {"unet": TINY_UNET, "text": TINY_TEXT},
        "training": TINY_TRAINING,
    },
    "judges": {
        "pretrained": None,
        "batch_size": 64,
        "network": {
            "scorer": {"widths": [4, 4], "features": 16},
            "classifier": {"widths": [4, 4], "features": 16},
        },
        "training": {"scorer": TINY_TRAINING, "classifier": TINY_TRAINING},
    },
}
"""A base and judges of text-to-image for pictures of 16 pixels."""

TINY = {
    "seeds": [0],
    "theory": {
        "rejection": {"samples": 10_000},
        "plane": {
            "samples": 256,
            "corrector": {"step_counts": [2], "network": {"width": 8, "depth": 1}, "training": TINY_TRAINING},
        },
        "noises": {"samples": 96},
    },
    "images": {
        "settings": {
            "digits": {
                "features": {"network": {"widths": [4], "features": 8}, "training": TINY_TRAINING},
                "base": {"network": {"width": 16, "depth": 1}, "training": TINY_TRAINING},
                "inversion": {"step_counts": [4], "images": 192, "repeats": 1, "batch_size": 64},
                "corrector": {
                    "step_counts": [1],
                    "network": {"width": 8, "depth": 1},
                    "training": TINY_TRAINING,
                },
                "sampling": {"samples": 192, "batch_size": 64},
            }
        }
    },
    "molecules": {
        "settings": {
            "enumerated": {
                "points": {"elements": ["H", "C", "O"], "max_atoms": 6, "element_scale": 1.0},
                "base": {
                    "pretrained": None,
                    "network": {"width": 8, "depth": 1, "heads": 2},
                    "training": TINY_TRAINING,
                },
                "sampler": {"steps": 4, "batch_size": 64},
                "rollouts": {"samples": 128},
                "fine_tuning": {"training": {"steps": 4, "batch_size": 32}},
                "methods": {
                    name: TINY_DDPO
                    for name, method in DEFAULTS["molecules"]["settings"]["enumerated"]["methods"].items()
                    if "iterations" in method
                },
                "evaluation": {"samples": 64, "branched": 16, "branches": 2, "levels": [1.0]},
            }
        }
    },
    "text_to_image": {
        "settings": {
            "digits": {
                **TINY_TEXT_MODELS,
                "sampler": {"batch_size": 64},
                "rollouts": {"samples": 64},
                "fine_tuning": {"training": {"steps": 2, "batch_size": 16}, "adapter": {"rank": 2}},
                "methods": {"ddpo": TINY_DDPO},
                "evaluation": {"samples": 64, "branched": 16, "branches": 2, "levels": [1.0]},
            }
        }
    },
    "layouts": {
        "run": ["synthetic_classes"],
        "settings": {
            "synthetic_classes": {
                "base": {
                    "pretrained": None,
                    "network": {"width": 8, "depth": 1, "heads": 2},
                    "training": TINY_TRAINING,
                },
                "judges": {
                    "pretrained": None,
                    "network": {"width": 8, "depth": 1, "heads": 2},
                    "training": TINY_TRAINING,
                },
                "sampler": {"steps": 4, "batch_size": 64},
                "rollouts": {"samples": 64},
                "fine_tuning": {"training": {"steps": 2, "batch_size": 16}},
                "methods": {"ddpo": TINY_DDPO},
                "evaluation": {"samples": 64, "branched": 16, "branches": 2, "levels": [1.0]},
            }
        },
    },
}
COLUMNS = ["task", "method", "metric", "better", "mean", "stderr", "seeds", "samples", "paper", "paper_source"]
ONE_SEED = "results/demo/images/digits/seed0"
INVERTED = "results/demo/images/digits/inverted"


def merged(base, change):
    """`base` with the leaves of `change`, both left as they are."""
    result = dict(base)
    for key, value in change.items():
        result[key] = merged(base.get(key) or {}, value) if isinstance(value, dict) else value
    return result


def digits(**blocks):
    """A change of the digits' setting."""
    return {"images": {"settings": {"digits": blocks}}}


def alone(task, settings):
    """A change that runs these settings of one task, and nothing of the others."""
    off = {other: {"run": []} for other in TASKS if other != task}
    return {**off, task: {"run": list(settings), "settings": settings}}


def finished_run(checkout, *targets):
    """The checkout, once the targets are made."""
    done = checkout.run(*targets)
    assert done.returncode == 0, done.stderr[-5000:]
    return checkout


class Checkout:
    """A copy of the repository in which snakemake is run."""

    def __init__(self, folder, results=None):
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in listed.stdout.split():
            if not name.startswith("results/") and (REPOSITORY / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPOSITORY / name, folder / name)
        if results:
            # The metadata too, as a user's folder would have it.
            shutil.copytree(results.folder / "results", folder / "results", copy_function=shutil.copy2, symlinks=True)
            shutil.copytree(results.folder / ".snakemake", folder / ".snakemake", copy_function=shutil.copy2)

    def run(self, *targets, config=None, arguments=()):
        """The finished process of `snakemake --cores 2`, with `config` laid over the tiny budgets."""
        overlay = self.folder / "overlay.yaml"
        overlay.write_text(yaml.safe_dump(merged(TINY, config or {}), sort_keys=False))
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments, "--configfile", str(overlay), "--"]
        return subprocess.run([*command, *targets], cwd=self.folder, capture_output=True, text=True, check=False)

    def planned(self, *targets, **keywords):
        """Names of the rules that a dry run would execute."""
        shown = self.run(*targets, arguments=["--dry-run", "--quiet", "host"], **keywords)
        assert shown.returncode == 0, shown.stderr
        lines = (line.split() for line in (shown.stdout + shown.stderr).splitlines())
        counted = (line for line in lines if len(line) == 2 and line[0].isidentifier() and line[1].isdigit())
        return {name for name, _ in counted} - {"total"}

    def bytes(self, name):
        return (self.folder / name).read_bytes()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A finished run of every target at tiny budgets."""
    checkout = Checkout(tmp_path_factory.mktemp("demo"))
    done = checkout.run("all")
    assert done.returncode == 0, done.stderr
    return checkout


@pytest.fixture
def copy(demo, tmp_path):
    """A copy of the finished run, for tests that change it."""
    return Checkout(tmp_path, results=demo)


def test_every_table_and_figure_is_made(demo):
    table = pd.read_csv(demo.folder / "results/demo/tables/images.csv")
    assert list(table.columns[:10]) == COLUMNS
    assert {"setting", "base_steps", "corrector_steps", "gflops_per_image", "parameters"} <= set(table.columns)
    chains = set(table[["method", "base_steps", "corrector_steps"]].itertuples(index=False, name=None))
    assert chains == {
        ("data", 0, 0),
        *(("base", steps, 0) for steps in (4, 8, 16)),
        ("shift_and_scale", 4, 0),
        *((f"inc_{path}", 4, 1) for path in ("straight", "trigonometric")),
    }
    assert set(table["metric"]) == {
        "FD (digits classifier)",
        "KD (digits classifier)",
        "precision (digits classifier)",
        "recall (digits classifier)",
    }
    assert table["mean"].notna().all()
    for task in ("images", "molecules", "text_to_image", "layouts"):
        for name in ("tables/{}.md", "tables/{}.tex", "tables/{}_cost.csv", "figures/{}.pdf"):
            assert (demo.folder / "results/demo" / name.format(task)).stat().st_size > 0
        assert demo.bytes(f"results/demo/figures/{task}.png").startswith(b"\x89PNG")
    report = (demo.folder / "results/demo/report.html").read_text()
    assert "Unconditional images" in report
    assert "Molecules" in report
    assert "Text to image" in report
    assert "Layouts" in report
    assert "Theory" in report


def test_reward_table_has_every_method_beside_base_and_control(demo):
    table = pd.read_csv(demo.folder / "results/demo/tables/molecules.csv")
    assert list(table.columns[:10]) == COLUMNS
    methods = DEFAULTS["molecules"]["settings"]["enumerated"]["methods"]
    assert list(dict.fromkeys(table["method"])) == ["base", *methods]
    metrics = {"atom_stability", "molecule_stability", "validity", "uniqueness", "novelty", "one_piece", "reward"}
    assert all(set(rows["metric"]) == metrics for _, rows in table.groupby("method"))
    assert table["mean"].between(0, 1).all()
    assert (table["samples"] == 64).all()
    assert (table["reward_calls"] == np.where(table["method"] == "base", 0, 128)).all()
    wide = table.pivot(index="method", columns="metric", values=["mean", "over_base", "over_self"])
    controls = table.groupby("method")["control"].first()[wide.index]
    assert controls[["base", "graft", "pgraft_25", "pgraft_50", "ddpo"]].tolist() == [
        "self",
        "self",
        "self_25",
        *["self"] * 2,
    ]
    for over, control in (("over_base", ["base"] * len(wide)), ("over_self", controls)):
        gains = wide["mean"].to_numpy() - wide["mean"].loc[control].to_numpy()
        np.testing.assert_allclose(wide[over], gains, rtol=0, atol=1e-8)


def test_flops_of_a_chain_are_those_of_its_steps(demo):
    table = pd.read_csv(demo.folder / "results/demo/tables/images.csv").drop_duplicates(["method", "base_steps"])
    flops = table.set_index(["method", "base_steps"])["gflops_per_image"]
    # Linear layers of the base: 64 -> 16, time 64 -> 16 -> 16, one block 16 -> 16 -> 16, 16 -> 64; 2 FLOPs a weight.
    step = 2 * (64 * 16 + 64 * 16 + 16 * 16 + 2 * 16 * 16 + 16 * 64) / 1e9
    assert flops["base", 4] == pytest.approx(4 * step, rel=1e-6)
    assert flops["base", 16] == pytest.approx(16 * step, rel=1e-6)
    assert flops["shift_and_scale", 4] == flops["base", 4] < flops["inc_straight", 4] < flops["base", 8]


def test_provenance_says_what_a_reader_asks(demo):
    record = json.loads(demo.bytes("results/demo/provenance.json"))
    assert record["seeds"] == [0]
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["throughput"]["digits"]["training"]["mfu"] > 0
    report = record["inversion"]["digits"]["inverted/shard0.json"]["4"]
    assert report["unconverged_share"] <= 0.01
    assert report["known_noise_error"] < 1e-3
    assert report["data_round_trip_error"] < 1e-4


def test_inverted_noises_are_of_the_images_that_they_name(demo):
    """The base takes them back to their images, but for the dequantisation, of standard deviation 0.1."""
    from graft.networks.flows import load_network, velocity_of
    from graft.sampling import flow_stage, sample
    from graft.shards import TensorFile
    from graft.tasks.images import load_images

    folder, inverted = (
        demo.folder / "results/demo/images/digits",
        TensorFile(demo.folder / f"{INVERTED}/shard0.safetensors"),
    )
    points = sample(inverted.tensor("noise_4"), [flow_stage(velocity_of(load_network(folder / "base")), 4)])
    images = load_images(folder / "data")[inverted.tensor("rows_4")].float() / 127.5 - 1
    assert (points - images).std().item() == pytest.approx(0.1, abs=0.01)


def test_samples_of_the_control_are_the_base_s_from_noises_with_the_moments_of_the_inverted_ones(demo):
    from graft.networks.flows import load_network, velocity_of
    from graft.sampling import flow_stage, sample
    from graft.seeding import Draw, chunked_normal
    from graft.shards import TensorFile
    from graft.tasks.images import Images

    folder = demo.folder / "results/demo/images/digits"
    inverted = TensorFile(demo.folder / f"{INVERTED}/shard0.safetensors").tensor("noise_4")
    fresh = chunked_normal(0, Draw.NOISE, 0, 64, (1, 8, 8))
    moved = inverted.mean(dim=0) + inverted.std(dim=0, correction=0) * fresh
    images = sample(moved, [flow_stage(velocity_of(load_network(folder / "base")), 4)])
    expected = Images(**DEFAULTS["images"]["settings"]["digits"]["points"]).decode(images)
    found = TensorFile(folder / "seed0/samples/shard0.safetensors").tensor("shift_and_scale_4_0")[:64]
    # Rounding in float32 may cross from one of 256 greys to the next.
    assert (found.int() - expected.int()).abs().max() <= 1
    assert (found == expected).double().mean() > 0.999


def test_the_theory_is_checked(demo):
    """On the plane and on the trained models, whatever a run of tiny budgets has to say."""
    folder = demo.folder / "results/demo"
    laws = pd.read_csv(folder / "theory/rejection.csv")
    assert {"TopK", "BestOf", "Exponential", "Threshold", "Threshold, one a key"} == set(laws["rule"])
    assert laws["chi_square_p"].between(1e-4, 1).all()
    frontier = pd.read_csv(folder / "theory/frontier.csv")
    assert (frontier["expected_reward"] < frontier["frontier_reward"] + 1e-6).all()
    plane = pd.read_csv(folder / "theory/plane.csv")
    assert list(plane["corrector_steps"]) == [0, 2, 2]
    assert (plane["noise_total_variation"] - plane["data_total_variation"]).abs().max() < 2e-3
    tests = pd.read_csv(folder / "images/digits/seed0/noise_tests.csv").set_index("method")
    assert list(tests.index) == ["data", "base", "shift_and_scale", "inc_straight", "inc_trigonometric"]
    assert (tests["samples"] == 96).all()
    assert tests[["noise_accuracy", "data_accuracy"]].stack().between(0.2, 1).all()
    assert tests.loc["data", "removed_share"] == 1
    assert tests.loc["base", "removed_share"] == 0


def test_the_theory_has_one_table_and_one_figure(demo):
    folder = demo.folder / "results/demo"
    table = pd.read_csv(folder / "tables/theory.csv")
    assert list(table.columns[:10]) == COLUMNS
    assert list(dict.fromkeys(table["statement"])) == ["rejection", "cuts", "suggestions", "noise"]
    settings = table[table["statement"] == "suggestions"].groupby("metric")["setting"].apply(set)
    tuned = {"enumerated", "digits", "synthetic_classes"}
    assert settings["best_cut"] == tuned
    # Where no molecule of so poor a base has a reward, nothing is suggested.
    assert settings["suggested_cut"] | {"enumerated"} == tuned | {"plane, exact", "plane, branched"}
    gains = table[(table["metric"] == "gain_over_base") & (table["method"] == "pgraft_25")].set_index("task")
    for task, headline in (("molecules", "reward"), ("text_to_image", "vqascore")):
        told = pd.read_csv(folder / f"tables/{task}.csv").set_index(["method", "metric"])["over_base"]
        assert gains.loc[task, "mean"] == pytest.approx(told["pgraft_25", headline])
        assert gains.loc[task, "level"] == 0.25
    plane = pd.read_csv(folder / "theory/plane.csv").set_index("method")["noise_total_variation"]
    shown = table[(table["metric"] == "noise_total_variation")].set_index("method")["mean"]
    assert shown["inc_straight"] == pytest.approx(plane["inc_straight"])
    headings = [line for line in (folder / "tables/theory.md").read_text().splitlines() if line.startswith("## ")]
    assert [line[3] for line in headings] == ["1", "2", "2", "3"]
    assert Image.open(folder / "figures/theory.png").size[0] > 1000


def test_leftovers_of_other_shards_and_seeds_are_not_read(copy):
    """An earlier run had more of both; their files lie beside those of this one."""
    folder, inverted = copy.folder / ONE_SEED, copy.folder / INVERTED
    timing = json.loads((folder / "samples/shard0_timing.json").read_text())
    slow = dict.fromkeys(timing["seconds_per_image"], 1e6)
    (folder / "samples/shard1_timing.json").write_text(json.dumps({"seconds_per_image": slow}))
    shutil.copy(inverted / "shard0.json", inverted / "shard7.json")
    secret = "http://user:SECRET@127.0.0.1:1/data?token=SECRET"
    done = copy.run(
        "results/demo/provenance.json",
        config={"mirror": secret},
        arguments=["--forcerun", "table_images", "record_provenance"],
    )
    assert done.returncode == 0, done.stderr
    cost = pd.read_csv(copy.folder / "results/demo/tables/images_cost.csv")
    table = pd.read_csv(copy.folder / "results/demo/tables/images.csv")
    assert (cost["seconds_per_image"] < 1e3).all()
    assert set(cost["setting"]) == set(table["setting"])
    record = json.loads(copy.bytes("results/demo/provenance.json"))
    assert record["inversion"]["digits"].keys() == {"inverted/shard0.json"}
    assert record["rule_seconds"].keys() >= {"draw_rollouts", "select_rollouts", "fine_tune", "evaluate_models"}
    assert record["config"]["mirror"] == "http://127.0.0.1:1/data"


@pytest.mark.parametrize(("options", "overlay"), [(["--config", "scale=x", "mirror=a b"], {}), ([], {"scale": "x"})])
def test_the_report_knows_what_the_command_line_changed(copy, options, overlay):
    """The snakemake within must look for results where the one without has put them."""
    (copy.folder / "results/demo").rename(copy.folder / "results/x")
    (copy.folder / "results/x/report.html").unlink()
    done = copy.run("results/x/report.html", config=overlay, arguments=["--rerun-triggers", "mtime", *options])
    assert done.returncode == 0, done.stderr
    assert "Molecules" in (copy.folder / "results/x/report.html").read_text()
    assert not (copy.folder / "results/demo").exists()


def test_a_second_run_does_nothing(demo):
    assert demo.planned("all") == set()


def test_editing_a_comment_reruns_nothing(copy):
    source = copy.folder / "workflow/scripts/graft/inversion.py"
    source.write_text("# A remark.\n" + source.read_text().replace('"""Outcome', '"""The outcome'))
    assert copy.planned("all") == set()


def test_editing_the_inversion_reruns_what_follows_from_it_and_not_the_base(copy):
    source = copy.folder / "workflow/scripts/graft/inversion.py"
    source.write_text(source.read_text().replace("MEMORY = 5", "MEMORY = 4"))
    planned = copy.planned("all")
    following = {"train_correctors", "fit_shift_and_scale", "sample_chains", "evaluate_samples", "table_images"}
    assert {"invert_data", *following} <= planned
    assert not {"train_base", "prepare_data", "train_features", "fetch_asset"} & planned


def test_same_seed_gives_the_same_bytes_in_one_shard_or_three(demo, tmp_path):
    sharded = Checkout(tmp_path)
    done = sharded.run("table_images", config=digits(inversion={"shards": 3}, sampling={"shards": 3}))
    assert done.returncode == 0, done.stderr
    for name in ("tables/images.csv", "images/digits/base/diffusion_pytorch_model.safetensors"):
        assert sharded.bytes(f"results/demo/{name}") == demo.bytes(f"results/demo/{name}"), name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (digits(base={"trianing": {}}), "did you mean 'training'?"),
        (digits(sampling={"samples": "many"}), "images.settings.digits.sampling.samples"),
        ({"images": {"run": ["digit"]}}, "did you mean 'digits'?"),
        (digits(data={"asset": "digts"}), "did you mean 'digits'?"),
    ],
)
def test_a_bad_configuration_is_one_clear_line(demo, config, message):
    done = demo.run("all", config=config, arguments=["--dry-run"])
    assert done.returncode != 0
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: configuration:"))
    assert message in line


def failing(checkout, target, config, *messages):
    """Run towards `target`, which must fail with the messages in one line and leave no output."""
    done = checkout.run(target, config=config, arguments=["--rerun-incomplete"])
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert any(all(message in line for message in messages) for line in lines), done.stderr[-3000:]
    assert not (checkout.folder / target).exists()


def test_a_loss_that_is_not_finite_ends_training(copy):
    target = "results/demo/images/digits/base"
    shutil.rmtree(copy.folder / target)
    wild = digits(base={"training": {**TINY_TRAINING, "learning_rate": 1e30}})
    failing(copy, target, wild, "the loss is", "at step")


def test_an_inversion_that_does_not_converge_ends_the_job(copy):
    target = f"{INVERTED}/shard0.safetensors"
    failing(copy, target, digits(inversion={"max_iterations": 1}), "did not converge at 4 steps", "worst at step")


def test_shards_that_only_the_data_show_to_be_too_many_end_the_job(copy):
    many = digits(data={"shards": 1798})
    failing(copy, "results/demo/images/digits/data", many, "1798 shards of 1797 samples")
    shard = f"{INVERTED}/shard30.safetensors"
    failing(
        copy, shard, digits(inversion={"images": None, "shards": 31}), "inversion.shards", "1797 images", "shard 30"
    )


def test_a_truncated_shard_is_named(copy):
    shard = copy.folder / INVERTED / "shard0.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    failing(copy, f"{ONE_SEED}/correctors/straight", None, "shard0.safetensors", "not a whole safetensors file")


def test_a_base_of_another_shape_is_refused(copy, tmp_path):
    from graft.networks.flows import build_network

    build_network({"type": "ResidualMLP", "width": 8, "depth": 1}, (3, 8, 8), seed=0, run=0).save_pretrained(
        tmp_path / "other"
    )
    config = digits(base={"pretrained": str(tmp_path / "other")})
    failing(copy, "results/demo/images/digits/base", config, "takes (3, 8, 8)", "the data are (1, 8, 8)")


def test_a_base_saved_by_diffusers_is_taken_over(copy, tmp_path):
    from graft.networks.flows import build_network, load_network

    network = build_network({"type": "ResidualMLP", "width": 8, "depth": 1}, (1, 8, 8), seed=7, run=0)
    network.save_pretrained(tmp_path / "mine")
    target = "results/demo/images/digits/base"
    done = copy.run(target, config=digits(base={"pretrained": str(tmp_path / "mine")}))
    assert done.returncode == 0, done.stderr
    assert copy.planned(target, config=digits(base={"pretrained": str(tmp_path / "mine")})) == set()
    network = build_network({"type": "ResidualMLP", "width": 8, "depth": 1}, (1, 8, 8), seed=8, run=0)
    network.save_pretrained(tmp_path / "mine")
    done = copy.run(target, config=digits(base={"pretrained": str(tmp_path / "mine")}))
    assert done.returncode == 0, done.stderr
    taken = load_network(copy.folder / target).state_dict()
    assert all(torch.equal(taken[name], tensor) for name, tensor in network.state_dict().items())
