import pytest
import yaml

from graft.configuration import check_config, check_references
from graft.errors import UserError


@pytest.fixture
def config(repository):
    return yaml.safe_load((repository / "config" / "config.yaml").read_text())


@pytest.fixture
def digits(config):
    return config["images"]["settings"]["digits"]


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
        ("data.channels", 2, "2 is not one of [1, 3]"),
        ("data.image_size", True, "True is not of type 'integer'"),
        ("inversion.step_counts", 8, "8 is not of type 'array'"),
        ("inversion.step_counts", [], "[] should be non-empty"),
        ("inversion.max_unconverged", 1.5, "1.5 is greater than the maximum of 1"),
        ("corrector.paths", ["curved"], "'curved' is not one of ['straight', 'trigonometric']"),
        ("base.training.ema_decay", 1, "1 is greater than or equal to the maximum of 1"),
        ("base.training", [], "[] is not of type 'object'"),
    ],
)
def test_wrong_values_are_named_with_their_path(message, digits, key, value, complaint):
    *blocks, leaf = key.split(".")
    block = digits
    for name in blocks:
        block = block[name]
    block[leaf] = value
    place = f"images.settings.digits.{key}" + (".0" if value == ["curved"] else "")
    assert message() == f"{place}: {complaint}"


def test_every_mistake_is_listed(message, config, digits):
    config["seeds"] = [-1]
    digits["data"]["channels"] = 2
    digits["sampling"]["shards"] = 0
    for place in ("seeds.0: ", "images.settings.digits.data.channels: ", "images.settings.digits.sampling.shards: "):
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
