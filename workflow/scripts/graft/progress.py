"""Progress of long loops: a bar on a terminal, a line in the log every ten seconds."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)
T = TypeVar("T")

LOG_SECONDS = 10


def progress(iterable: Iterable[T], description: str, total: int | None = None, initial: int = 0) -> Iterator[T]:
    """Yield from `iterable` and report; `total` counts `initial` items already done, and defaults to the length."""
    total = total if total is not None else len(iterable)  # type: ignore[arg-type]
    start = logged = time.monotonic()
    bar = tqdm(iterable, desc=description, total=total, initial=initial, disable=not sys.stderr.isatty(), leave=False)
    for done, item in enumerate(bar, initial + 1):
        yield item
        now = time.monotonic()
        if now - logged > LOG_SECONDS or done == total:
            logger.info(tqdm.format_meter(done, total, now - start, initial=initial, prefix=description, ncols=80))
            logged = now
