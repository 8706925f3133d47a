"""Writing files so that a reader finds a whole one or none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """A scratch path beside `path`; it takes the name `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys; NaN and infinity are refused (ValueError)."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    with atomic(path) as scratch:
        scratch.write_text(text + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Read one JSON document."""
    return json.loads(Path(path).read_text())
