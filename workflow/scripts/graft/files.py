"""Files that a reader finds whole or not at all; one clear line for a file or an archive that is damaged."""

from __future__ import annotations

import json
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graft.errors import UserError

# What gzip, zipfile, tarfile, NumPy and Pillow raise for files that are missing, cut short, damaged or something else.
# Not TypeError, AttributeError and the like: those are defects of the code, and keep their traceback.
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    RuntimeError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
)


@contextmanager
def reading(name: str | os.PathLike, kind: str, *unreadable: type[Exception]) -> Iterator[None]:
    """Around the lines that read one file, and no others: raises UserError, naming it, if it is no whole `kind`.

    `unreadable` are exceptions that the reader raises for a damaged file besides those of the standard library.
    """
    try:
        yield
    except (*UNREADABLE, *unreadable) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name}: not a readable {kind} ({reason}); replace it and run again") from error


def tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """The regular files of a tar archive, plain or compressed, as (name, content), one in memory at a time.

    Nothing is unpacked to disk. Raises UserError, naming the archive, if it is damaged or ends too early: that may come
    to light only behind the last file, so use nothing before all files are read.
    """
    with reading(path, "tar archive"), tarfile.open(path) as archive:
        for member in archive:
            if member.isfile():
                yield member.name, archive.extractfile(member).read()  # type: ignore[union-attr]
        # tarfile takes a damaged header, or no more bytes, for the end; a whole archive ends with empty blocks.
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("a damaged header, or no end-of-archive mark")
        while archive.fileobj.read(1 << 20):
            pass  # a compressed file's checksum is verified only where its stream ends


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """A scratch path beside `path`; it takes the name `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    # A killed job may have left one: if that is a link, writing would go through it.
    scratch.unlink(missing_ok=True)
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
