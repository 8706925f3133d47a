"""Checks of the configuration, with one line for each mistake."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from graft.errors import UserError
from graft.tasks import TASKS

# JSON Schema counts 500.0 as an integer; range() does not.
Validator = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)

NOISING_STEPS = 1000
"""Of `graft.paths.StableDiffusionPath`, which imports torch and would make every start slower."""

UNET_LISTS = ("block_out_channels", "down_block_types", "up_block_types")
"""Lists of a UNet2DModel's arguments that have one entry for each resolution."""


def check_config(config: dict[str, Any], schema: Path) -> None:
    """Check `config` against a closed JSON schema (a YAML file).

    Raises UserError listing every mistake as `key.path: what is wrong`; an unknown key names the nearest known one.
    """
    validator = Validator(yaml.safe_load(schema.read_text()))
    errors = sorted(validator.iter_errors(config), key=lambda error: list(map(str, error.absolute_path)))
    lines = [line for error in errors for line in _lines(error)]
    if lines:
        raise UserError("; ".join(lines))


def check_references(config: dict[str, Any], assets: dict[str, Any]) -> None:
    """Check what a schema cannot: values that refer to one another, of the settings that run. Raises UserError."""
    for task in TASKS:
        settings = config[task]["settings"]
        for name in config[task]["run"]:
            if name not in settings:
                raise UserError(f"{task}.run: no setting is called {name!r}{_nearest(name, settings)}")
            place, wanted = f"{task}.settings.{name}", settings[name]["data"]["asset"]
            for asset in [wanted] if isinstance(wanted, str) else wanted:
                if asset not in assets:
                    known = _nearest(asset, assets)
                    raise UserError(f"{place}.data.asset: {asset!r} is not in {config['assets']}{known}")
            if "methods" in settings[name]:
                _check_rewards(place, settings[name], config["seeds"])
                _check_group_size(place, settings[name])
            if "inversion" in settings[name]:
                _check_corrections(place, settings[name])
            if "weights" in settings[name].get("reward", {}):
                _check_realism(place, settings[name])
            if "guidance" in settings[name]["points"]:
                _check_latents(place, settings[name])


def _check_shards(place: str, shards: int, samples: int, batch_size: int, advice: str) -> None:
    """Check that each of `shards` gets at least one batch."""
    batches = math.ceil(samples / batch_size)
    if shards > batches:
        raise UserError(f"{place}.shards: {shards} shards of {batches} batches leave some empty; lower it, or {advice}")


def _check_corrections(place: str, setting: dict[str, Any]) -> None:
    """Check a setting whose noise is corrected."""
    sampling, inversion = setting["sampling"], setting["inversion"]
    _check_shards(
        f"{place}.sampling", sampling["shards"], sampling["samples"], sampling["batch_size"], "sampling.batch_size"
    )
    if inversion["images"] is not None:  # else only the data tell how many there are
        samples = inversion["images"] * inversion["repeats"]
        _check_shards(
            f"{place}.inversion", inversion["shards"], samples, inversion["batch_size"], "inversion.batch_size"
        )
    for part in ("base", "corrector"):
        _check_network(f"{place}.{part}.network", setting[part]["network"])


def _check_latents(place: str, setting: dict[str, Any]) -> None:
    """Check a setting whose points are latents of a Stable Diffusion model."""
    points, steps = setting["points"], setting["sampler"]["steps"]
    if NOISING_STEPS % steps:
        raise UserError(
            f"{place}.sampler.steps: {steps} does not divide Stable Diffusion's {NOISING_STEPS} noising steps"
        )
    if setting["sampler"]["shift"] != 1:
        raise UserError(
            f"{place}.sampler.shift: must be 1, Stable Diffusion's noising steps are whole and evenly spaced"
        )
    if points["image_size"] % points["downsampling"]:
        raise UserError(f"{place}.points.downsampling: does not divide the image_size {points['image_size']}")


def _check_group_size(place: str, setting: dict[str, Any]) -> None:
    """Check that rules which accept within a condition find enough rollouts of it, if there is one."""
    size = setting["points"].get("rollouts_per_condition")
    for name, method in setting["methods"].items():
        rule = method.get("rule") or {}
        of = {"TopK": "m", "BestOf": "n"}.get(rule.get("type"))
        if size is not None and of and rule[of] > size:
            raise UserError(
                f"{place}.methods.{name}.rule.{of}: {rule[of]} is more than points.rollouts_per_condition = {size}, "
                "and rules accept within a condition"
            )


def _check_realism(place: str, setting: dict[str, Any]) -> None:
    """Check that there is a judge to reward realism, if it is rewarded."""
    judges, reward = setting["judges"]["pretrained"], setting["reward"]
    if reward["function"] == "tidiness" and reward["weights"]["realism"] and judges and "reward" not in judges:
        raise UserError(
            f"{place}.reward.weights.realism: needs a judge; name its folder in judges.pretrained.reward, or set "
            "judges.pretrained to null to train it"
        )


def _check_network(place: str, network: dict[str, Any]) -> None:
    lengths = {name: len(network[name]) for name in UNET_LISTS if name in network}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UserError(f"{place}: one entry a resolution in each list; their lengths are {found}")


def _check_rewards(place: str, setting: dict[str, Any], seeds: list[int]) -> None:
    """Check a setting whose samples have rewards."""
    if setting["tuning"]["seed"] in seeds:
        raise UserError(f"{place}.tuning.seed: is among seeds, but what tunes a method must not measure it")
    batch_size, rollouts = setting["sampler"]["batch_size"], setting["rollouts"]
    for block in ("rollouts", "evaluation"):
        shards, samples = setting[block]["shards"], setting[block]["samples"]
        _check_shards(f"{place}.{block}", shards, samples, batch_size, "sampler.batch_size")
    branched = setting["evaluation"]["branched"]
    if branched > rollouts["samples"]:
        raise UserError(
            f"{place}.evaluation.branched: {branched} is more than rollouts.samples = {rollouts['samples']}"
        )
    for number, level in enumerate(setting["evaluation"]["levels"]):
        _check_on_grid(f"{place}.evaluation.levels.{number}", level, setting)
    for name, method in setting["methods"].items():
        check = _check_policy_gradient if "iterations" in method else _check_rejection
        check(f"{place}.methods.{name}", method, setting)


def _check_rejection(place: str, method: dict[str, Any], setting: dict[str, Any]) -> None:
    # Here and not above: SciPy takes 0.3 s, which images alone need not wait for.
    from graft.rejection import rule_from

    _check_on_grid(f"{place}.cut", method["cut"], setting)
    if method["rule"] is not None:
        try:
            rule_from(method["rule"])
        except UserError as error:
            raise UserError(f"{place}.rule: {error}") from error


def _check_on_grid(place: str, share: float, setting: dict[str, Any]) -> None:
    """Check that a share of the sampler's time grid is one of its points."""
    steps = setting["sampler"]["steps"]
    if abs(share * steps - round(share * steps)) > 1e-9:
        raise UserError(f"{place}: {share} of {steps} sampler steps is no whole number of steps")


def _check_policy_gradient(place: str, method: dict[str, Any], setting: dict[str, Any]) -> None:
    iterations, samples = method["iterations"], setting["rollouts"]["samples"]
    if samples % iterations:
        raise UserError(f"{place}.iterations: {iterations} does not divide rollouts.samples = {samples}")
    if setting["sampler"]["eta"] == 0:
        raise UserError(f"{place}: DDPO learns from random steps; raise sampler.eta above 0 or leave the method out")


def _lines(error: ValidationError) -> Iterator[str]:
    place = ".".join(map(str, error.absolute_path)) or "config"
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        for key in sorted(set(error.instance) - set(known)):
            yield f"{place}: unknown key {key!r}{_nearest(key, known)}"
    elif "propertyNames" in error.absolute_schema_path:
        yield (
            f"{place}: {error.instance!r} is no name here: letters, digits and _, a letter first, and neither base nor "
            "a word for a missing value (nan, null, none)"
        )
    elif error.validator == "type" and isinstance(error.instance, str) and _is_number(error.instance):
        yield f"{place}: {error.instance!r} is text in YAML; write it with a decimal point, as 1.0e-6"
    elif error.validator == "enum":
        words = [word for word in error.validator_value if isinstance(word, str)]
        yield f"{place}: {error.message}{_nearest(error.instance, words)}"
    else:
        yield f"{place}: {error.message}"


def _nearest(word: str, known: Any) -> str:
    matches = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0)
    return f", did you mean {matches[0]!r}?" if matches else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
