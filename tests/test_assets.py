import gzip
import hashlib
import http.server
import logging
import threading
from types import SimpleNamespace

import pytest

from graft.assets import fetch_asset, read_description
from graft.errors import UserError

CONTENT = bytes(range(256)) * 10_000
"""More than two of the blocks that files are fetched in."""


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def described(name="file.bin", content=CONTENT, **more):
    """A file as config/assets.yaml describes it."""
    return {"name": name, "sha256": sha256(content), **more}


def form(*files, reader="archive", **more):
    return {"reader": reader, "files": list(files), **more}


@pytest.fixture
def mirror(tmp_path):
    folder = tmp_path / "mirror"
    folder.mkdir()
    return folder


@pytest.fixture
def target(tmp_path):
    return tmp_path / "asset"


@pytest.fixture
def server():
    """A web server on this machine: `files` by path; `broken` is how a body stops half-way, if it does."""
    state = SimpleNamespace(files={}, broken=None, requests=[])

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            self.close_connection = True
            state.requests.append((self.command, self.path, self.headers.get("Authorization")))
            content = state.files.get(self.path.split("?")[0])
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            if state.broken == "chunks":
                self.send_header("Transfer-Encoding", "chunked")
                content = b"%x\r\n%s" % (len(content), content[: len(content) // 2])
            else:
                self.send_header("Content-Length", str(len(content)))
                content = content[: len(content) // 2] if state.broken else content
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        state.port = httpd.server_address[1]
        state.url = f"http://127.0.0.1:{state.port}"
        yield state
        httpd.shutdown()
        thread.join()


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def test_files_of_a_mirror_folder_are_linked_and_described(mirror, target):
    (mirror / "sub").mkdir()
    (mirror / "sub" / "there.bin").write_bytes(CONTENT)
    formats = [form(described(mirror="sub/there.bin"), reader="idx", note="a copy")]
    fetch_asset("pictures", formats, str(mirror), target)
    assert (target / "file.bin").is_symlink()
    assert (target / "file.bin").read_bytes() == CONTENT
    expected = {"asset": "pictures", "reader": "idx", "note": "a copy", "files": {"file.bin": sha256(CONTENT)}}
    assert read_description(target) == expected


def test_relative_mirror_is_linked_too(mirror, target, monkeypatch):
    (mirror / "file.bin").write_bytes(CONTENT)
    monkeypatch.chdir(mirror.parent)
    fetch_asset("pictures", [form(described())], "mirror", target)
    assert (target / "file.bin").read_bytes() == CONTENT


def test_asset_without_files_needs_no_source(target):
    fetch_asset("digits", [form(reader="digits")], None, target)
    assert read_description(target)["reader"] == "digits"
    assert files_of(target) == ["asset.json"]


def test_wrong_checksum_is_named_and_leaves_no_file(mirror, target):
    (mirror / "file.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=rf"pictures: .*mirror/file\.bin .*{sha256(CONTENT)}"):
        fetch_asset("pictures", [form(described())], str(mirror), target)
    assert files_of(target) == []
    assert (mirror / "file.bin").exists()


def test_file_of_unknown_checksum_is_taken_and_its_checksum_recorded(mirror, target):
    (mirror / "file.bin").write_bytes(CONTENT)
    (mirror / "images").mkdir()
    files = [{"name": "file.bin", "sha256": None}, {"name": "images", "sha256": None}]
    fetch_asset("pictures", [form(*files)], str(mirror), target)
    assert read_description(target)["files"] == {"file.bin": sha256(CONTENT), "images": None}


@pytest.mark.parametrize("with_mirror", [True, False])
def test_missing_asset_names_what_is_needed(mirror, target, with_mirror):
    formats = [form(described("a.zip"), described("b.zip")), form(described("c.tar"))]
    with pytest.raises(UserError, match=r"pictures: .*mirror.*a\.zip, b\.zip; or c\.tar"):
        fetch_asset("pictures", formats, str(mirror) if with_mirror else None, target)
    assert not (target / "asset.json").exists()


def test_formats_are_tried_in_their_order(mirror, target):
    for name in ("first.bin", "second.bin"):
        (mirror / name).write_bytes(CONTENT)
    formats = [form(described("first.bin"), reader="idx"), form(described("second.bin"), reader="folder")]
    fetch_asset("pictures", formats, str(mirror), target)
    assert read_description(target)["reader"] == "idx"


def test_format_of_which_a_file_is_missing_is_passed_over(mirror, target):
    for name in ("first.bin", "other.bin"):
        (mirror / name).write_bytes(CONTENT)
    formats = [
        form(described("first.bin"), described("second.bin"), reader="idx"),
        form(described("other.bin"), reader="folder"),
    ]
    fetch_asset("pictures", formats, str(mirror), target)
    assert files_of(target) == ["asset.json", "other.bin"]


def test_second_format_of_the_mirror_comes_before_the_public_address_of_the_first(mirror, target, server):
    server.files["/first.bin"] = CONTENT
    (mirror / "second.bin").write_bytes(CONTENT)
    formats = [
        form(described("first.bin", url=f"{server.url}/first.bin"), reader="idx"),
        form(described("second.bin"), reader="folder"),
    ]
    fetch_asset("pictures", formats, str(mirror), target)
    assert read_description(target)["reader"] == "folder"
    assert server.requests == []
    (mirror / "second.bin").unlink()
    fetch_asset("pictures", formats, str(mirror), target)
    assert read_description(target)["reader"] == "idx"
    assert (target / "first.bin").read_bytes() == CONTENT


def test_checksum_of_what_a_gzip_file_holds(mirror, target):
    """However it was compressed; the checksum of the wrapping is not asked for."""
    formats = [form(described(checksum_of="content"))]
    for level in (1, 9):
        (mirror / "file.bin").write_bytes(gzip.compress(CONTENT, level, mtime=level))
        fetch_asset("pictures", formats, str(mirror), target)
        assert read_description(target)["files"] == {"file.bin": sha256(CONTENT)}
    (mirror / "file.bin").write_bytes(gzip.compress(CONTENT[1:]))
    with pytest.raises(UserError, match="sha256"):
        fetch_asset("pictures", formats, str(mirror), target)


BROKEN_GZIP = {
    "truncated": gzip.compress(CONTENT)[:-20],
    "damaged": gzip.compress(CONTENT)[:10] + b"\x07" * 100,
    "plain": CONTENT,
}


@pytest.mark.parametrize("damage", BROKEN_GZIP)
def test_broken_gzip_file_is_named_and_leaves_no_file(mirror, target, damage):
    (mirror / "file.bin").write_bytes(BROKEN_GZIP[damage])
    with pytest.raises(UserError, match=r"file\.bin"):
        fetch_asset("pictures", [form(described(checksum_of="content"))], str(mirror), target)
    assert files_of(target) == []


def test_mirror_on_the_web(target, server):
    server.files["/data/sub/there.bin"] = CONTENT
    fetch_asset("pictures", [form(described(mirror="sub/there.bin"))], f"{server.url}/data/", target)
    assert not (target / "file.bin").is_symlink()
    assert (target / "file.bin").read_bytes() == CONTENT
    assert read_description(target)["files"] == {"file.bin": sha256(CONTENT)}


def test_size_that_is_stated_too_small_does_not_cut_a_download(target, server):
    server.files["/file.bin"] = CONTENT
    fetch_asset("pictures", [form(described(size=10))], server.url, target)
    assert (target / "file.bin").read_bytes() == CONTENT


def test_file_that_no_place_holds(target, server):
    formats = [form(described(url=f"{server.url}/public.bin"))]
    with pytest.raises(UserError, match=r"file\.bin"):
        fetch_asset("pictures", formats, f"{server.url}/mirror", target)
    assert {path for _, path, _ in server.requests} == {"/mirror/file.bin", "/public.bin"}
    assert files_of(target) == []


@pytest.mark.parametrize("checksum", [True, False], ids=["sha256", "no sha256"])
@pytest.mark.parametrize("broken", ["length", "chunks"])
def test_truncated_response_is_an_error_and_leaves_no_file(target, server, broken, checksum):
    server.files["/file.bin"], server.broken = CONTENT, broken
    file = described() if checksum else {"name": "file.bin", "sha256": None}
    with pytest.raises(UserError, match=r"file\.bin"):
        fetch_asset("pictures", [form(file)], server.url, target)
    assert files_of(target) == []


def test_server_that_is_down_counts_as_not_holding_the_file(target):
    formats = [form(described())]
    with pytest.raises(UserError, match=r"pictures: .*file\.bin"):
        fetch_asset("pictures", formats, "http://127.0.0.1:1", target)


def test_credentials_in_an_address_are_not_shown(target, server, caplog):
    """Neither user names and passwords nor queries, whether the file is taken, wrong or missing."""
    caplog.set_level(logging.INFO)
    server.files["/file.bin"] = CONTENT
    query = f"{server.url}/file.bin?token=SECRET"
    fetch_asset("pictures", [form(described(url=query))], None, target)
    with pytest.raises(UserError) as wrong:
        fetch_asset("pictures", [form(described(url=query, content=b"other"))], None, target)
    with pytest.raises(UserError) as missing:
        fetch_asset("pictures", [form(described(url=query.replace("file", "none")))], None, target)
    assert "SECRET" not in f"{wrong.value} {missing.value} {caplog.text}"
    assert "/file.bin" in str(wrong.value)


@pytest.mark.parametrize("port", [":{}", ""], ids=["port", "no port"])
def test_credentials_in_the_address_of_a_mirror_are_not_shown(target, server, caplog, port):
    caplog.set_level(logging.INFO)
    mirror = f"http://user:SECRET@127.0.0.1{port.format(server.port)}/absent"
    with pytest.raises(UserError) as missing:
        fetch_asset("pictures", [form(described())], mirror, target)
    assert "SECRET" not in f"{missing.value} {caplog.text}"
