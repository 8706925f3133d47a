"""External files: found in a mirror or fetched, always verified, described in one JSON file beside them."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from graft.errors import UserError
from graft.files import read_json, write_json
from graft.progress import progress

logger = logging.getLogger(__name__)

BLOCK = 1 << 20
DESCRIPTION = "asset.json"


def fetch_asset(name: str, formats: list[dict[str, Any]], mirror: str | None, folder: Path) -> None:
    """Put the files of one asset into `folder`, with an `asset.json` that says which format they are in.

    `formats` are alternatives, best first, as `config/assets.yaml` lists them. Each is looked for in the mirror (a
    folder or a URL), then each at its public address. Files of a mirror folder are linked, not copied. Raises
    UserError if no format is complete, or if a file found does not have its checksum.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = [mirror] if mirror else []
    for source in [*sources, None]:
        for form in formats:
            found = _find(form["files"], source)
            if found is None:
                continue
            for file, place in found:
                _place(name, file, place, folder / file["name"])
            description = {"asset": name, "reader": form["reader"], "note": form.get("note"), "files": {}}
            for file, place in found:
                digest = None if (folder / file["name"]).is_dir() else _digest(folder / file["name"], file)
                description["files"][file["name"]] = digest
                logger.info("%s: %s (sha256 %s)", name, _shown(place), digest)
            write_json(folder / DESCRIPTION, description)
            return
    wanted = "; or ".join(", ".join(file["name"] for file in form["files"]) for form in formats)
    where = f"the mirror {mirror} does not hold it" if mirror else "no mirror is configured"
    raise UserError(f"asset {name}: {where}, and it has no public address or it cannot be reached; needed: {wanted}")


def read_description(folder: Path) -> dict[str, Any]:
    """What `fetch_asset` wrote: `asset`, `reader`, `note` and the `files` with their sha256."""
    return read_json(folder / DESCRIPTION)


def _find(files: list[dict[str, Any]], source: str | None) -> list[tuple[dict[str, Any], str]] | None:
    """Each file with the place where it is, or None if the source lacks one; source None is the public address."""
    places = []
    for file in files:
        place = file.get("url") if source is None else _join(source, file.get("mirror", file["name"]))
        if place is None or not _exists(place):
            return None
        places.append((file, place))
    return places


def _join(source: str, name: str) -> str:
    return f"{source.rstrip('/')}/{name}" if _is_url(source) else str(Path(source) / name)


def _is_url(place: str) -> bool:
    return urllib.parse.urlsplit(place).scheme in {"http", "https"}


def _exists(place: str) -> bool:
    if not _is_url(place):
        return Path(place).exists()
    try:
        request = urllib.request.Request(place, method="HEAD")
        with urllib.request.urlopen(request, timeout=30):
            return True
    except (urllib.error.URLError, TimeoutError) as error:
        logger.info("%s: %s", _shown(place), error)
        return False


def _place(name: str, file: dict[str, Any], place: str, target: Path) -> None:
    target.unlink(missing_ok=True)
    if _is_url(place):
        _download(place, target, file.get("size"))
    else:
        os.symlink(Path(place).resolve(), target)
    if file.get("sha256") and _digest(target, file) != file["sha256"]:
        target.unlink()
        raise UserError(
            f"asset {name}: {_shown(place)} does not have the sha256 {file['sha256']} that config/assets.yaml states; "
            "delete or replace it"
        )


def _download(url: str, target: Path, size: int | None) -> None:
    try:
        with urllib.request.urlopen(url, timeout=60) as response, target.open("wb") as out:
            total = size or int(response.headers.get("Content-Length") or 0)
            for _ in progress(range(-(-total // BLOCK)), f"fetching {target.name}"):
                out.write(response.read(BLOCK))
            shutil.copyfileobj(response, out, BLOCK)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise UserError(f"{_shown(url)}: {error}; try again, or give a mirror with --config mirror=…") from error


def _digest(path: Path, file: dict[str, Any]) -> str:
    """sha256 of a file, or of what a gzip file holds where the asset says so (its wrapping is not canonical)."""
    digest = hashlib.sha256()
    with _opened(path, file.get("checksum_of") == "content") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _opened(path: Path, unzip: bool) -> Iterator[IO[bytes]]:
    try:
        with gzip.open(path) if unzip else path.open("rb") as stream:
            yield stream
    except (gzip.BadGzipFile, EOFError) as error:
        raise UserError(f"{path}: not a whole gzip file ({error})") from error


def _shown(place: str) -> str:
    """A place without what must not reach a log: user names, passwords and queries of URLs."""
    parts = urllib.parse.urlsplit(place)
    if parts.scheme not in {"http", "https"}:
        return place
    return urllib.parse.urlunsplit((parts.scheme, parts.hostname or "", parts.path, "", ""))
