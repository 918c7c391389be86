"""Downloads from a server of our own that fails in every way we know."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import re
import runpy
import socket
import sys
import tarfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from needsaug_lite.data import downloads as fetching
from needsaug_lite.data.downloads import DOWNLOADS, RECORD, fetch
from needsaug_lite.data.published import SOURCES
from needsaug_lite.data.transfer import Remote
from needsaug_lite.errors import UserError

CONTENT = bytes(range(256)) * 2000  # 512 kB, two blocks
SCRIPTS = Path(__file__).parents[2] / "data_scripts"


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Server:
    """Serves `files`; `behaviour[path]` lists what the next answers do wrong.

    "cut": half of what is due, then the connection ends; a number: that status;
    "ignore": no Range; afterwards, or with an empty list, all is well.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.behaviour: dict[str, list[str | int]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.sent = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path, asked = handler.path, handler.headers.get("Range")
        self.requests.append((path, asked))
        todo = self.behaviour.get(path, [])
        how = todo.pop(0) if todo else ""
        content = self.files.get(path)
        if isinstance(how, int) or content is None:
            handler.send_error(how if isinstance(how, int) else 404)
            return
        start = 0
        if asked and "ignore" not in str(how):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked).group(1))
            if start >= len(content):
                handler.send_error(416)
                return
            handler.send_response(206)
            whole = len(content)
            handler.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        else:
            handler.send_response(200)
        body = content[start:]
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if "cut" in str(how):
            body = body[: len(body) // 2]
        handler.wfile.write(body)
        self.sent += len(body)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    threading.Thread(
        target=server.http.serve_forever, args=(0.01,), daemon=True
    ).start()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def offer(server, monkeypatch) -> Callable[..., Remote]:
    """Make `fetch("toy")` know one file under the given paths of the server."""

    def make(*paths: str, content: bytes = CONTENT, **changes: object) -> Remote:
        settings: dict[str, object] = {
            "file": "Toy/raw/toy.gz",
            "urls": tuple(p if "://" in p else server.url + p for p in paths),
            "md5": md5(content),
            "sha256": sha256(content),
        }
        remote = Remote(**(settings | changes))  # type: ignore[arg-type]
        monkeypatch.setitem(DOWNLOADS, "toy", (remote,))
        return remote

    return make


def leftovers(root: Path) -> list[str]:
    return sorted(
        path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()
    )


# --- one file -------------------------------------------------------------------


def test_second_mirror_after_the_first_fails(server, offer, tmp_path):
    offer("/a/toy.gz", "/b/toy.gz")
    server.files["/b/toy.gz"] = CONTENT
    server.behaviour["/a/toy.gz"] = [503]
    (target,) = fetch("toy", tmp_path)
    assert target == tmp_path / "Toy/raw/toy.gz"
    assert target.read_bytes() == CONTENT
    assert [path for path, _ in server.requests] == ["/a/toy.gz", "/b/toy.gz"]
    assert leftovers(tmp_path) == ["Toy/raw/toy.gz", RECORD]
    assert target.stat().st_mode & 0o777 == (tmp_path / RECORD).stat().st_mode & 0o777


def test_what_is_there_and_right_is_left_alone(server, offer, tmp_path):
    offer("/toy.gz")
    target = tmp_path / "Toy/raw/toy.gz"
    target.parent.mkdir(parents=True)
    target.write_bytes(CONTENT)
    assert fetch("toy", tmp_path) == [target]
    assert server.requests == []
    assert leftovers(tmp_path) == ["Toy/raw/toy.gz"]


def test_a_wrong_file_is_replaced_by_the_right_one_only(server, offer, tmp_path):
    offer("/toy.gz")
    target = tmp_path / "Toy/raw/toy.gz"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"another version")
    with pytest.raises(UserError):
        fetch("toy", tmp_path)
    assert target.read_bytes() == b"another version"
    server.files["/toy.gz"] = CONTENT
    fetch("toy", tmp_path)
    assert target.read_bytes() == CONTENT


def test_a_cut_download_is_continued(server, offer, tmp_path):
    offer("/toy.gz")
    server.files["/toy.gz"] = CONTENT
    server.behaviour["/toy.gz"] = ["cut", "cut"]
    (target,) = fetch("toy", tmp_path)
    assert target.read_bytes() == CONTENT
    half = len(CONTENT) // 2
    ranges = [asked for _, asked in server.requests]
    assert ranges == [None, f"bytes={half}-", f"bytes={half + half // 2}-"]
    assert server.sent == len(CONTENT)  # no byte came twice


def test_a_later_call_continues_at_another_mirror(server, offer, tmp_path):
    offer("/a/toy.gz", "/b/toy.gz")
    server.files["/a/toy.gz"] = CONTENT
    server.behaviour["/a/toy.gz"] = ["cut", 500]
    with pytest.raises(UserError, match=r"toy\.gz\.part beside it will be continued"):
        fetch("toy", tmp_path)
    assert leftovers(tmp_path) == ["Toy/raw/toy.gz.part"]
    server.files = {"/b/toy.gz": CONTENT}
    server.requests.clear()
    (target,) = fetch("toy", tmp_path)
    assert target.read_bytes() == CONTENT
    half = f"bytes={len(CONTENT) // 2}-"
    assert server.requests == [("/a/toy.gz", half), ("/b/toy.gz", half)]
    assert server.sent == len(CONTENT)


def test_a_server_without_range_sends_all_again(server, offer, tmp_path):
    offer("/toy.gz")
    server.files["/toy.gz"] = CONTENT
    server.behaviour["/toy.gz"] = ["cut", "ignore"]
    (target,) = fetch("toy", tmp_path)
    assert target.read_bytes() == CONTENT
    assert server.requests[1][1] is not None
    assert server.sent == len(CONTENT) // 2 + len(CONTENT)


def test_a_server_that_always_cuts_is_given_up(server, offer, tmp_path):
    offer("/toy.gz")
    server.files["/toy.gz"] = CONTENT
    server.behaviour["/toy.gz"] = ["cut ignore"] * 50
    with pytest.raises(UserError, match="cut"):
        fetch("toy", tmp_path)
    assert len(server.requests) == 2  # the second brought it no further


def test_a_damaged_part_is_thrown_away_and_fetched_afresh(server, offer, tmp_path):
    offer("/toy.gz")
    server.files["/toy.gz"] = CONTENT
    part = tmp_path / "Toy/raw/toy.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    (target,) = fetch("toy", tmp_path)
    assert target.read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == ["bytes=1000-", None]
    assert not part.exists()


@pytest.mark.parametrize("extra", [b"", b"too long"])
def test_a_part_of_full_length(server, offer, tmp_path, extra):
    offer("/toy.gz")
    server.files["/toy.gz"] = CONTENT
    part = tmp_path / "Toy/raw/toy.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT + extra)
    (target,) = fetch("toy", tmp_path)
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == (2 if extra else 1)


@pytest.mark.parametrize("wrong", ["md5", "sha256"])
def test_wrong_checksums_leave_nothing(server, offer, tmp_path, wrong):
    remote = offer(
        "/a/toy.gz", "/b/toy.gz", **{wrong: "0" * (32 if wrong == "md5" else 64)}
    )
    server.files = {"/a/toy.gz": CONTENT, "/b/toy.gz": CONTENT}
    with pytest.raises(UserError) as caught:
        fetch("toy", tmp_path)
    assert leftovers(tmp_path) == []
    assert len(server.requests) == 2
    message = str(caught.value)
    for part in (*remote.urls, "wrong checksum", str(tmp_path / remote.file)):
        assert part in message


def test_without_a_network_the_user_is_told_what_to_do(offer, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/toy.gz"
    remote = offer(url)
    with pytest.raises(UserError) as caught:
        fetch("toy", tmp_path)
    message = str(caught.value)
    for part in (
        url,
        "no connection",
        "by hand",
        str(tmp_path / remote.file),
        remote.md5,
    ):
        assert part in message
    assert leftovers(tmp_path) == []


def test_compression_on_the_way_changes_nothing(server, offer, tmp_path, monkeypatch):
    """Some servers call a .gz file an encoding; its bytes must stay as they are."""
    content = gzip.compress(CONTENT)
    offer("/toy.gz", content=content)
    server.files["/toy.gz"] = content
    handler = server.http.RequestHandlerClass
    plain = handler.send_header

    def send_header(self, key: str, value: str) -> None:
        if key == "Content-Length":
            plain(self, "Content-Encoding", "gzip")
        plain(self, key, value)

    monkeypatch.setattr(handler, "send_header", send_header)
    (target,) = fetch("toy", tmp_path)
    assert target.read_bytes() == content


def test_a_root_that_can_t_be_written_is_named(server, offer, tmp_path):
    offer("/toy.gz")
    (tmp_path / "root").write_text("a file")
    with pytest.raises(UserError, match=r"root can't be written.*--root"):
        fetch("toy", tmp_path / "root")


# --- checksums that are told ------------------------------------------------------


def test_an_unknown_sha256_is_found_told_and_recorded(server, offer, tmp_path, caplog):
    remote = offer("/toy.gz", sha256=None)
    server.files["/toy.gz"] = CONTENT
    with caplog.at_level(logging.WARNING, logger="needsaug_lite"):
        fetch("toy", tmp_path)
    assert "no SHA-256 is published for Toy/raw/toy.gz" in caplog.text
    assert sha256(CONTENT) in caplog.text
    entry = json.loads((tmp_path / RECORD).read_text())[remote.file]
    assert entry["published_sha256"] == "unknown"
    assert entry["sha256"] == sha256(CONTENT)
    assert entry["md5"] == remote.md5


def test_the_record_keeps_what_other_data_sets_wrote(server, offer, tmp_path, caplog):
    remote = offer("/toy.gz")
    server.files["/toy.gz"] = CONTENT
    (tmp_path / RECORD).write_text('{"other": {"md5": "1"}}')
    fetch("toy", tmp_path)
    record = json.loads((tmp_path / RECORD).read_text())
    assert record["other"] == {"md5": "1"}
    assert record[remote.file]["published_sha256"] == sha256(CONTENT)
    assert "no SHA-256 is published" not in caplog.text


# --- archives ---------------------------------------------------------------------

MEMBERS = {"toy-batches/train": b"train" * 900, "toy-batches/meta": b"meta"}


def packed(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def offer_archive(server, offer) -> Callable[..., bytes]:
    def make(content: bytes, **changes: object) -> bytes:
        server.files["/toy.tar.gz"] = content
        settings = {
            "file": "toy.tar.gz",
            "unpacks_to": "toy-batches",
            "members": {name: md5(member) for name, member in MEMBERS.items()},
        }
        offer("/toy.tar.gz", content=content, **(settings | changes))
        return content

    return make


def test_an_archive_is_unpacked_and_its_members_recorded(
    server, offer_archive, tmp_path
):
    offer_archive(packed(MEMBERS | {"toy-batches/readme.html": b"read me"}))
    paths = fetch("toy", tmp_path)
    assert paths == [tmp_path / name for name in MEMBERS]
    assert [path.read_bytes() for path in paths] == list(MEMBERS.values())
    record = json.loads((tmp_path / RECORD).read_text())
    assert record["toy.tar.gz"]["published_sha256"] == record["toy.tar.gz"]["sha256"]
    assert record["toy-batches/train"]["published_sha256"] == "unknown"
    expected = [RECORD, "toy-batches/readme.html", *MEMBERS, "toy.tar.gz"]
    assert leftovers(tmp_path) == sorted(expected)
    (tmp_path / "toy.tar.gz").unlink()  # what is unpacked and right needs no archive
    fetch("toy", tmp_path)
    assert len(server.requests) == 1


def test_a_damaged_member_is_mended_from_the_archive(server, offer_archive, tmp_path):
    offer_archive(packed(MEMBERS))
    train, _ = fetch("toy", tmp_path)
    train.write_bytes(b"damaged")
    (tmp_path / "toy-batches" / "mine.txt").write_text("of the user")
    fetch("toy", tmp_path)
    assert train.read_bytes() == MEMBERS["toy-batches/train"]
    assert (tmp_path / "toy-batches" / "mine.txt").exists()
    assert len(server.requests) == 1


def test_an_archive_brought_by_hand_is_unpacked(server, offer_archive, tmp_path):
    content = offer_archive(packed(MEMBERS))
    (tmp_path / "toy.tar.gz").write_bytes(content)
    assert all(path.exists() for path in fetch("toy", tmp_path))
    assert server.requests == []


def test_an_archive_without_known_members_gives_its_folder(offer_archive, tmp_path):
    offer_archive(packed(MEMBERS), members={})
    assert fetch("toy", tmp_path) == [tmp_path / "toy-batches"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (packed(MEMBERS)[:-20], "can't be unpacked"),
        (b"no archive at all", "can't be unpacked"),
        (packed(MEMBERS | {"../outside": b"x"}), "can't be unpacked"),
        (packed(MEMBERS | {"toy-batches/train": b"x"}), "toy-batches/train; delete"),
        (packed({"toy-batches/meta": b"meta"}), "toy-batches/train; delete"),
    ],
)
def test_a_wrong_archive_leaves_no_folder(offer_archive, tmp_path, content, message):
    root = tmp_path / "root"
    offer_archive(content)
    with pytest.raises(UserError, match=message):
        fetch("toy", root)
    assert leftovers(tmp_path) == ["root/toy.tar.gz"]
    assert not (root / "toy-batches").exists()
    assert [path.name for path in root.iterdir()] == ["toy.tar.gz"]


def test_without_a_checksum_the_contents_decide(
    offer_archive, server, tmp_path, caplog
):
    def check(folder: Path) -> None:
        if (folder / "train").read_bytes() != MEMBERS["toy-batches/train"]:
            raise UserError(f"{folder.name} is another version")

    settings = {"md5": None, "sha256": None, "members": {}, "check": check}
    offer_archive(packed(MEMBERS | {"toy-batches/train": b"other"}), **settings)
    with pytest.raises(UserError, match="toy-batches is another version"):
        fetch("toy", tmp_path)
    assert leftovers(tmp_path) == ["toy.tar.gz"]
    (tmp_path / "toy.tar.gz").unlink()
    content = offer_archive(packed(MEMBERS), **settings)
    server.behaviour["/toy.tar.gz"] = ["cut"]
    with caplog.at_level(logging.WARNING, logger="needsaug_lite"):
        assert fetch("toy", tmp_path) == [tmp_path / "toy-batches"]
    assert "no checksum is published for toy.tar.gz" in caplog.text
    assert sha256(content) in caplog.text
    before = len(server.requests)
    assert fetch("toy", tmp_path) == [tmp_path / "toy-batches"]
    assert len(server.requests) == before


# --- the table of sources and the scripts ---------------------------------------------


def test_the_table_covers_every_source():
    assert set(SOURCES) <= set(DOWNLOADS)
    for name, source in SOURCES.items():
        remotes = DOWNLOADS[name]
        results = [path for r in remotes for path in r.results(Path())]
        assert {path.name for path in results} == set(source.md5)
        assert {path.parent.as_posix() for path in results} == {source.folder}
        for remote in remotes:
            assert len(remote.urls) == len(set(remote.urls)) >= 2
            for url in remote.urls:
                assert re.match("https?://", url)
                assert url.endswith("/" + Path(remote.file).name)
            assert re.fullmatch("[0-9a-f]{32}", remote.md5)
            assert remote.sha256 is None or re.fullmatch("[0-9a-f]{64}", remote.sha256)


def test_names_that_need_no_download_or_are_unknown(tmp_path):
    assert fetch("digits", tmp_path) == []
    assert leftovers(tmp_path) == []
    with pytest.raises(UserError, match="digits, mnist, fashion_mnist"):
        fetch("imagenet", tmp_path)


def run_script(name: str, monkeypatch, *arguments: str) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")


@pytest.mark.parametrize("name", sorted(DOWNLOADS))
def test_every_source_has_a_script(server, offer, tmp_path, monkeypatch, capsys, name):
    offer("/toy.gz")
    server.files["/toy.gz"] = CONTENT
    monkeypatch.setitem(DOWNLOADS, name, DOWNLOADS["toy"])
    run_script(f"fetch_{name}", monkeypatch, "--root", str(tmp_path))
    assert capsys.readouterr().out.strip() == str(tmp_path / "Toy/raw/toy.gz")


def test_a_script_shows_a_message_and_no_traceback(offer, tmp_path, monkeypatch):
    offer("/missing.gz")
    monkeypatch.setitem(DOWNLOADS, "mnist", DOWNLOADS["toy"])
    with pytest.raises(
        SystemExit, match=r"error: toy\.gz of mnist can't be downloaded"
    ):
        run_script("fetch_mnist", monkeypatch, "--root", str(tmp_path))


def test_the_script_for_digits_downloads_nothing(monkeypatch, capsys):
    monkeypatch.setattr(fetching, "download", lambda *_: pytest.fail("a download"))
    run_script("fetch_digits", monkeypatch)
    assert "nothing is downloaded" in capsys.readouterr().out
