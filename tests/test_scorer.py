"""The question-answering scorer, the loading of judges by kind, and the script that trains them."""

import json
import logging
import runpy
from types import SimpleNamespace

import numpy as np
import pytest
import test_vqascore
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from snakemake.iocontainers import InputFiles, OutputFiles, Params
from torch.nn.functional import logsigmoid

from graft.compositions import contradiction, parse
from graft.errors import UserError
from graft.files import read_json, write_json
from graft.metrics.judges import load_judge
from graft.metrics.vqascore import ClipFlanT5, TransformersModel, vqascore
from graft.networks.scorer import QuestionScorer, ScorerModel, question_loss
from graft.prompt_formats import read_digit_compositions
from graft.seeding import drawn_weights
from graft.shards import write_tensors
from graft.tasks.text_to_image import padded

# The replicas of large models in the published formats, and what they are made of.
tokenizer, parts, processor = test_vqascore.tokenizer, test_vqascore.parts, test_vqascore.processor
published, folders, instruct_blip = test_vqascore.published, test_vqascore.folders, test_vqascore.instruct_blip

VOCABULARY = ("a", "red", "blue", "one", "two", "left", "of")
TEXTS = ["a red one", "a blue two left of a red one", "a red two"]
SETTINGS = {"batch_size": 64, "learning_rate": 3e-3, "ema_decay": 0.97}


@pytest.fixture
def network():
    """A scorer that is undecided but not indifferent: its logits are of the order of 1 and depend on the picture."""
    with drawn_weights(0, run=0):
        scorer = QuestionScorer(16, VOCABULARY, length=8, widths=(4, 6), features=12).eval().requires_grad_(False)
    for layer in (layer for layer in scorer.modules() if isinstance(layer, torch.nn.Conv2d)):
        layer.weight *= 3
    scorer.answer.weight *= 0.15
    return scorer


@pytest.fixture
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16), np.uint8))


def test_tokens(network):
    expected = [[1, 2, 4, 0, 0, 0, 0, 0], [1, 3, 5, 6, 7, 1, 2, 4], [1, 2, 5, 0, 0, 0, 0, 0]]
    assert network.tokens(TEXTS).tolist() == expected
    assert network.tokens([]).shape == (0, 8)


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a green one", r"^caption 'a green one': the scorer does not know the word 'green', only a, red, .*, of$"),
        ("a red one left of a blue two of", r"of': 9 words, but the scorer reads 8; shorten it$"),
    ],
)
def test_captions_that_cannot_be_read(network, images, caption, message):
    with pytest.raises(UserError, match=message):
        network.tokens(["a red one", caption])
    with pytest.raises(UserError, match=message):
        vqascore(images[:1], [caption], ScorerModel(network, batch_size=4))


def test_words_of_a_place_are_exclusive(network, images):
    everything = torch.arange(len(VOCABULARY) + 1)[None, :, None].expand(3, -1, 8)
    torch.testing.assert_close(network.log_likelihoods(images, everything).exp().sum(dim=1), torch.ones(3, 8))


def test_logit_weighs_every_word(network, images):
    words = network.tokens(TEXTS)
    likelihoods = network.log_likelihoods(images, torch.stack([words, words.flip(0)], dim=1))
    assert likelihoods.shape == (3, 2, 8)
    network.answer.weight.copy_(torch.arange(8.0)[None])
    for column, asked in enumerate((words, words.flip(0))):
        expected = (likelihoods[:, column] * torch.arange(8)).sum(dim=1) + network.answer.bias
        torch.testing.assert_close(network(images, asked), expected)


def test_left_differs_from_right(network, images):
    """Even where the convolutions do not tell sides apart, the grid that they end in does."""
    for convolution in (layer for layer in network.body if isinstance(layer, torch.nn.Conv2d)):
        convolution.weight.copy_((convolution.weight + convolution.weight.flip(3)) / 2)
    body, mirrored = (network.body(batch.float()).unflatten(1, (6, 4, 4)) for batch in (images, images.flip(3)))
    torch.testing.assert_close(mirrored, body.flip(3), rtol=0, atol=1e-3)
    words = network.tokens(TEXTS)
    assert (network(images, words) - network(images.flip(3), words)).abs().max() > 1e-3


def test_loss_balances_yes_and_no(network, images):
    words = network.tokens(TEXTS)
    wrong = torch.stack([words.roll(1, 0), words.roll(2, 0)], dim=1)
    yes, no = logsigmoid(network(images, words)), [logsigmoid(-network(images, wrong[:, i])) for i in range(2)]
    reading = network.log_likelihoods(images, words[:, None]).mean()
    expected = -yes.mean() - torch.stack(no).mean() - reading
    torch.testing.assert_close(question_loss(network, images, words, wrong, torch.Generator()), expected)
    repeated = question_loss(network, images, words, wrong.repeat(1, 3, 1), torch.Generator())
    torch.testing.assert_close(repeated, expected)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_score_is_the_probability_of_yes(network, images, batch_size):
    expected = network(images, network.tokens(TEXTS)).sigmoid()
    model = ScorerModel(network, batch_size)
    torch.testing.assert_close(vqascore(images, TEXTS, model), expected)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    torch.testing.assert_close(vqascore(pictures, TEXTS, model), expected)
    assert expected.sort().values.diff().min() > 1e-3


def test_pictures_of_another_size(network):
    pictures = [Image.new("RGB", (16, 16)), Image.new("RGB", (16, 20))]
    with pytest.raises(UserError, match=r"^the scorer takes images of 16 x 16 pixels, not of 16 x 20; resize them$"):
        vqascore(pictures, TEXTS[:2], ScorerModel(network, batch_size=2))


def test_saved_scorer_is_a_judge(network, images, tmp_path):
    network.save_pretrained(tmp_path)
    judge = load_judge(tmp_path, "cpu", batch_size=2)
    assert isinstance(judge, ScorerModel)
    assert not any(parameter.requires_grad for parameter in judge.network.parameters())
    assert torch.equal(vqascore(images, TEXTS, judge), vqascore(images, TEXTS, ScorerModel(network, batch_size=2)))


def test_clip_flant5_is_a_judge(folders):
    expected = test_vqascore.load(folders, batch_size=2)
    for name in ("clip", "tokenizer"):
        (folders / name).rename(folders / "model" / name)
    judge = load_judge(folders / "model", "cpu", batch_size=2)
    assert isinstance(judge, ClipFlanT5)
    pictures = [Image.new("RGB", (20, 30), colour) for colour in ("red", "blue")]
    assert torch.equal(vqascore(pictures, TEXTS[:2], judge), vqascore(pictures, TEXTS[:2], expected))


def test_models_of_transformers_are_judges(instruct_blip):
    judge = load_judge(instruct_blip[0], "cpu", batch_size=3)
    assert isinstance(judge, TransformersModel)
    assert judge.batch_size == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "config.json: not a readable configuration of a judge"),
        ({"_class_name": "UNet2DModel"}, "config.json: of no QuestionScorer, CLIP-FlanT5 or visual-question model"),
        ({"_class_name": "QuestionScorer"}, "no QuestionScorer with safetensors weights, saved by diffusers"),
        ({"mm_projector_type": "mlp2x_gelu"}, "mm_hidden_size"),
        ({"model_type": "t5"}, "not the folder of a visual-question model"),
    ],
)
def test_folders_without_a_judge(tmp_path, config, message):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message) as caught:
        load_judge(tmp_path, "cpu", batch_size=1)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Pictures with their captions: the first 4,000, and 400 that are held out."""
    found = read_digit_compositions(tmp_path_factory.mktemp("digits"), 16)
    rows = [*range(4000), *np.flatnonzero(found.held_out)[:400]]
    return found.images[rows], [found.captions[row] for row in rows], found.held_out[rows]


def write_prompts(folder, images, captions, held_out):
    """A prepared folder of two shards."""
    arrays = {"images": images, "captions": padded(captions), "held_out": held_out}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    for shard, rows in enumerate((slice(1001), slice(1001, None))):
        write_tensors(folder / f"shard{shard}.safetensors", {name: each[rows] for name, each in tensors.items()}, {})
    write_json(folder / "data.json", {"shards": 2})


@pytest.fixture(scope="module")
def run_script(repository):
    """Runs `train_judges.py` for some steps in a folder, and returns the folder of the judges."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    settings = yaml.safe_load((repository / "config/config.yaml").read_text())["text_to_image"]["settings"]
    points = settings["digits"]["points"]

    def run(folder, steps):
        training = {"steps": steps, **SETTINGS}
        job = SimpleNamespace(
            rule="train_judges",
            threads=1,
            resources={"gpu": 0},
            log=[str(folder / "log")],
            config={"compute": {"smaller_batches": False}},
            wildcards=SimpleNamespace(task="text_to_image"),
            input=InputFiles(fromdict={"data": str(folder / "data")}),
            output=OutputFiles(toclone=[str(folder / "judges")]),
            params=Params(
                fromdict={
                    "seed": 7,
                    "points": points,
                    "checkpoints": str(folder / "checkpoints"),
                    "network": {
                        "scorer": {"widths": [16, 48], "features": 128},
                        "classifier": {"widths": [8, 16], "features": 32},
                    },
                    "training": {"scorer": training, "classifier": training},
                }
            ),
        )
        runpy.run_path(str(repository / "workflow/scripts/train_judges.py"), init_globals={"snakemake": job})
        return folder / "judges"

    yield run
    logging.captureWarnings(False)
    torch.use_deterministic_algorithms(deterministic)


def test_short_training_beats_chance(run_script, prompts, tmp_path):
    write_prompts(tmp_path / "data", *prompts)
    judges = run_script(tmp_path, steps=350)
    accuracy = read_json(judges / "accuracy.json")
    assert accuracy["truth"]["digit_accuracy"] > 0.9
    images, captions, _ = prompts
    rng = np.random.default_rng(0)
    wrong = [contradiction(parse(caption), rng).caption for caption in captions[-400:]]
    for name in ("reward", "evaluation"):
        assert accuracy[name]["balanced_accuracy"] > 0.75
        assert accuracy[name]["contradicted_rejected"].keys() == {"colour", "digit", "order", "relation"}
        judge, pictures = load_judge(judges / name, "cpu", batch_size=128), torch.from_numpy(images[-400:])
        right, wronged = (vqascore(pictures, texts, judge) for texts in (captions[-400:], wrong))
        assert ((right > 0.5).double().mean() + (wronged <= 0.5).double().mean()) / 2 > 0.75
    assert not list((tmp_path / "checkpoints").iterdir())


def test_judges_have_pictures_of_their_own(run_script, prompts, tmp_path):
    """Which networks stay the same when some of the pictures change."""
    images, _, held_out = prompts
    even = np.arange(len(images)) % 2 == 0
    changed = {"nothing": even & ~even, "held out": held_out, "even": even & ~held_out, "odd": ~even & ~held_out}
    weights = {}
    for case, rows in changed.items():
        write_prompts(tmp_path / case / "data", np.where(rows[:, None, None, None], 255 - images, images), *prompts[1:])
        judges = run_script(tmp_path / case, steps=3)
        for name in ("reward", "evaluation", "truth"):
            weights[case, name] = load_file(judges / name / "diffusion_pytorch_model.safetensors")

    def same(one, other):
        return all(torch.equal(weights[one][key], weights[other][key]) for key in weights[one])

    unchanged = {key for key in weights if same(key, ("nothing", key[1]))}
    assert unchanged - {("nothing", name) for name in ("reward", "evaluation", "truth")} == {
        ("held out", "reward"),
        ("held out", "evaluation"),
        ("held out", "truth"),
        ("odd", "reward"),
        ("even", "evaluation"),
    }
    first, second = (weights["nothing", name]["body.0.weight"] for name in ("reward", "evaluation"))
    assert (first - second).abs().max() > 0.1, "more than three steps can move a weight: they are drawn apart"
