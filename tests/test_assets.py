import base64
import gzip
import hashlib
import http.server
import logging
import threading
from types import SimpleNamespace

import pytest

import graft.image_formats
import graft.molecule_formats
from graft.assets import fetch_asset, read_description, without_credentials
from graft.configuration import check_config
from graft.errors import UserError
from graft.files import atomic

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
    """A web server on this machine: `files` and `redirects` by path; `broken` is how a body stops half-way."""
    state = SimpleNamespace(files={}, redirects={}, broken=None, requests=[])

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            self.close_connection = True
            state.requests.append((self.command, self.path, self.headers.get("Authorization")))
            if self.path in state.redirects:
                self.send_response(302)
                self.send_header("Location", state.redirects[self.path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
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


def test_md5_is_checked_where_only_that_is_published(mirror, target):
    """The sha256 of what was found is recorded all the same."""
    (mirror / "file.bin").write_bytes(CONTENT)
    formats = [form({"name": "file.bin", "md5": hashlib.md5(CONTENT).hexdigest()})]
    fetch_asset("pictures", formats, str(mirror), target)
    assert read_description(target)["files"] == {"file.bin": sha256(CONTENT)}
    (mirror / "file.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=rf"mirror/file\.bin does not have the md5 {hashlib.md5(CONTENT).hexdigest()}"):
        fetch_asset("pictures", formats, str(mirror), target)


def test_folder_in_the_place_of_a_file_is_named(mirror, target):
    (mirror / "file.bin").mkdir()
    with pytest.raises(UserError, match=r"mirror/file\.bin"):
        fetch_asset("pictures", [form(described())], str(mirror), target)
    assert files_of(target) == []


def test_asset_that_fails_is_described_no_more(mirror, target):
    for name in ("first.bin", "second.bin"):
        (mirror / name).write_bytes(CONTENT)
    formats = [form(described("first.bin"), described("second.bin"))]
    fetch_asset("pictures", formats, str(mirror), target)
    (mirror / "second.bin").write_bytes(CONTENT[1:])
    with pytest.raises(UserError, match=r"second\.bin"):
        fetch_asset("pictures", formats, str(mirror), target)
    assert not (target / "asset.json").exists()


def test_file_of_unknown_checksum_is_taken_and_its_checksum_recorded(mirror, target):
    (mirror / "file.bin").write_bytes(CONTENT)
    (mirror / "images").mkdir()
    files = [{"name": "file.bin", "sha256": None}, {"name": "images", "sha256": None}]
    fetch_asset("pictures", [form(*files)], str(mirror), target)
    empty = sha256(b"")
    assert read_description(target)["files"] == {"file.bin": sha256(CONTENT), "images": empty}


def test_checksum_of_a_folder_is_that_of_its_names_and_contents(mirror, target):
    def digest():
        fetch_asset("pictures", [form({"name": "images", "sha256": None})], str(mirror), target)
        return read_description(target)["files"]["images"]

    (mirror / "images/b").mkdir(parents=True)
    (mirror / "images/b/2.png").write_bytes(b"two")
    (mirror / "images/1.png").write_bytes(b"one")
    lines = f"{sha256(b'one')}  1.png\n{sha256(b'two')}  b/2.png\n"
    assert digest() == sha256(lines.encode())
    (mirror / "images/1.png").rename(mirror / "images/3.png")
    renamed = digest()
    (mirror / "images/3.png").write_bytes(b"three")
    assert len({digest(), renamed, sha256(lines.encode())}) == 3


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


def test_mirror_on_the_web_with_a_query_and_names_with_spaces(target, server):
    server.files["/data/file%20%231.bin"] = CONTENT
    fetch_asset("pictures", [form(described("file #1.bin"))], f"{server.url}/data?token=1", target)
    assert (target / "file #1.bin").read_bytes() == CONTENT
    assert {path for _, path, _ in server.requests} == {"/data/file%20%231.bin?token=1"}


def test_listing_of_a_folder_on_the_web_is_no_file(target, server):
    server.redirects["/images"] = "/images/"
    server.files |= {"/images/": b"<html>", "/images.zip": CONTENT}
    formats = [form({"name": "images", "sha256": None}, reader="folder"), form(described("images.zip"))]
    fetch_asset("pictures", formats, server.url, target)
    assert files_of(target) == ["asset.json", "images.zip"]


def test_download_does_not_write_through_a_link_that_a_killed_job_left(mirror, target, server):
    (mirror / "file.bin").write_bytes(b"precious")
    with atomic(target / "file.bin") as scratch:
        scratch.touch()
    scratch.symlink_to(mirror / "file.bin")
    server.files["/file.bin"] = CONTENT
    fetch_asset("pictures", [form(described())], server.url, target)
    assert (target / "file.bin").read_bytes() == CONTENT
    assert (mirror / "file.bin").read_bytes() == b"precious"


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


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("https://user:SECRET@host:8080/data?token=SECRET#SECRET", "https://host:8080/data"),
        ("http://host/data", "http://host/data"),
        ("/data/a?b@c", "/data/a?b@c"),
    ],
)
def test_a_place_is_shown_without_credentials(place, shown):
    assert without_credentials(place) == shown


def test_password_of_a_mirror_is_sent_to_it_alone(target, server):
    """In a header, decoded, and not to where the mirror redirects."""
    server.redirects["/file.bin"] = f"http://localhost:{server.port}/elsewhere.bin"
    server.files["/elsewhere.bin"] = CONTENT
    fetch_asset("pictures", [form(described())], f"http://user:pass%40word@127.0.0.1:{server.port}", target)
    assert (target / "file.bin").read_bytes() == CONTENT
    sent = {path: login for _, path, login in server.requests}
    assert sent == {"/file.bin": "Basic " + base64.b64encode(b"user:pass@word").decode(), "/elsewhere.bin": None}


@pytest.mark.parametrize(
    "mirror", ["http://user:SEC#RET@host/a", "http://user:SEC/RET@host/a", "http://u:SECRET@[::1/a"]
)
def test_malformed_address_of_a_mirror_is_refused_and_not_shown(target, caplog, mirror):
    caplog.set_level(logging.INFO)
    with pytest.raises(UserError, match="malformed") as refused:
        fetch_asset("pictures", [form(described())], mirror, target)
    assert "SEC" not in f"{refused.value} {caplog.text}"
    assert "RET" not in f"{refused.value} {caplog.text}"


def test_address_with_a_space_is_refused_and_its_query_not_shown(target, caplog):
    """http.client's message quotes the whole path and query."""
    caplog.set_level(logging.INFO)
    formats = [form(described(url="http://127.0.0.1/a file.bin?token=SECRET"))]
    with pytest.raises(UserError) as refused:
        fetch_asset("pictures", formats, None, target)
    assert "%XX" in caplog.text
    assert "SECRET" not in f"{refused.value} {caplog.text}"


@pytest.fixture
def complaint(repository):
    """What the schema of asset lists says of one format, or nothing."""

    def complaint(form):
        try:
            assets = {"pictures": {"licence": "none", "formats": [form]}}
            check_config(assets, repository / "workflow" / "schemas" / "assets.yaml")
        except UserError as error:
            return str(error)
        return None

    return complaint


@pytest.mark.parametrize(
    ("checksums", "expected"),
    [
        ({"md5": "0" * 32}, None),
        ({"sha256": "0" * 64}, None),
        ({}, "pictures.formats.0.files.0: 'sha256' is a required property"),
        ({"sha256": None, "md5": "0" * 32}, "should not be valid under {'required': ['sha256', 'md5']}"),
        ({"md5": None}, "pictures.formats.0.files.0.md5: None is not of type 'string'"),
        ({"md5": "0" * 64}, "pictures.formats.0.files.0.md5: "),
    ],
)
def test_file_states_one_checksum(complaint, checksums, expected):
    found = complaint(form({"name": "file.bin", **checksums}))
    assert found is None if expected is None else expected in found


@pytest.mark.parametrize("reader", [*graft.image_formats.READERS, *graft.molecule_formats.READERS])
def test_asset_can_have_the_format_of_every_reader(complaint, reader):
    assert complaint(form(reader=reader)) is None


def test_asset_cannot_have_a_format_without_a_reader(complaint):
    assert "'qm8' is not one of" in complaint(form(reader="qm8"))
