"""Small files in the formats of the public assets, and the asset list that names them."""

import gzip
import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from unittest import mock

import numpy as np
import torch
import yaml
from PIL import Image


def idx(values):
    """Bytes of an idx file of uint8 values."""
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return header + values.astype(np.uint8).tobytes()


def write_mnist(folder, count, rng):
    """MNIST's training files with `count` random digits; returns the images (count, 28, 28)."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = rng.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count) % 10
    for name, values in (("train-images-idx3-ubyte.gz", images), ("train-labels-idx1-ubyte.gz", labels)):
        (folder / name).write_bytes(gzip.compress(idx(values)))
    return images


def write_tar(path, files):
    """A tar archive of `files`, contents by name, compressed as its suffix says: .tar, .gz or .bz2."""
    with tarfile.open(path, f"w:{path.suffix[1:]}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_cifar(path, count, rng):
    """CIFAR-10's binary archive with `count` random records in each of five batches; returns images and labels."""
    labels, images = rng.integers(0, 10, 5 * count), rng.integers(0, 256, (5 * count, 3072), np.uint8)
    batches = np.split(np.concatenate([labels[:, None].astype(np.uint8), images], axis=1), 5)
    write_tar(path, {f"cifar-10-batches-bin/data_batch_{i}.bin": rows.tobytes() for i, rows in enumerate(batches, 1)})
    return images.reshape(-1, 3, 32, 32), labels


def png(image):
    """PNG bytes of an (H, W, 3) array."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def smooth_images(count, size, rng):
    """Colour images (count, size, size, 3) without sharp edges."""
    coarse = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    return [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)) for image in coarse]


def write_photographs(mirror, count, rng):
    """CelebA-HQ as a folder, LSUN-Church as a zip archive, of 256 x 256 PNGs (and wider ones in the folder)."""
    (mirror / "celeba_hq_256").mkdir(parents=True)
    for number, image in enumerate(smooth_images(count, 256, rng)):
        (mirror / "celeba_hq_256" / f"{number:05d}.png").write_bytes(png(image))
    with zipfile.ZipFile(mirror / "lsun_church_256.zip", "w") as archive:
        for number, image in enumerate(smooth_images(count, 256, rng)):
            archive.writestr(f"church/{number:05d}.png", png(image))


def write_inception(path):
    """InceptionV3 weights under the published key names, with random values."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Inception

    with (
        torch.random.fork_rng(devices=[]),
        mock.patch("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", return_value={}),
        mock.patch.object(Inception, "load_state_dict"),
    ):
        torch.manual_seed(0)
        torch.save(Inception("inception-v3-compat", ["2048"]).state_dict(), path)


def mathematica(number):
    """A number as QM9 writes it: small ones are 4.*^-6."""
    return f"{number:.10f}" if abs(number) > 1e-4 or number == 0 else f"{number:.7e}".replace("e", "*^")


def qm9_files(molecules):
    """QM9's file of each molecule by its name; `molecules` are atoms (symbol, x, y, z), in Angstrom, by index."""
    files = {}
    for index, atoms in molecules.items():
        lines = [str(len(atoms)), f"gdb {index}\t157.7118\t157.70997\t0.\t6.469"]
        lines += ["\t".join([symbol, *map(mathematica, position), "-0.535689"]) for symbol, *position in atoms]
        lines += ["1341.307\t1341.3284", "C\tC\t", "InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4\n"]
        files[f"dsgdb9nsd_{index:06}.xyz"] = "\n".join(lines).encode()
    return files


def write_qm9(folder, molecules, uncharacterised):
    """QM9's two published files: an archive of `molecules` as `qm9_files` takes them, in their order, and the list.

    `uncharacterised` are the indices on the list, at least one, for there is no empty list; the archive may lack them.
    """
    write_tar(folder / "dsgdb9nsd.xyz.tar.bz2", qm9_files(molecules))
    rule = "=" * 80
    rows = [f"{index:8}   NC(=N)C#N   NC(=N)C#N   [NH]C(=[NH2])C#N   6.036217" for index in uncharacterised]
    lines = ["", "", "List of molecules among the 133885 GDB9 molecules", rule, "#  Index  SMILES", rule, *rows, rule]
    (folder / "uncharacterized.txt").write_text("\n".join(lines) + "\n")


PUBLAYNET_CLASSES = ("text", "title", "list", "table", "figure")
PUBLAYNET_PAGE = (612, 792)


def publaynet_labels(pages):
    """PubLayNet's JSON of pages, each a list of (class name, left, top, width, height) in pixels."""
    width, height = PUBLAYNET_PAGE
    rows = [(number, *element) for number, page in enumerate(pages, 1) for element in page]
    images = [
        {"file_name": f"PMC{number}_00003.jpg", "width": width, "height": height, "id": number}
        for number in range(1, len(pages) + 1)
    ]
    annotations = [
        {
            "segmentation": [[left, top, left, top + h, left + w, top + h, left + w, top]],
            "area": w * h,
            "iscrowd": 0,
            "image_id": image,
            "bbox": [left, top, w, h],
            "category_id": PUBLAYNET_CLASSES.index(name) + 1,
            "id": number,
        }
        for number, (image, name, left, top, w, h) in enumerate(rows, 1)
    ]
    categories = [{"supercategory": "", "id": i, "name": name} for i, name in enumerate(PUBLAYNET_CLASSES, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_publaynet(folder, training, held_out):
    """PubLayNet's published labels.tar.gz, of training and validation pages as `publaynet_labels` takes them."""
    splits = {"train": training, "val": held_out}
    files = {f"publaynet/{name}.json": json.dumps(publaynet_labels(pages)).encode() for name, pages in splits.items()}
    write_tar(folder / "labels.tar.gz", {"publaynet/README.txt": b"PubLayNet", **files})


def columns_of_boxes(count, rng):
    """Pages for PubLayNet: a title above one to four boxes of random classes and heights, one below the other."""
    pages = []
    for _ in range(count):
        page, top = [("title", 72.5, 60.0, 300.0, 14.0)], 80.0
        for name in rng.choice(PUBLAYNET_CLASSES, rng.integers(1, 5)):
            height = float(rng.integers(60, 150))
            page.append((str(name), 72.5, top, 467.0, height))
            top += height + 10
        pages.append(page)
    return pages


def write_assets(assets, mirror, path):
    """The asset list with the checksums of the replicas in `mirror`, and no public address."""
    for asset in assets.values():
        for form in asset["formats"]:
            for file in form["files"]:
                place = mirror / file.get("mirror", file["name"])
                file.pop("url", None)
                algorithm = "md5" if "md5" in file else "sha256"
                if file[algorithm] and place.exists():
                    content = place.read_bytes()
                    if file.get("checksum_of") == "content":
                        content = gzip.decompress(content)
                    file[algorithm] = hashlib.new(algorithm, content).hexdigest()
    path.write_text(yaml.safe_dump(assets))


TINY_UNET = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
TINY_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}

CLIP_FLANT5_WORDS = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: "
    'Does this figure show "? Please answer yes or no. ASSISTANT: Yes No a red cat dogs'
)
CLIP_TOWER = "vision_tower.vision_tower.vision_model."
CLIP_VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
EXTRA_ROWS = 9
"""Of T5's table, behind the tokenizer's last token."""


def t5_tokenizer():
    """A tokenizer of T5's kind with a small vocabulary."""
    from transformers import T5TokenizerFast

    pieces = [(f"▁{word}", -4.0) for word in dict.fromkeys(CLIP_FLANT5_WORDS.split())]
    characters = [(chr(code), -9.0) for code in range(33, 127)]
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5TokenizerFast(vocab=[*specials, ("▁", -6.0), *pieces, *characters], extra_ids=5)


def clip_flant5_parts(tokenizer):
    """T5 with an output of its own, CLIP's tower and the projector, with random weights."""
    from torch import nn
    from transformers import CLIPVisionConfig, CLIPVisionModel, T5Config, T5ForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        t5 = T5Config(
            vocab_size=len(tokenizer) + EXTRA_ROWS,
            d_model=20,
            d_kv=6,
            d_ff=32,
            num_layers=2,
            num_heads=3,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            decoder_start_token_id=0,
        )
        language = T5ForConditionalGeneration(t5)
        language.lm_head.weight = nn.Parameter(torch.randn(t5.vocab_size, t5.d_model) / 3)
        tower = CLIPVisionModel(CLIPVisionConfig(**CLIP_VISION, image_size=12, patch_size=4))
        for parameter in tower.parameters():
            nn.init.normal_(parameter, std=0.3)
        projector = nn.Sequential(nn.Linear(16, 20), nn.GELU(), nn.Linear(20, 20))
    return nn.ModuleDict({"t5": language, "tower": tower, "projector": projector}).eval().requires_grad_(False)


def clip_flant5_weights(parts):
    """The parts' weights under their published names."""
    aliases = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    state = {name: tensor for name, tensor in parts["t5"].state_dict().items() if name not in aliases}
    state |= {CLIP_TOWER + name: tensor for name, tensor in parts["tower"].state_dict().items()}
    state |= {f"mm_projector.{name}": tensor for name, tensor in parts["projector"].state_dict().items()}
    return {name: tensor.clone() for name, tensor in state.items()}


def clip_flant5_config(parts):
    """The published config.json."""
    return parts["t5"].config.to_dict() | {
        "model_type": "clip_t5",
        "architectures": ["CLIPT5ForConditionalGeneration"],
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_hidden_size": 16,
        "mm_projector_type": "mlp2x_gelu",
    }


def write_clip_flant5(folder):
    """CLIP-FlanT5 as a judge's folder: its own files, the tokenizer in `tokenizer`, CLIP in `clip`."""
    from safetensors.torch import save_file
    from transformers import CLIPImageProcessorPil

    tokenizer = t5_tokenizer()
    parts = clip_flant5_parts(tokenizer)
    tokenizer.save_pretrained(folder / "tokenizer")
    crop = {"height": 12, "width": 12}
    CLIPImageProcessorPil(size={"shortest_edge": 12}, crop_size=crop).save_pretrained(folder / "clip")
    vision = {"model_type": "clip", "vision_config": parts["tower"].config.to_dict()}
    (folder / "clip/config.json").write_text(json.dumps(vision))
    (folder / "config.json").write_text(json.dumps(clip_flant5_config(parts)))
    save_file(clip_flant5_weights(parts), folder / "model.safetensors")


def write_stable_diffusion(folder):
    """A Stable Diffusion of 32 x 32 pixels with latents 8 times smaller, whose tokens are letters."""
    from diffusers import AutoencoderKL

    from graft.networks.stable_diffusion import build_stable_diffusion

    vae = AutoencoderKL(
        block_out_channels=[4] * 4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=32,
    )
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    build_stable_diffusion({"unet": TINY_UNET, "text": TINY_TEXT}, vae, letters, seed=0, run=0).save_pretrained(folder)


def write_stable_diffusion_xl(folder):
    """A Stable Diffusion XL of 32 x 32 pixels: two text encoders, a UNet that is told a pooled text and sizes too."""
    from diffusers import (
        EulerDiscreteScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModelWithProjection

    write_stable_diffusion(folder)
    small = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    config, times = small.text_encoder.config, 8
    config.projection_dim = config.hidden_size
    unet = UNet2DConditionModel(
        **TINY_UNET,
        sample_size=4,
        cross_attention_dim=2 * config.hidden_size,
        addition_embed_type="text_time",
        addition_time_embed_dim=times,
        projection_class_embeddings_input_dim=6 * times + config.hidden_size,
    )
    encoders = {"text_encoder": small.text_encoder, "text_encoder_2": CLIPTextModelWithProjection(config)}
    tokenizers = {"tokenizer": small.tokenizer, "tokenizer_2": small.tokenizer}
    pipeline = StableDiffusionXLPipeline(
        vae=small.vae, unet=unet, scheduler=EulerDiscreteScheduler(), **encoders, **tokenizers
    )
    shutil.rmtree(folder)
    pipeline.save_pretrained(folder)


def write_prompts(folder):
    """A few prompts of each benchmark, in their own formats."""
    (folder / "t2i_compbench").mkdir(parents=True)
    for kind in ("3d_spatial", "color", "complex", "non_spatial", "numeracy", "shape", "spatial", "texture"):
        train = [f"a {kind} cat {number}" for number in range(6)]
        (folder / f"t2i_compbench/{kind}_train.txt").write_text("\n".join(train))
        (folder / f"t2i_compbench/{kind}_val.txt").write_text(f"a {kind} dog\na {kind} cat 0\n")
    prompts = {"00001": {"id": "00001", "prompt": "A baker and his bread."}, "00002": {"prompt": "a color cat 1"}}
    (folder / "genai_image_527.json").write_text(json.dumps(prompts))
    (folder / "geneval_metadata.jsonl").write_text('{"tag": "single_object", "prompt": "a photo of a bench"}\n')
