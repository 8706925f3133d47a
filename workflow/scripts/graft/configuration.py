"""Checks of the configuration, with one line for each mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from graft.errors import UserError


def check_config(config: dict[str, Any], schema: Path) -> None:
    """Check `config` against a closed JSON schema (a YAML file).

    Raises UserError listing every mistake as `key.path: what is wrong`; an unknown key names the nearest known one.
    """
    validator = Draft202012Validator(yaml.safe_load(schema.read_text()))
    errors = sorted(validator.iter_errors(config), key=lambda error: list(map(str, error.absolute_path)))
    lines = [line for error in errors for line in _lines(error)]
    if lines:
        raise UserError("; ".join(lines))


def check_references(config: dict[str, Any], assets: dict[str, Any]) -> None:
    """Check what a schema cannot: names that refer to one another. Raises UserError."""
    images = config["images"]
    for name in images["run"]:
        if name not in images["settings"]:
            raise UserError(f"images.run: no setting is called {name!r}{_nearest(name, images['settings'])}")
        asset = images["settings"][name]["data"]["asset"]
        if asset not in assets:
            raise UserError(
                f"images.settings.{name}.data.asset: {asset!r} is not in {config['assets']}{_nearest(asset, assets)}"
            )


def _lines(error: ValidationError) -> Iterator[str]:
    place = ".".join(map(str, error.absolute_path)) or "config"
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        for key in sorted(set(error.instance) - set(known)):
            yield f"{place}: unknown key {key!r}{_nearest(key, known)}"
    elif error.validator == "type" and isinstance(error.instance, str) and _is_number(error.instance):
        yield f"{place}: {error.instance!r} is text in YAML; write it with a decimal point, as 1.0e-6"
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
