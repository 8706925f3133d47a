"""VQAScore with tiny random models in the published formats, against an unbatched computation written out here."""

import io
import json

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from replicas import CLIP_TOWER, CLIP_VISION, clip_flant5_config, clip_flant5_parts, clip_flant5_weights, t5_tokenizer
from safetensors.torch import load_file, save_file
from transformers import (
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    T5TokenizerFast,
)

import graft.metrics.vqascore
from graft.errors import UserError
from graft.metrics.vqascore import load_clip_flant5, load_visual_question_model, pad_to_square, vqascore

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: "
)
QUESTION = 'Does this figure show "{}"'
TEXTS = ["a red cat", "two dogs, left of a blue bicycle in the snow", "", "A {brace} & “quotes”", "x" * 60]
SHAPES = [(30, 20), (20, 31), (24, 24), (7, 40), (50, 49)]
FORMATS = ["safetensors", "sharded safetensors", "bin", "sharded bin"]


@pytest.fixture(scope="module")
def tokenizer():
    return t5_tokenizer()


@pytest.fixture(scope="module")
def parts(tokenizer):
    return clip_flant5_parts(tokenizer)


@pytest.fixture(scope="module")
def processor():
    return CLIPImageProcessorPil(size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12})


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)) for shape in SHAPES]


@pytest.fixture
def published(parts):
    return clip_flant5_weights(parts)


@pytest.fixture
def folders(tmp_path, parts, tokenizer, processor, published):
    """The three folders of `load_clip_flant5`, with weights as one safetensors file; none with CLIP."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    processor.save_pretrained(tmp_path / "clip")
    vision = parts["tower"].config.to_dict()
    (tmp_path / "clip/config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision}))
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(clip_flant5_config(parts)))
    save(tmp_path / "model", published, "safetensors")
    return tmp_path


def save(folder, state, kind):
    """Replace a folder's weights."""
    for old in [*folder.glob("*.safetensors*"), *folder.glob("*.bin*")]:
        old.unlink()
    suffix = "bin" if kind.endswith("bin") else "safetensors"
    write = torch.save if suffix == "bin" else save_file
    stem = "pytorch_model" if suffix == "bin" else "model"
    if not kind.startswith("sharded"):
        write(state, folder / f"{stem}.{suffix}")
        return
    shards = {name: f"{stem}-{number % 3 + 1:05}-of-00003.{suffix}" for number, name in enumerate(state)}
    for shard in set(shards.values()):
        write({name: state[name] for name in state if shards[name] == shard}, folder / shard)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load(folders, batch_size=8, **options):
    clip, tokenizer = folders / "clip", folders / "tokenizer"
    return load_clip_flant5(folders / "model", tokenizer=tokenizer, clip=clip, batch_size=batch_size, **options)


def squared(image, colour):
    """The image in a square of a colour, by NumPy."""
    pixels = np.array(image.convert("RGB"))
    size = max(pixels.shape)
    square = np.broadcast_to(np.uint8(colour), (size, size, 3)).copy()
    top, left = (size - pixels.shape[0]) // 2, (size - pixels.shape[1]) // 2
    square[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return Image.fromarray(square)


def pixels_of(image):
    """As CLIP takes it, (1, 3, 12, 12), by Pillow and NumPy; the colour is int(0.48145466 * 255), ..."""
    small = squared(image, (122, 116, 104)).resize((12, 12), Image.Resampling.BICUBIC)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return torch.from_numpy((np.array(small) / 255 - mean) / std).float().permute(2, 0, 1)[None]


def reference_inputs(parts, tokenizer, image, text, layers=2):
    """T5's input (1, length, width) for one pair: text, image, text; `layers` of the tower are applied."""
    hidden = parts["tower"].pre_layrnorm(parts["tower"].embeddings(pixels_of(image)))
    for layer in parts["tower"].encoder.layers[:layers]:
        hidden = layer(hidden, None)
    first, act, last = parts["projector"]
    features = last(act(first(hidden[:, 1:])))
    end = [tokenizer.convert_tokens_to_ids("</s>")]
    before = tokenizer(SYSTEM, add_special_tokens=False).input_ids + end
    question = f'\nDoes this figure show "{text}"? Please answer yes or no. ASSISTANT: '
    after = tokenizer(question, add_special_tokens=False).input_ids + end
    table = parts["t5"].shared.weight
    return torch.cat([table[before][None], features, table[after][None]], dim=1)


def reference(parts, tokenizer, images, texts, answer="Yes", layers=2):
    """Scores (n,), pair by pair, the cross-entropy by hand."""
    scores = []
    labels = tokenizer.convert_tokens_to_ids([f"▁{answer}", "</s>"])
    for image, text in zip(images, texts, strict=True):
        inputs = reference_inputs(parts, tokenizer, image, text, layers)
        logits = parts["t5"](inputs_embeds=inputs, decoder_input_ids=torch.tensor([[0, labels[0]]])).logits[0]
        logits = logits[:, : len(tokenizer)].double()
        losses = [logits[k].exp().sum().log() - logits[k, label] for k, label in enumerate(labels)]
        scores.append(torch.exp(-sum(losses) / 2))
    return torch.stack(scores).float()


@pytest.fixture(scope="module")
def expected(parts, tokenizer, images):
    return reference(parts, tokenizer, images, TEXTS)


def close(found, expected):
    """Relative to the scores, which are small for random weights."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    return True


def test_scores_are_those_of_the_unbatched_reference(folders, images, expected):
    scores = vqascore(images, TEXTS, load(folders))
    assert (scores.shape, scores.dtype, scores.device.type) == ((5,), torch.float32, "cpu")
    assert close(scores, expected)
    assert expected.std() / expected.mean() > 0.01, "the reference hardly depends on the pairs"


def test_reference_tells_other_computations_apart(parts, tokenizer, images, expected):
    others = [
        reference(parts, tokenizer, images, TEXTS, answer="No"),
        reference(parts, tokenizer, images, TEXTS, layers=3),
        reference(parts, tokenizer, images, TEXTS, layers=1),
        reference(parts, tokenizer, images[::-1], TEXTS),
        reference(parts, tokenizer, images, TEXTS[::-1]),
    ]
    for other in others:
        assert (other / expected - 1).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ANSWER", "No"),
        ("QUESTION", 'Does this figure show "{}"? Please answer yes.'),
        ("CONVERSATION", SYSTEM.replace("curious", "cat") + "<image>\n{} ASSISTANT: "),
    ],
)
def test_other_templates_are_noticed(folders, images, expected, monkeypatch, name, value):
    monkeypatch.setattr(graft.metrics.vqascore, name, value)
    assert (vqascore(images, TEXTS, load(folders)) / expected - 1).abs().max() > 1e-3


def test_hidden_state_is_the_one_that_the_configuration_names(folders, parts, tokenizer, images, expected):
    edit(folders / "model/config.json", mm_vision_select_layer=-1)
    assert close(vqascore(images, TEXTS, load(folders)), reference(parts, tokenizer, images, TEXTS, layers=3))
    config = json.loads((folders / "model/config.json").read_text())
    del config["mm_vision_select_layer"], config["mm_vision_select_feature"]
    (folders / "model/config.json").write_text(json.dumps(config))
    assert close(vqascore(images, TEXTS, load(folders)), expected)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_change_nothing(folders, images, expected, batch_size):
    assert close(vqascore(images, TEXTS, load(folders, batch_size)), expected)


def test_one_forward_serves_a_batch(folders, images):
    model = load(folders, batch_size=3)
    sizes = []
    model.network.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    vqascore(images, TEXTS, model)
    assert sizes == [3, 2]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_tensor_finds_its_place(folders, parts, published, kind, images, expected):
    save(folders / "model", published, kind)
    model = load(folders)
    network = model.network
    for name, part in parts.items():
        found = getattr(network, name).state_dict()
        assert found.keys() == part.state_dict().keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in part.state_dict().items())
    assert network.t5.encoder.embed_tokens is network.t5.decoder.embed_tokens is network.t5.shared
    assert not any(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()])
    tokens = torch.tensor([[5, 6, 7, 1]])
    logits = [t5(input_ids=tokens, decoder_input_ids=tokens).logits for t5 in (network.t5, parts["t5"])]
    assert torch.equal(*logits)
    assert close(vqascore(images, TEXTS, model), expected)


@pytest.mark.parametrize("aliases", [["embed_tokens"], ["encoder.embed_tokens", "decoder.embed_tokens"]])
@pytest.mark.parametrize("only_alias", [False, True])
def test_embeddings_under_other_names(folders, published, images, expected, aliases, only_alias):
    shared = published["shared.weight"]
    published |= {f"{alias}.weight": shared.clone() for alias in aliases}
    if only_alias:
        del published["shared.weight"]
    save(folders / "model", published, "safetensors")
    assert close(vqascore(images, TEXTS, load(folders)), expected)


def test_alias_that_differs(folders, published):
    published["embed_tokens.weight"] = published["shared.weight"] + 1
    save(folders / "model", published, "safetensors")
    with pytest.raises(UserError, match=r"shared\.weight differs from the same weights under another name$"):
        load(folders)


def test_leftovers_of_older_versions_are_ignored(folders, published, images, expected):
    published[f"{CLIP_TOWER}embeddings.position_ids"] = torch.arange(10)[None]
    published["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.zeros(32, 3)
    save(folders / "model", published, "bin")
    assert close(vqascore(images, TEXTS, load(folders)), expected)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_tower_may_come_from_clip(folders, published, images, expected, kind):
    tower = {name: published.pop(name) for name in list(published) if name.startswith(CLIP_TOWER)}
    clip = {name.removeprefix("vision_tower.vision_tower."): tensor for name, tensor in tower.items()}
    save(folders / "model", published, "safetensors")
    with pytest.raises(UserError, match=r"clip: no weights; it should hold one of model.safetensors, "):
        load(folders)
    save(folders / "clip", clip | {"logit_scale": torch.ones(()), "text_model.embeddings": torch.ones(2)}, kind)
    assert close(vqascore(images, TEXTS, load(folders)), expected)


def test_tied_output(folders, parts, published):
    """A T5 before FlanT5 has one table for input and output, and scales in between."""
    edit(folders / "model/config.json", tie_word_embeddings=True, scale_decoder_outputs=True)
    assert torch.equal(load(folders).network.t5.lm_head.weight, parts["t5"].lm_head.weight), "it has one of its own"
    del published["lm_head.weight"]
    save(folders / "model", published, "safetensors")
    t5 = load(folders).network.t5
    assert torch.equal(t5.lm_head.weight, parts["t5"].shared.weight)
    assert t5.config.scale_decoder_outputs


def test_bfloat16_is_near(folders, images, expected):
    model = load(folders, dtype=torch.bfloat16)
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.network.parameters())
    scores = vqascore(images, TEXTS, model)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, rtol=0.15, atol=0)


def test_tensors_and_modes_of_images(folders, images):
    model = load(folders)
    rng = np.random.default_rng(1)
    pixels = torch.from_numpy(rng.integers(0, 256, (3, 3, 18, 11), np.uint8))
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    assert torch.equal(vqascore(pixels, TEXTS[:3], model), vqascore(pictures, TEXTS[:3], model))
    grey = images[0].convert("L")
    assert torch.equal(vqascore([grey], ["a"], model), vqascore([grey.convert("RGB")], ["a"], model))
    assert vqascore([], [], model).shape == (0,)
    for bad in (pixels.float(), pixels[:, :1], pixels[0]):
        with pytest.raises(ValueError, match="must be uint8"):
            vqascore(bad, TEXTS[:3], model)


def test_input_has_two_end_tokens_one_right_before_the_image(folders, parts, tokenizer, images):
    model = load(folders)
    seen = []
    model.network.t5.register_forward_pre_hook(
        lambda module, inputs, options: seen.append((options["inputs_embeds"], options["attention_mask"])),
        with_kwargs=True,
    )
    vqascore(images, TEXTS, model)
    (embeddings, mask), table = seen[0], parts["t5"].shared.weight
    image_start = len(tokenizer(SYSTEM).input_ids)
    lengths = mask.sum(dim=1)
    assert mask.dtype == torch.bool
    for row, (image, text, length) in enumerate(zip(images, TEXTS, lengths, strict=True)):
        torch.testing.assert_close(
            embeddings[row, :length], reference_inputs(parts, tokenizer, image, text)[0], rtol=0, atol=1e-5
        )
        ends = (embeddings[row] == table[tokenizer.eos_token_id]).all(dim=1).nonzero().flatten().tolist()
        assert ends == [image_start - 1, length - 1]
        assert mask[row, :length].all()
        assert (embeddings[row, length:] == table[tokenizer.pad_token_id]).all()
    assert lengths.unique().numel() > 2


def test_token_ids_are_those_of_sentencepiece(folders):
    """The authors' tokenizer is sentencepiece's own, of which transformers keeps a translation.

    What a translation may get wrong: the space after 'ASSISTANT:', the line's end before the question, space upon
    space, and characters that are written in other ways.
    """
    texts = [*TEXTS, "  two  dogs\t", "ﬁgure ２ Ⅳ", "a\u00a0cat", "Ünïcode 猫"]
    about = f"{QUESTION}? Please answer yes or no. ASSISTANT: "
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([SYSTEM, *(about.format(text) for text in TEXTS)] * 20),
        model_writer=trained,
        vocab_size=80,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folders / "tokenizer/spiece.model").write_bytes(trained.getvalue())
    (folders / "tokenizer/tokenizer.json").unlink()
    T5TokenizerFast.from_pretrained(folders / "tokenizer", extra_ids=5).save_pretrained(folders / "tokenizer")
    model, own = load(folders), sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    for text in texts:
        expected = [[*own.encode(part), own.eos_id()] for part in (SYSTEM, "\n" + about.format(text))]
        assert list(model.prompt(text)) == expected, text
    assert all(own.unk_id() not in side for side in model.prompt(TEXTS[1]))


def test_padding_is_centred_and_has_the_mean_colour(processor):
    colour = tuple(int(mean * 255) for mean in processor.image_mean)
    for width, height in [(9, 4), (4, 9), (5, 5), (1, 8)]:
        image = Image.new("RGB", (width, height), (1, 2, 3))
        square = np.array(pad_to_square(image, colour))
        assert square.shape == (max(width, height),) * 2 + (3,)
        inside = (square == (1, 2, 3)).all(axis=2)
        assert (square[~inside] == (122, 116, 104)).all()
        rows, columns = inside.any(axis=1).nonzero()[0], inside.any(axis=0).nonzero()[0]
        assert (len(rows), len(columns), inside.sum()) == (height, width, height * width)
        assert (rows[0], columns[0]) == ((len(square) - height) // 2, (len(square) - width) // 2)


def test_long_prompts_are_cut(folders):
    model = load(folders)
    before, after = model.prompt("x" * 5000)
    assert len(before) + 1 + len(after) == 2048
    assert after[-1] != model.tokenizer.eos_token_id


def test_lengths_that_differ(folders, images):
    with pytest.raises(UserError, match=r"^VQAScore of 5 images and 4 texts: each image needs its one text$"):
        vqascore(images, TEXTS[:4], load(folders))


def test_text_with_an_image_mark(folders, images):
    with pytest.raises(UserError, match="text 'a <image>' holds <image>"):
        vqascore(images[:1], ["a <image>"], load(folders))


def test_score_that_is_no_number(folders, published, images):
    published["mm_projector.2.bias"][0] = torch.nan
    save(folders / "model", published, "safetensors")
    with pytest.raises(UserError, match="not a number for 5 of 5 pairs, the first of them number 0, text 'a red cat'"):
        vqascore(images, TEXTS, load(folders))


def test_weights_that_do_not_fit(folders, published):
    del published["mm_projector.2.bias"]
    published["decoder.extra"] = torch.zeros(2)
    published["lm_head.weight"] = published["lm_head.weight"][:-1]
    save(folders / "model", published, "safetensors")
    with pytest.raises(UserError) as caught:
        load(folders)
    message = str(caught.value)
    rows = published["lm_head.weight"].shape[0]
    assert "mm_projector.2.bias is missing" in message
    assert "decoder.extra is unexpected" in message
    assert f"lm_head.weight has shape ({rows}, 20), not ({rows + 1}, 20)" in message
    assert message.count(";") == 2
    assert "\n" not in message


def test_untied_output_must_be_there(folders, published):
    del published["lm_head.weight"]
    save(folders / "model", published, "safetensors")
    with pytest.raises(UserError, match=r"lm_head\.weight is missing$"):
        load(folders)


def test_many_missing_weights_are_counted(folders, published):
    save(folders / "model", {"shared.weight": published["shared.weight"]}, "safetensors")
    save(folders / "clip", {"vision_model.pre_layrnorm.bias": torch.zeros(16)}, "safetensors")
    with pytest.raises(UserError, match=r"is missing and \d+ more$"):
        load(folders)


class Unsafe:
    def __reduce__(self):
        return print, ("run by a pickle",)


@pytest.mark.parametrize("content", [{"shared.weight": Unsafe()}, Unsafe(), [1], {"state_dict": {}}])
def test_torch_file_of_something_else(folders, capsys, content):
    save(folders / "model", content, "bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: not a whole torch file of tensors and nothing else"):
        load(folders)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_weights(folders, published, kind):
    save(folders / "model", published, kind)
    largest = max((folders / "model").glob("*[nts]"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-500])
    with pytest.raises(UserError, match=f"{largest.name}: not a whole ") as caught:
        load(folders)
    assert "\n" not in str(caught.value)


def test_shards_elsewhere_or_gone(folders, published):
    save(folders / "model", published, "sharded safetensors")
    (folders / "model/model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00003.safetensors: not a whole"):
        load(folders)
    edit(folders / "model/model.safetensors.index.json", weight_map={"shared.weight": "../other.safetensors"})
    with pytest.raises(UserError, match=r"'\.\./other\.safetensors' is no file beside it"):
        load(folders)


@pytest.mark.parametrize(
    ("path", "changes", "message"),
    [
        ("model", {"mm_projector_type": "linear"}, "mm_projector_type is 'linear'; only 'mlp2x_gelu' can be loaded"),
        ("model", {"mm_projector_type": None}, "mm_projector_type is None"),
        ("model", {"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature is 'cls_patch'"),
        ("model", {"mm_hidden_size": 32}, "its vision features are 16 wide, but .*mm_hidden_size 32 and names openai/"),
        ("model", {"feed_forward_proj": "a-b-c"}, "model: not the folder of a CLIP-FlanT5 "),
        ("model", {"vocab_size": 30}, r"tokenizer: \d+ tokens, but the model has 30; give its own tokenizer"),
        (
            "clip",
            {"vision_config": {**CLIP_VISION, "image_size": 16}},
            "cuts out 12 by 12 pixels, but .* takes 16 by 16",
        ),
    ],
)
def test_configurations_that_do_not_fit(folders, path, changes, message):
    edit(folders / path / "config.json", **changes)
    with pytest.raises(UserError, match=message) as caught:
        load(folders)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["clip", "tokenizer"])
def test_folder_that_is_no_folder(folders, name):
    (folders / name).rename(folders / "elsewhere")
    with pytest.raises(UserError, match=f"{name}: no [a-z_.]+json"):
        load(folders)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("model/config.json", "not a readable configuration of CLIP-FlanT5"),
        ("model/model.safetensors", "model: no weights; it should hold one of model.safetensors"),
        ("clip/preprocessor_config.json", "clip: no preprocessor_config.json; it should be the folder of a CLIP"),
        ("clip/config.json", "clip: no config.json; it should be the folder of a CLIP"),
        ("tokenizer/tokenizer.json", "tokenizer: no tokenizer.json; it should be the folder of a tokenizer of T5"),
    ],
)
def test_missing_files(folders, gone, message):
    (folders / gone).unlink()
    with pytest.raises(UserError, match=message) as caught:
        load(folders)
    assert "\n" not in str(caught.value)


@pytest.fixture
def instruct_blip(tmp_path, tokenizer, parts):
    """A tiny InstructBLIP-FlanT5 with its processor, in a folder."""
    torch.manual_seed(1)
    tokenizer = T5TokenizerFast(vocab=tokenizer._vocab_scores, extra_ids=5)
    image_processor = BlipImageProcessorPil(size={"height": 12, "width": 12})
    processor = InstructBlipProcessor(image_processor, tokenizer, T5TokenizerFast(vocab=tokenizer._vocab_scores), 2)
    config = InstructBlipConfig(
        vision_config={**CLIP_VISION, "image_size": 12, "patch_size": 4},
        qformer_config={**CLIP_VISION, "vocab_size": 400, "encoder_hidden_size": 16, "cross_attention_frequency": 1},
        text_config=parts["t5"].config.to_dict() | {"tie_word_embeddings": False},
        num_query_tokens=2,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = InstructBlipForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "blip")
    processor.save_pretrained(tmp_path / "blip")
    return tmp_path / "blip", model, processor


@torch.no_grad()
def test_other_models_are_asked_alike(instruct_blip, images):
    """Padded or one by one, the score is that of the model's own loss."""
    folder, model, processor = instruct_blip
    expected = []
    for image, text in zip(images, TEXTS, strict=True):
        question = f'Does this figure show "{text}"? Please answer yes or no.'
        inputs = processor(images=image, text=question, return_tensors="pt")
        labels = processor.tokenizer("Yes", return_tensors="pt").input_ids
        assert labels.shape == (1, 2)
        expected.append(torch.exp(-model(**inputs, labels=labels).loss))
    for batch_size in (1, 3):
        scores = vqascore(images, TEXTS, load_visual_question_model(folder, batch_size=batch_size))
        assert close(scores, torch.stack(expected))
    other = load_visual_question_model(folder, batch_size=5, question='Question: Does this figure show "{}"?')
    assert (vqascore(images, TEXTS, other) / scores - 1).abs().max() > 1e-3


def test_other_models_that_do_not_load(instruct_blip, tmp_path):
    folder, *_ = instruct_blip
    with pytest.raises(UserError, match=r"no config.json; it should be the folder of a visual-question model"):
        load_visual_question_model(tmp_path / "Salesforce/instructblip-flan-t5-xl", batch_size=1)
    state = load_file(folder / "model.safetensors")
    state["extra"] = state.pop("language_projection.bias")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"language_projection.bias is missing; extra is unexpected$"):
        load_visual_question_model(folder, batch_size=1)
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        UserError, match="not the folder of a visual-question model with processor and safetensors "
    ) as caught:
        load_visual_question_model(folder, batch_size=1)
    assert "\n" not in str(caught.value)
