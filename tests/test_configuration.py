import inspect
import re

import pytest
import torch
import yaml
from diffusers.models.unets import unet_2d_blocks

from graft.configuration import NOISING_STEPS, check_config, check_references
from graft.errors import UserError
from graft.networks.flows import build_network
from graft.paths import StableDiffusionPath


def change(setting, key, value):
    *blocks, leaf = (int(name) if name.isdigit() else name for name in key.split("."))
    for name in blocks:
        setting = setting[name]
    setting[leaf] = value


@pytest.fixture
def config(repository):
    return yaml.safe_load((repository / "config" / "config.yaml").read_text())


@pytest.fixture
def digits(config):
    return config["images"]["settings"]["digits"]


@pytest.fixture
def enumerated(config):
    return config["molecules"]["settings"]["enumerated"]


@pytest.fixture
def assets(repository):
    return yaml.safe_load((repository / "config" / "assets.yaml").read_text())


@pytest.fixture
def message(repository, config):
    """What is wrong with the configuration; it must be something, said in one line."""

    def message():
        with pytest.raises(UserError) as caught:
            check_config(config, repository / "workflow" / "schemas" / "config.yaml")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return message


def test_configuration_is_valid_as_it_is(config, assets, repository):
    check_config(config, repository / "workflow" / "schemas" / "config.yaml")
    check_config(assets, repository / "workflow" / "schemas" / "assets.yaml")
    check_references(config, assets)


def test_misspelt_keys_name_the_nearest_known_one(message, config, digits):
    config["seds"] = config.pop("seeds")
    digits["inversion"]["tolerence"] = digits["inversion"].pop("tolerance")
    digits["base"]["training"]["learning_rat"] = 1e-3
    config["compute"]["threads"]["defualt"] = 2
    mistakes = message().split("; ")
    assert "config: unknown key 'seds', did you mean 'seeds'?" in mistakes
    assert "images.settings.digits.inversion: unknown key 'tolerence', did you mean 'tolerance'?" in mistakes
    assert "images.settings.digits.base.training: unknown key 'learning_rat', did you mean 'learning_rate'?" in mistakes
    assert "compute.threads: unknown key 'defualt', did you mean 'default'?" in mistakes
    assert "config: 'seeds' is a required property" in mistakes
    assert len(mistakes) == 6


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("sampling.samples", "many", "'many' is not of type 'integer'"),
        ("sampling.samples", 1, "1 is less than the minimum of 2"),
        ("sampling.samples", 10.5, "10.5 is not of type 'integer'"),
        ("sampling.samples", None, "None is not of type 'integer'"),
        ("points.channels", 2, "2 is not one of [1, 3]"),
        ("points.image_size", True, "True is not of type 'integer'"),
        ("inversion.step_counts", 8, "8 is not of type 'array'"),
        ("inversion.step_counts", [], "[] should be non-empty"),
        ("inversion.max_unconverged", 1.5, "1.5 is greater than the maximum of 1"),
        (
            "corrector.paths",
            ["curved"],
            "'curved' is not one of ['straight', 'trigonometric'], did you mean 'trigonometric'?",
        ),
        ("base.training.ema_decay", 1, "1 is greater than or equal to the maximum of 1"),
        ("base.training", [], "[] is not of type 'object'"),
    ],
)
def test_wrong_values_are_named_with_their_path(message, digits, key, value, complaint):
    change(digits, key, value)
    place = f"images.settings.digits.{key}" + (".0" if value == ["curved"] else "")
    assert message() == f"{place}: {complaint}"


UNET = {
    "type": "UNet2DModel",
    "block_out_channels": [32, 32],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}


def test_a_misspelt_block_names_the_nearest(message, digits):
    digits["base"]["network"] = {**UNET, "down_block_types": ["DownBlock2D", "AtnDownBlock2D"]}
    found = message()
    assert found.startswith("images.settings.digits.base.network.down_block_types.1: 'AtnDownBlock2D' is not one of")
    assert found.endswith(", did you mean 'AttnDownBlock2D'?")


@pytest.mark.parametrize("kind", ["down", "up"])
def test_blocks_that_the_schema_takes_work_in_any_place(repository, kind):
    """A new diffusers that drops one, or that has one more which fits, would show here."""
    schema = yaml.safe_load((repository / "workflow" / "schemas" / "config.yaml").read_text())
    known = schema["$defs"]["network"]["then"]["properties"][f"{kind}_block_types"]["items"]["enum"]
    source = inspect.getsource(getattr(unet_2d_blocks, f"get_{kind}_block"))
    fitting = []
    for name in re.findall(rf'{kind}_block_type == "(\w+)"', source):
        others = [known[0], name, known[0]], [name, known[0], known[0]], [known[0], known[0], name], [name] * 3
        if all(works({**UNET, "block_out_channels": [32] * 3, **three(kind, blocks)}) for blocks in others):
            fitting.append(name)
    assert set(fitting) == set(known)


def three(kind, blocks):
    plain = {"down_block_types": ["DownBlock2D"] * 3, "up_block_types": ["UpBlock2D"] * 3}
    return {**plain, f"{kind}_block_types": blocks}


def works(settings):
    try:
        network = build_network(settings, (1, 8, 8), seed=0, run=0)
        return network(torch.zeros(2, 1, 8, 8), torch.zeros(2))[0].shape == (2, 1, 8, 8)
    except (ValueError, TypeError, RuntimeError, AttributeError):
        return False


@pytest.mark.parametrize("part", ["base", "corrector"])
@pytest.mark.parametrize("name", ["block_out_channels", "down_block_types", "up_block_types"])
def test_lists_of_unequal_length_are_refused(config, digits, assets, part, name):
    digits[part]["network"] = {**UNET, name: UNET[name][:1]}
    with pytest.raises(UserError, match=rf"digits\.{part}\.network: .*{name} 1"):
        check_references(config, assets)
    digits[part]["network"] = UNET
    check_references(config, assets)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sampling.samples": 513, "sampling.shards": 3}, "sampling.shards: 3 shards of 2 batches"),
        (
            {"inversion.images": 1025, "inversion.repeats": 2, "inversion.shards": 3},
            "inversion.shards: 3 shards of 2 batches",
        ),
    ],
)
def test_image_shards_without_a_batch_are_refused(config, digits, assets, changes, complaint):
    for key, value in changes.items():
        change(digits, key, value)
    with pytest.raises(UserError) as caught:
        check_references(config, assets)
    assert str(caught.value).startswith(f"images.settings.digits.{complaint}")
    stage = complaint.split(".")[0]
    digits[stage]["shards"] = 2
    check_references(config, assets)


def test_shards_of_all_images_are_left_to_the_job(config, digits, assets):
    digits["inversion"].update(images=None, shards=1000)
    check_references(config, assets)


def test_every_mistake_is_listed(message, config, digits):
    config["seeds"] = [-1]
    digits["points"]["channels"] = 2
    digits["sampling"]["shards"] = 0
    for place in ("seeds.0: ", "images.settings.digits.points.channels: ", "images.settings.digits.sampling.shards: "):
        assert place in message()


@pytest.mark.parametrize("text", ["1e-6", "1e5", "3E-4"])
def test_number_that_yaml_reads_as_text_comes_with_a_hint_that_works(message, digits, text):
    """YAML wants a point in a float; what the hint shows must be a number in YAML."""
    digits["inversion"]["tolerance"] = yaml.safe_load(text)
    found = message()
    assert found.startswith(f"images.settings.digits.inversion.tolerance: {text!r} is text in YAML; ")
    assert isinstance(yaml.safe_load(found.split(", as ")[-1]), float)


@pytest.mark.parametrize("stage", ["inversion", "sampling"])
@pytest.mark.parametrize("batch_size", [100, 32, 0])
def test_batches_that_are_no_whole_chunks_are_rejected(message, digits, stage, batch_size):
    digits[stage]["batch_size"] = batch_size
    assert f"images.settings.digits.{stage}.batch_size: {batch_size} is" in message()


def test_whole_number_with_a_point_is_no_count(message, digits):
    """range(500.0) is an error, so the schema must not let it pass."""
    digits["base"]["training"]["steps"] = 500.0
    assert message().startswith("images.settings.digits.base.training.steps: ")


def test_classifier_features_need_their_network(message, digits):
    del digits["features"]["network"]
    assert message() == "images.settings.digits.features: 'network' is a required property"


def test_unknown_setting_names_the_nearest(config, assets):
    config["images"]["run"] = ["digit"]
    with pytest.raises(UserError, match=r"images\.run: .*'digit', did you mean 'digits'\?"):
        check_references(config, assets)


def test_unknown_asset_names_the_nearest(config, digits, assets):
    digits["data"]["asset"] = "cifar_10"
    with pytest.raises(
        UserError, match=r"images\.settings\.digits\.data\.asset: 'cifar_10' .*, did you mean 'cifar10'\?"
    ):
        check_references(config, assets)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("methods.graft.cut", 1.0, "1.0 is greater than or equal to the maximum of 1"),
        ("methods.graft.rule.k", 0, "0 is less than the minimum of 1"),
        ("methods.ddpo.batch_size", 0, "0 is less than the minimum of 1"),
        ("tuning.learning_rates", [1e-3, 1e-3], "[0.001, 0.001] has non-unique elements"),
        ("evaluation.levels.0", 1.1, "1.1 is greater than the maximum of 1"),
    ],
)
def test_wrong_values_of_the_reward_chain_are_named_with_their_path(message, enumerated, key, value, complaint):
    change(enumerated, key, value)
    assert message() == f"molecules.settings.enumerated.{key}: {complaint}"


@pytest.mark.parametrize("name", ["nan", "NaN", "NA", "none", "None", "null", "NULL", "1e5", "_a", "a-b", 7, None])
def test_names_that_tables_would_misread_are_refused(message, config, name):
    for parent in ("images.settings", "molecules.settings", "molecules.settings.enumerated.methods"):
        block = config
        for key in parent.split("."):
            block = block[key]
        block[name] = next(iter(block.values()))
        assert message().startswith(f"{parent}: {name!r} is no name")
        del block[name]


def test_what_is_not_selected_is_not_anchored(config, message, enumerated, repository):
    enumerated["methods"]["graft"]["anchored"] = True
    check_config(config, repository / "workflow" / "schemas" / "config.yaml")
    enumerated["methods"]["self"]["anchored"] = True
    assert message().startswith("molecules.settings.enumerated.methods.self.rule: None is not of type 'object'")


def test_no_method_is_called_base(message, enumerated):
    enumerated["methods"]["base"] = enumerated["methods"]["self"]
    assert message().startswith("molecules.settings.enumerated.methods: 'base' is no name")


@pytest.mark.parametrize(
    ("key", "value", "place", "complaint"),
    [
        ("methods.graft.rule", {"type": "TopK", "k": 5, "m": 4}, "methods.graft.rule", "k = 5 exceeds"),
        ("methods.graft.rule", {"type": "BestOf", "c": 1, "n": 4}, "methods.graft.rule", "set c: null to drop"),
        ("methods.graft.cut", 0.1, "methods.graft.cut", "0.1 of 24 sampler steps"),
        ("methods.ddpo.iterations", 7, "methods.ddpo.iterations", "7 does not divide rollouts.samples = 4096"),
        ("sampler.eta", 0, "methods.ddpo", "raise sampler.eta above 0"),
        ("rollouts.shards", 9, "rollouts.shards", "9 shards of 8 batches"),
        ("evaluation.shards", 5, "evaluation.shards", "5 shards of 3 batches"),
        ("evaluation.branched", 4097, "evaluation.branched", "4097 is more than rollouts.samples = 4096"),
        ("evaluation.levels", [0.5, 0.3], "evaluation.levels.1", "0.3 of 24 sampler steps"),
        ("tuning.seed", 0, "tuning.seed", "is among seeds"),
    ],
)
def test_values_that_contradict_one_another_are_refused(config, enumerated, assets, key, value, place, complaint):
    change(enumerated, key, value)
    with pytest.raises(UserError) as caught:
        check_references(config, assets)
    assert str(caught.value).startswith(f"molecules.settings.enumerated.{place}: ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_limits_of_the_reward_chain_are_allowed(config, enumerated, assets, repository):
    """9 batches, the last one short, in 4 shards; all are branched. An overlay drops a parameter; DDPO is away."""
    enumerated["rollouts"].update(samples=4097, shards=4)
    enumerated["evaluation"].update(samples=513, shards=2, branched=4097, levels=[])
    enumerated["methods"]["graft"]["rule"].update(type="BestOf", n=4, k=None, m=None)
    enumerated["sampler"]["eta"] = 0
    del enumerated["methods"]["ddpo"]
    check_config(config, repository / "workflow" / "schemas" / "config.yaml")
    check_references(config, assets)


@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        ({"name": "a"}, "'sha256' is a required property"),
        ({"name": "a", "sha256": "abc"}, "'abc' does not match"),
        ({"name": "a", "sha256": None, "url": "ftp://host/a"}, "'ftp://host/a' does not match"),
        ({"name": "a", "sha256": None, "sise": 3}, "unknown key 'sise', did you mean 'size'?"),
    ],
)
def test_mistakes_in_assets_are_named(assets, repository, file, complaint):
    assets["mnist"]["formats"][0]["files"] = [file]
    with pytest.raises(UserError) as caught:
        check_config(assets, repository / "workflow" / "schemas" / "assets.yaml")
    assert str(caught.value).startswith("mnist.formats.0.files.0")
    assert complaint in str(caught.value)


def test_the_noising_steps_are_those_of_the_path():
    assert NOISING_STEPS == StableDiffusionPath.STEPS
