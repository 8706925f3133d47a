"""VQAScore (Lin et al. 2024): how likely a model is to answer 'Yes' when asked whether an image shows a text.

The score is exp(-mean cross-entropy of the answer's tokens, the end token included). The model of the published figures
is CLIP-FlanT5, which `load_clip_flant5` loads from its published weights; what it computes follows its authors' code
(linzhiqiu/t2v_metrics 3.0), but for pairs in batches. `load_visual_question_model` loads encoder-decoder models of
transformers, such as InstructBLIP-FlanT5. Everything is read from local folders, nothing from a hub.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    T5Config,
    T5ForConditionalGeneration,
)

from graft.errors import UserError, one_line
from graft.files import UNREADABLE, read_json, reading
from graft.shards import TensorFile

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'

ANSWER = "Yes"

IMAGE = "<image>"
"""Marks the image's place in a prompt."""

CONVERSATION = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    f"and polite answers to the user's questions. USER: {IMAGE}\n{{}} ASSISTANT: "
)
"""CLIP-FlanT5's prompt about a question."""

CONTEXT = 2048
"""Tokens of CLIP-FlanT5's prompt at most; the image counts as one."""

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where a folder's weights are looked for, the first that is there."""

PUBLISHED_PREFIX = {"t5": "", "tower": "vision_tower.vision_tower.vision_model.", "projector": "mm_projector."}
"""How the names of each part of `ClipFlanT5Network` begin in published weights."""

EMBEDDINGS = "shared.weight"

ALIASES = ("embed_tokens.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
"""Other names of `EMBEDDINGS`; published weights hold some of them, or none."""

WITHOUT_USE = (
    "vision_tower.vision_tower.vision_model.embeddings.position_ids",
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
)
"""What older versions of transformers saved and no version needs: indices 0, 1, ... and a bias that is never read."""

FAULTS_SHOWN = 8


class VisualQuestionModel(Protocol):
    """What `vqascore` needs of a model."""

    batch_size: int

    def answer_loss(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Mean cross-entropy (b,) in nats of the tokens of 'Yes' and the end token, given RGB images and their texts.

        b is at most `batch_size`; the pairs are evaluated at once.
        """


def vqascore(images: Sequence[Image.Image] | Tensor, texts: Sequence[str], model: VisualQuestionModel) -> Tensor:
    """Probabilities (n,) in [0, 1], float32, on the CPU, that each image shows its text.

    `images` are n PIL images, of any mode and size, or a uint8 tensor (n, 3, H, W) on any device. Raises UserError if
    there are not as many texts as images, or if a score is not a number, and ValueError for tensors of another form.
    """
    if len(images) != len(texts):
        raise UserError(f"VQAScore of {len(images)} images and {len(texts)} texts: each image needs its one text")
    if isinstance(images, Tensor):
        images = _to_pil(images)
    scores = [torch.zeros(0)]
    for start in range(0, len(texts), model.batch_size):
        batch = slice(start, start + model.batch_size)
        loss = model.answer_loss([image.convert("RGB") for image in images[batch]], texts[batch])
        scores.append(loss.neg().exp().float().cpu())
    result = torch.cat(scores)
    if len(bad := result.isnan().nonzero().flatten().tolist()):
        raise UserError(
            f"VQAScore is not a number for {len(bad)} of {len(texts)} pairs, the first of them number {bad[0]}, text "
            f"{texts[bad[0]]!r}; the scorer's weights are damaged, or its precision is too low"
        )
    return result


def _to_pil(images: Tensor) -> list[Image.Image]:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; they must be uint8 (n, 3, height, width)")
    return [Image.fromarray(image.numpy()) for image in images.permute(0, 2, 3, 1).contiguous().cpu()]


def pad_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """The RGB image in the middle of the smallest square that holds it; an odd pixel goes to the right or below."""
    size = max(image.size)
    square = Image.new("RGB", (size, size), colour)
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return square


class ClipFlanT5Network(nn.Module):
    """CLIP's vision tower, a projector to the width of T5's embeddings, and T5."""

    def __init__(self, t5: T5Config, tower: CLIPVisionConfig) -> None:
        super().__init__()
        self.t5 = T5ForConditionalGeneration(t5)
        self.tower = CLIPVisionModel(tower)
        self.projector = nn.Sequential(
            nn.Linear(tower.hidden_size, t5.d_model), nn.GELU(), nn.Linear(t5.d_model, t5.d_model)
        )

    def image_features(self, pixels: Tensor, layer: int) -> Tensor:
        """Embeddings (b, patches, width of T5) of images (b, 3, H, W) by the tower's hidden state number `layer`."""
        hidden = self.tower(pixels, output_hidden_states=True).hidden_states[layer]
        return self.projector(hidden[:, 1:])  # without the class token

    def forward(
        self, pixels: Tensor, before: Tensor, after: Tensor, after_mask: Tensor, decoder_input: Tensor, layer: int
    ) -> Tensor:
        """Logits (b, answer, vocabulary) of the answer's tokens.

        before (b, p) and after (b, q) are the tokens on the two sides of the image, after_mask (b, q) bool is False in
        padding, decoder_input (b, answer) holds the answer's tokens moved by one.
        """
        image = self.image_features(pixels, layer)
        embeddings = torch.cat([self.t5.shared(before), image, self.t5.shared(after)], dim=1)
        seen = after_mask.new_ones(len(after), before.shape[1] + image.shape[1])
        return self.t5(
            inputs_embeds=embeddings,
            attention_mask=torch.cat([seen, after_mask], dim=1),
            decoder_input_ids=decoder_input,
            use_cache=False,
        ).logits


@dataclass(frozen=True)
class ClipFlanT5:
    """CLIP-FlanT5 as a `VisualQuestionModel`; `layer` is the tower's hidden state that serves as image features."""

    network: ClipFlanT5Network
    tokenizer: PreTrainedTokenizerBase
    processor: CLIPImageProcessorPil
    layer: int
    batch_size: int

    def prompt(self, text: str) -> tuple[list[int], list[int]]:
        """Tokens before and after the image in the prompt about a text: each side ends with an end token of its own.

        A prompt over `CONTEXT` is cut at its end, the end token included, as the authors do it. Raises UserError if the
        text holds the mark of an image.
        """
        parts = CONVERSATION.format(QUESTION.format(text)).split(IMAGE)
        if len(parts) != 2:
            raise UserError(f"text {text!r} holds {IMAGE}, which marks the image's place in the prompt; take it out")
        before, after = (self.tokenizer(part).input_ids for part in parts)
        return before, after[: CONTEXT - 1 - len(before)]

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB images as the tower takes them, (b, 3, H, W), padded to squares with the processor's mean colour."""
        colour = tuple(int(mean * 255) for mean in self.processor.image_mean)
        squares = [pad_to_square(image, colour) for image in images]
        return self.processor(images=squares, return_tensors="pt")["pixel_values"]

    @torch.no_grad()
    def answer_loss(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Mean cross-entropy (b,) of the answer, in one forward pass; see `VisualQuestionModel`."""
        weights = self.network.t5.shared.weight
        sides = [self.prompt(text) for text in texts]
        padding = self.tokenizer.pad_token_id
        before = torch.tensor([before for before, _ in sides])
        after = pad_sequence([torch.tensor(after) for _, after in sides], batch_first=True, padding_value=padding)
        answer = _answer(self.tokenizer, len(texts))
        batch = (self.pixels(images), before, after, after != padding, _moved(answer, padding))
        with _autocast(weights):
            logits = self.network(*(tensor.to(weights.device) for tensor in batch), self.layer)
        # T5's table is longer than its vocabulary, for speed; the authors cut it.
        return _mean_loss(logits[..., : len(self.tokenizer)], answer)


def load_clip_flant5(
    folder: str | Path,
    *,
    tokenizer: str | Path,
    clip: str | Path,
    batch_size: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> ClipFlanT5:
    """CLIP-FlanT5 out of local folders of zhiqiulin/clip-flant5-xxl or -xl, google/flan-t5 and openai's CLIP.

    The first is a `config.json` with weights as safetensors or as torch files (`WEIGHT_FILES`), of the second the
    tokenizer is read (`tokenizer.json`), of the third the configuration, the image processor, and the weights if the
    first folder holds none of the tower. `dtype` is bfloat16 on a GPU and float32 on a CPU, unless it is given.
    Raises UserError if a folder lacks one of these, if the configuration is of another kind of model, or if the
    weights' names or shapes are not those that it describes.
    """
    folder, clip, device = Path(folder), Path(clip), torch.device(device)
    config = _configuration(folder)
    with _loading(clip, "CLIP with its image processor", "config.json", "preprocessor_config.json"):
        tower = CLIPVisionConfig.from_pretrained(clip, local_files_only=True)
        processor = CLIPImageProcessorPil.from_pretrained(clip, local_files_only=True)
    with _loading(tokenizer, "tokenizer of T5", "tokenizer.json"):
        words = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True, model_max_length=CONTEXT)
    with _loading(folder, "CLIP-FlanT5", "config.json"):
        t5 = T5Config.from_dict(config)
    _check_fit(folder, config, clip, tower, processor)
    _check_tokenizer(tokenizer, words, t5.vocab_size)
    with torch.device("meta"):
        network = ClipFlanT5Network(t5, tower)
    state = _state(network, folder, clip, device, dtype or _precision(device), config.get("tie_word_embeddings", True))
    network.load_state_dict(state, assign=True)
    network.t5.set_input_embeddings(network.t5.shared)
    positions = torch.arange(network.tower.embeddings.num_positions, device=device)
    network.tower.embeddings.position_ids = positions.expand(1, -1)  # not part of the state
    layer = config.get("mm_vision_select_layer", -2)
    return ClipFlanT5(network.eval().requires_grad_(False), words, processor, layer, batch_size)


def _precision(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _autocast(weights: Tensor) -> torch.autocast:
    """Mixed precision, as the authors evaluate bfloat16 weights; nothing for weights of other types."""
    return torch.autocast(weights.device.type, torch.bfloat16, enabled=weights.dtype == torch.bfloat16)


def _answer(tokenizer: PreTrainedTokenizerBase, size: int) -> Tensor:
    """Tokens (size, answer) of 'Yes' and the end token, the same in each row."""
    return torch.tensor(tokenizer(ANSWER).input_ids).expand(size, -1)


def _moved(answer: Tensor, start: int) -> Tensor:
    """What a decoder is given to predict the answer (b, answer): the same moved to the right, behind a start token."""
    return torch.cat([torch.full_like(answer[:, :1], start), answer[:, :-1]], dim=1)


def _mean_loss(logits: Tensor, answer: Tensor) -> Tensor:
    """Mean cross-entropy (b,) in float32, of logits (b, answer, vocabulary) and tokens (b, answer)."""
    return cross_entropy(logits.float().mT, answer.to(logits.device), reduction="none").mean(dim=1)


@contextmanager
def _loading(folder: str | Path, kind: str, *files: str) -> Iterator[None]:
    """Around the lines in which transformers reads a folder: raises UserError, naming it, if it holds no such `kind`.

    It must be there with `files`: where they lack, transformers asks a hub or takes its own defaults instead.
    """
    if missing := [name for name in files if not (Path(folder) / name).is_file()]:
        raise UserError(f"{folder}: no {' and no '.join(missing)}; it should be the folder of a {kind}")
    try:
        yield
    except Exception as error:  # transformers and what it reads with raise nearly all there are
        raise UserError(f"{folder}: not the folder of a {kind} ({one_line(error)})") from error


def _configuration(folder: Path) -> dict[str, Any]:
    """What CLIP-FlanT5's `config.json` says of its T5 and its image features."""
    with reading(folder / "config.json", "configuration of CLIP-FlanT5"):
        config = read_json(folder / "config.json")
    for key, value in (("mm_projector_type", "mlp2x_gelu"), ("mm_vision_select_feature", "patch")):
        if config.get(key, value if key == "mm_vision_select_feature" else None) != value:
            raise UserError(f"{folder}/config.json: {key} is {config.get(key)!r}; only {value!r} can be loaded")
    if missing := {"mm_hidden_size", "d_model", "vocab_size"} - config.keys():
        raise UserError(f"{folder}/config.json: {', '.join(sorted(missing))} missing; it is not one of CLIP-FlanT5")
    foreign = ("model_type", "architectures", "torch_dtype", "dtype")
    return {key: value for key, value in config.items() if key not in foreign}


def _check_fit(
    folder: Path, config: Mapping[str, Any], clip: Path, tower: CLIPVisionConfig, processor: CLIPImageProcessorPil
) -> None:
    """Raises UserError unless the CLIP is one such as the configuration names, and its processor fits its tower."""
    if tower.hidden_size != config["mm_hidden_size"]:
        raise UserError(
            f"{clip}: its vision features are {tower.hidden_size} wide, but {folder}/config.json has mm_hidden_size "
            f"{config['mm_hidden_size']} and names {config.get('mm_vision_tower')}; give the folder of that model"
        )
    size = processor.crop_size
    if (size["height"], size["width"]) != (tower.image_size,) * 2:
        raise UserError(
            f"{clip}: its image processor cuts out {size['height']} by {size['width']} pixels, but its vision tower "
            f"takes {tower.image_size} by {tower.image_size}"
        )


def _check_tokenizer(folder: str | Path, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    if len(tokenizer) > vocabulary:
        raise UserError(f"{folder}: {len(tokenizer)} tokens, but the model has {vocabulary}; give its own tokenizer")
    if tokenizer.pad_token_id is None or tokenizer(ANSWER).input_ids[-1] != tokenizer.eos_token_id:
        raise UserError(f"{folder}: no tokenizer of T5, which pads and ends each text with an end token")


def _state(
    network: ClipFlanT5Network, folder: Path, clip: Path, device: torch.device, dtype: torch.dtype, tied: bool
) -> dict[str, Tensor]:
    """The network's state out of published weights, on the device, in the precision.

    `tied` tells whether the decoder's output may take the input's embeddings if the weights hold none of its own.
    Raises UserError for missing and unexpected names and for wrong shapes.
    """
    names = {name: _canonical(_published(name)) for name in network.state_dict()}
    shapes = {names[name]: tensor.shape for name, tensor in network.state_dict().items()}
    state, faults = _matching(_weights(folder), shapes, device, dtype)
    if not any(name.startswith(PUBLISHED_PREFIX["tower"]) for name in state):
        tower, tower_faults = _matching(_clip_weights(clip), shapes, device, dtype)
        state |= tower
        faults |= tower_faults
    if tied and EMBEDDINGS in state:
        state.setdefault("lm_head.weight", state[EMBEDDINGS])
    faults |= {name: f"{name} is missing" for name in shapes if name not in state and name not in faults}
    if faults:
        raise UserError(
            f"{folder}: the weights do not fit its config.json and the vision tower of {clip}: {_some(faults.values())}"
        )
    return {name: state[published] for name, published in names.items()}


def _some(faults: Iterable[str]) -> str:
    """The first few of them, and how many more there are."""
    faults = list(faults)
    more = f" and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
    return "; ".join(faults[:FAULTS_SHOWN]) + more


def _published(name: str) -> str:
    part, _, rest = name.partition(".")
    return PUBLISHED_PREFIX[part] + rest


def _canonical(name: str) -> str:
    return EMBEDDINGS if name in ALIASES else name


def _matching(
    weights: Iterable[tuple[str, Tensor]], shapes: Mapping[str, torch.Size], device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Those of the weights that have a known name and shape, and what is wrong with the others; both by their names."""
    state: dict[str, Tensor] = {}
    faults: dict[str, str] = {}
    for given, tensor in weights:
        name = _canonical(given)
        if name not in shapes:
            if name not in WITHOUT_USE:
                faults[name] = f"{given} is unexpected"
        elif tensor.shape != shapes[name]:
            faults[name] = f"{given} has shape {tuple(tensor.shape)}, not {tuple(shapes[name])}"
        else:
            tensor = tensor.to(device, dtype)
            if name in state and not torch.allclose(state[name], tensor, rtol=0, atol=0, equal_nan=True):
                faults[name] = f"{given} differs from the same weights under another name"
            state[name] = tensor
    return state, faults


def _clip_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The vision tower's weights in a folder of CLIP, under the names that CLIP-FlanT5 gives them."""
    for name, tensor in _weights(folder):
        if name.startswith("vision_model."):
            yield PUBLISHED_PREFIX["tower"] + name.removeprefix("vision_model."), tensor


def _weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Each of a folder's weights by its name, read when it is its turn."""
    for path in _weight_files(folder):
        if path.suffix == ".safetensors":
            file = TensorFile(path)
            yield from ((name, file.tensor(name)) for name in file.names)
        else:
            yield from _torch_tensors(path).items()


def _weight_files(folder: Path) -> list[Path]:
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder}: no weights; it should hold one of {', '.join(WEIGHT_FILES)}")
    if path.suffix != ".json":
        return [path]
    with reading(path, "index of weights"):
        names = sorted(set(read_json(path)["weight_map"].values()))
        if outside := [name for name in names if Path(name).name != name]:
            raise ValueError(f"{outside[0]!r} is no file beside it")
    return [folder / name for name in names]


def _torch_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch file, which may hold nothing else: no code of a file is ever run."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise TypeError("not a tensor")
    except (*UNREADABLE, UnpicklingError, TypeError, AttributeError) as error:
        kind = type(error).__name__
        raise UserError(f"{path}: not a whole torch file of tensors and nothing else ({kind}); replace it") from error
    return tensors


@dataclass(frozen=True)
class TransformersModel:
    """An encoder-decoder model of transformers as a `VisualQuestionModel`; `question` has {} in the text's place."""

    model: PreTrainedModel
    processor: ProcessorMixin
    question: str
    batch_size: int

    @torch.no_grad()
    def answer_loss(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Mean cross-entropy (b,) of the answer, in one forward pass; see `VisualQuestionModel`."""
        questions = [self.question.format(text) for text in texts]
        inputs = self.processor(images=list(images), text=questions, padding=True, return_tensors="pt")
        answer = _answer(self.processor.tokenizer, len(texts))
        decoder_input = _moved(answer, self.processor.tokenizer.pad_token_id).to(self.model.device)
        with _autocast(next(self.model.parameters())):
            logits = self.model(**inputs.to(self.model.device), decoder_input_ids=decoder_input).logits
        return _mean_loss(logits, answer)


def load_visual_question_model(
    folder: str | Path,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    question: str = QUESTION,
) -> TransformersModel:
    """A T5-like visual-question model with its processor, as transformers saved them in a local folder.

    InstructBLIP-FlanT5 and BLIP-2-FlanT5, say. Images are made ready by the model's own processor. `dtype` is bfloat16
    on a GPU and float32 on a CPU, unless it is given. Raises UserError if the folder holds no such model with all its
    weights as safetensors, or one whose decoder reads the question as well, where the answer stands in the prompt.
    """
    device = torch.device(device)
    with _loading(folder, "visual-question model with processor and safetensors", "config.json"):
        text = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        model, loading = AutoModelForImageTextToText.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=dtype or _precision(device),
            output_loading_info=True,
        )
    if not text.is_encoder_decoder:
        raise UserError(f"{folder}: {type(model).__name__} is no encoder-decoder model, which VQAScore needs")
    faults = [f"{name} is {kind}" for kind in ("missing", "unexpected") for name in sorted(loading[f"{kind}_keys"])]
    if faults:
        raise UserError(f"{folder}: the weights do not fit its config.json: {_some(faults)}")
    # On the right, where it moves neither the image nor the question.
    processor.tokenizer.padding_side = "right"
    return TransformersModel(model.to(device).eval().requires_grad_(False), processor, question, batch_size)
