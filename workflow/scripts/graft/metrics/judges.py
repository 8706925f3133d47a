"""Judges of pictures and texts, told apart by what their folder's configuration says."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from graft.errors import UserError
from graft.files import read_json, reading
from graft.metrics.vqascore import VisualQuestionModel, load_clip_flant5, load_visual_question_model
from graft.networks.saved import load_saved
from graft.networks.scorer import QuestionScorer, ScorerModel


@cache
def load_judge(folder: str | Path, device: torch.device | str, batch_size: int) -> VisualQuestionModel:
    """The judge in a local folder, which `graft.metrics.vqascore.vqascore` asks `batch_size` pairs at a time.

    A process loads each once. It is a `QuestionScorer` that diffusers saved; or CLIP-FlanT5 as it is published, with
    the tokenizer of its T5 in the subfolder `tokenizer` and its CLIP in `clip` (see `load_clip_flant5`); or another
    visual-question model of transformers (see `load_visual_question_model`). Raises UserError if it is none of these,
    or not all of one.
    """
    folder = Path(folder)
    with reading(folder / "config.json", "configuration of a judge"):
        config = read_json(folder / "config.json")
    if config.get("_class_name") == QuestionScorer.__name__:
        return ScorerModel(load_saved(folder, {QuestionScorer.__name__: QuestionScorer}, device), batch_size)
    if "mm_projector_type" in config:
        parts = {"tokenizer": folder / "tokenizer", "clip": folder / "clip"}
        return load_clip_flant5(folder, **parts, device=device, batch_size=batch_size)
    if "model_type" in config:
        return load_visual_question_model(folder, device=device, batch_size=batch_size)
    raise UserError(
        f"{folder}/config.json: of no {QuestionScorer.__name__}, CLIP-FlanT5 or visual-question model of transformers; "
        "name the folder of such a judge"
    )
