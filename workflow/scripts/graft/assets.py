"""External files: found in a mirror or fetched, always verified, described in one JSON file beside them."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import logging
import os
import urllib.error
import urllib.parse
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

from graft.errors import UserError
from graft.files import atomic, read_json, reading, write_json
from graft.progress import progress

logger = logging.getLogger(__name__)

BLOCK = 1 << 20
DESCRIPTION = "asset.json"
# What urllib raises when a request fails; ValueError, where an address cannot be sent.
REQUEST_ERRORS = (OSError, http.client.HTTPException, ValueError)


def fetch_asset(name: str, formats: list[dict[str, Any]], mirror: str | None, folder: Path) -> None:
    """Put the files of one asset into `folder`, with an `asset.json` that says which format they are in.

    `formats` are alternatives, best first, as `config/assets.yaml` lists them. Each is looked for in the mirror (a
    folder or a URL, which may hold a user name and a password), then each at its public address. Files of a mirror
    folder are linked, not copied. A file takes its name in `folder` once it is whole and verified, and `asset.json`
    comes last. Raises UserError if no format is complete, if a download fails, or if a file does not have its checksum:
    its `sha256`, or its `md5` where only that is published.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    sources = [mirror] if mirror else []
    for source in [*sources, None]:
        for form in formats:
            found = _find(form["files"], source)
            if found is None:
                continue
            digests = {file["name"]: _place(name, file, place, folder) for file, place in found}
            description = {"asset": name, "reader": form["reader"], "note": form.get("note"), "files": digests}
            write_json(folder / DESCRIPTION, description)
            return
    wanted = "; or ".join(", ".join(file["name"] for file in form["files"]) for form in formats)
    where = f"the mirror {without_credentials(mirror)} does not hold it" if mirror else "no mirror is configured"
    raise UserError(f"asset {name}: {where}, and it has no public address or it cannot be reached; needed: {wanted}")


def read_description(folder: Path) -> dict[str, Any]:
    """What `fetch_asset` wrote: `asset`, `reader`, `note` and the `files` with their sha256 (see `_digest`)."""
    return read_json(folder / DESCRIPTION)


def without_credentials(place: str) -> str:
    """A place without what must not reach a log: user names, passwords, queries and fragments of URLs."""
    if not _is_url(place):
        return place
    parts = _parts(place)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


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
    if not _is_url(source):
        return str(Path(source) / name)
    parts = _parts(source)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{urllib.parse.quote(name)}").geturl()


def _exists(place: str) -> bool:
    if not _is_url(place):
        return os.path.exists(place)
    try:
        with urllib.request.urlopen(_request(place, "HEAD"), timeout=30) as response:
            # A web server sends who asks for a folder on to its listing, which is no file.
            return not urllib.parse.urlsplit(response.url).path.endswith("/")
    except REQUEST_ERRORS as error:
        logger.info("%s: %s", without_credentials(place), _reason(error))
        return False


def _place(name: str, file: dict[str, Any], place: str, folder: Path) -> str:
    """Link or download one file into `folder`, whole and verified or not at all; returns its sha256."""
    algorithm = "md5" if "md5" in file else "sha256"
    content = file.get("checksum_of") == "content"
    with atomic(folder / file["name"]) as scratch:
        if _is_url(place):
            _download(place, scratch, file)
        else:
            os.symlink(Path(place).resolve(), scratch)
        digests = {each: _digest(scratch, place, content, each) for each in {"sha256", algorithm}}
        if file[algorithm] and digests[algorithm] != file[algorithm]:
            raise UserError(
                f"asset {name}: {without_credentials(place)} does not have the {algorithm} {file[algorithm]} that "
                "config/assets.yaml states; delete or replace it"
            )
    logger.info("%s: %s (sha256 %s)", name, without_credentials(place), digests["sha256"])
    return digests["sha256"]


def _download(url: str, path: Path, file: dict[str, Any]) -> None:
    try:
        with urllib.request.urlopen(_request(url, "GET"), timeout=60) as response, path.open("wb") as out:
            length = response.length  # None in a chunked answer, whose end http.client verifies
            blocks = iter(partial(response.read, BLOCK), b"")
            total = -(-(length or file.get("size") or 0) // BLOCK)
            for block in progress(blocks, f"fetching {file['name']}", total):
                out.write(block)
            if length is not None and out.tell() != length:
                raise ConnectionError(f"the answer ended after {out.tell()} of {length} bytes")
    except REQUEST_ERRORS as error:
        advice = "try again, or give a mirror with --config mirror=…"
        # From None, as the chained text may quote the URL.
        raise UserError(f"{without_credentials(url)}: {_reason(error)}; {advice}") from None


def _digest(path: Path, place: str, content: bool, algorithm: str) -> str:
    """Checksum of a file, or of what a gzip file holds where the asset says so (its wrapping is not canonical).

    A folder's is that of the lines `checksum  relative/name` of its files in the order of their names.
    """
    if path.is_dir():
        # os.walk, because the asset may be a link to the folder, or hold some, and Path.rglob does not follow links.
        walked = os.walk(path, followlinks=True)
        found = {Path(parent, name).relative_to(path).as_posix() for parent, _, names in walked for name in names}
        lines = (f"{_digest(path / name, f'{place}/{name}', False, algorithm)}  {name}\n" for name in sorted(found))
        return hashlib.new(algorithm, os.fsencode("".join(lines))).hexdigest()
    with (
        reading(without_credentials(place), "gzip file" if content else "file"),
        (gzip.open if content else open)(path, "rb") as stream,
    ):
        return hashlib.file_digest(stream, algorithm).hexdigest()


def _is_url(place: str) -> bool:
    return place.lower().startswith(("http://", "https://"))


def _parts(url: str) -> urllib.parse.SplitResult:
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port  # raises ValueError, as urlsplit does
    except ValueError:
        # What is wrong may be a part of the password: it is neither shown nor chained.
        raise UserError(
            "a malformed URL of a mirror or asset: mend its host or port, and write special characters in its user "
            "name and password as %XX"
        ) from None
    return parts


def _request(url: str, method: str) -> urllib.request.Request:
    """A request that carries a URL's user name and password as urllib can send them: in a header."""
    parts = _parts(url)
    login, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl(), method=method)
    if login:
        token = base64.b64encode(urllib.parse.unquote_to_bytes(login)).decode()
        # Unredirected: a host to which the mirror sends us on must not see them.
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _reason(error: Exception) -> str:
    """Why a request failed, in one line without the URL, which some of urllib's messages quote."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP status {error.code}"
    if isinstance(error, http.client.InvalidURL):
        return "a character that a URL cannot hold; write it as %XX"
    return " ".join(str(error).split()) or type(error).__name__
