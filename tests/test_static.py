"""Files: what is served, what never is, and the conditions and ranges of RFC 9110."""

import contextlib
import errno
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.errors import HTTPError
from pyproxy.http.answer import FilePart
from pyproxy.http.conditional import http_date
from pyproxy.http.static import Files

DATA = bytes(range(100))
CHANGED = 1_700_000_000  # Tue, 14 Nov 2023 22:13:20 GMT
NOW = 1_795_264_320.0  # in 2026

posix_only = pytest.mark.skipif(os.name != "posix", reason="POSIX has it")


class Ask:
    def __init__(self, method: str, fields: dict[str, str]) -> None:
        self.method = method
        self.fields = fields

    def header(self, name: str) -> str | None:
        assert name == name.lower()
        return self.fields.get(name)


class Seen(NamedTuple):
    status: int
    fields: dict[str, str]
    body: bytes
    length: int


def ask(files: Files, path: str, method: str = "GET", **fields: str) -> Seen:
    """What a client sees, whose fields have ``_`` for ``-``."""
    request = Ask(method, {name.replace("_", "-"): value for name, value in fields.items()})
    answer = files(request, path)
    assert answer.bodiless is (answer.status == 304)
    named = dict(answer.fields)
    assert len(named) == len(answer.fields), "no field twice"
    length, body = answer.length, answer.body
    if not isinstance(body, FilePart):
        return Seen(answer.status, named, b"" if method == "HEAD" else body, length)
    assert length, "nothing is no part of a file: socket.sendfile refuses it"
    if method == "HEAD":
        assert body.file.closed, "nobody sends it"
        return Seen(answer.status, named, b"", length)
    with body.file as file:
        file.seek(body.offset)
        return Seen(answer.status, named, file.read(body.length), length)


def refused(files: Files, path: str, method: str = "GET", **fields: str) -> int:
    with pytest.raises(HTTPError) as raised:
        ask(files, path, method, **fields)
    return raised.value.status


@pytest.fixture(name="root")
def make_root(tmp_path: Path) -> Path:
    """A site, beside a file that nobody may see."""
    root = tmp_path / "www"
    for folder in (root / "sub", root / ".git", root / "bare", tmp_path / "www-private"):
        folder.mkdir(parents=True)
        (folder / "secret.txt").write_bytes(b"secret")
    (root / "bare" / "secret.txt").unlink()
    (root / "sub" / "secret.txt").unlink()
    (tmp_path / "secret.txt").write_bytes(b"secret")
    (root / ".env").write_bytes(b"secret")
    (root / "sub" / ".env").write_bytes(b"secret")
    (root / "index.html").write_bytes(b"<p>start")
    (root / "sub" / "index.html").write_bytes(b"<p>sub")
    (root / "a.txt").write_bytes(DATA)
    os.utime(root / "a.txt", (CHANGED, CHANGED))
    return root


@pytest.fixture(name="files")
def make_files(root: Path) -> Files:
    return Files(str(root))


def test_a_file_is_served_with_its_validators(files: Files) -> None:
    seen = ask(files, "/a.txt")
    assert (seen.status, seen.body, seen.length) == (200, DATA, 100)
    assert re.fullmatch(r'"[!#-~]+"', seen.fields.pop("ETag"))
    assert seen.fields == {
        "Content-Type": "text/plain; charset=utf-8",
        "Last-Modified": "Tue, 14 Nov 2023 22:13:20 GMT",
        "Accept-Ranges": "bytes",
    }


def test_head_is_answered_like_get_without_the_file_and_without_ranges(files: Files) -> None:
    whole = ask(files, "/a.txt")
    assert ask(files, "/a.txt", "HEAD") == whole._replace(body=b"")
    assert ask(files, "/a.txt", "HEAD", range="bytes=1-2") == whole._replace(body=b"")
    assert ask(files, "/a.txt", "HEAD", range="bytes=100-") == whole._replace(body=b"")
    assert ask(files, "/a.txt", "HEAD", if_none_match="*").status == 304
    assert ask(files, "/a.txt", "HEAD", if_match='"x"').status == 412


def test_an_empty_file_is_served(root: Path, files: Files) -> None:
    (root / "empty.css").write_bytes(b"")
    for method in ("GET", "HEAD"):
        seen = ask(files, "/empty.css", method)
        assert (seen.status, seen.body, seen.length) == (200, b"", 0)
    assert ask(files, "/empty.css", range="bytes=-5").status == 200, "all of it is its end"
    seen = ask(files, "/empty.css", range="bytes=0-")
    assert (seen.status, seen.fields["Content-Range"]) == (416, "bytes */0")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get"])
def test_other_methods_are_not_allowed(files: Files, method: str) -> None:
    seen = ask(files, "/a.txt", method)
    assert (seen.status, seen.fields["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.html", "text/html; charset=utf-8"),
        ("a.HTM", "text/html; charset=utf-8"),
        ("a.min.css", "text/css; charset=utf-8"),
        ("a.js", "text/javascript; charset=utf-8"),
        ("a.mjs", "text/javascript; charset=utf-8"),
        ("a.md", "text/markdown; charset=utf-8"),
        ("a.csv", "text/csv; charset=utf-8"),
        ("a.json", "application/json"),
        ("a.js.map", "application/json"),
        ("a.webmanifest", "application/manifest+json"),
        ("a.wasm", "application/wasm"),
        ("a.xml", "application/xml"),
        ("a.pdf", "application/pdf"),
        ("a.svg", "image/svg+xml"),
        ("a.png", "image/png"),
        ("a.webp", "image/webp"),
        ("a.avif", "image/avif"),
        ("a.ico", "image/vnd.microsoft.icon"),
        ("a.woff2", "font/woff2"),
        ("a.mp4", "video/mp4"),
        ("a.tar", "application/x-tar"),
        ("a.tar.gz", "application/gzip"),
        ("a.html.gz", "application/gzip"),
        ("a.tgz", "application/gzip"),
        ("a.unheard-of", "application/octet-stream"),
        ("html", "application/octet-stream"),
        ("data:,a.html", "text/html; charset=utf-8"),
    ],
)
def test_the_type_follows_from_the_last_suffix(
    root: Path, files: Files, name: str, expected: str
) -> None:
    (root / name).write_bytes(b"x")
    fields = ask(files, f"/{name}").fields
    assert fields["Content-Type"] == expected
    assert "Content-Encoding" not in fields


@posix_only
def test_the_type_is_that_of_the_name_asked_for_not_of_what_a_link_leads_to(
    root: Path, files: Files
) -> None:
    (root / "latest.html").symlink_to("a.txt")
    assert ask(files, "/latest.html").fields["Content-Type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/%61.t%78t", "a.txt"),
        ("/with%20space.txt", "with space.txt"),
        ("/100%25.txt", "100%.txt"),
        ("/%D1%84%D0%B0%D0%B9%D0%BB.txt", "файл.txt"),
        ("/%25%32%65%25%32%65.txt", "%2e%2e.txt"),
        ("/a..b.txt", "a..b.txt"),
        ("/a+b.txt", "a+b.txt"),
        ("/sub/x;y=1.txt", "sub/x;y=1.txt"),
    ],
)
def test_a_name_is_decoded_once(root: Path, files: Files, path: str, name: str) -> None:
    (root / name).write_bytes(name.encode())
    assert ask(files, path).body == name.encode()


@posix_only
@pytest.mark.parametrize("name", [b"two\nlines.txt", b"latin-\xe9.txt"])
def test_a_name_may_have_any_bytes(root: Path, files: Files, name: bytes) -> None:
    Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(b"strange")
    encoded = "".join(f"%{byte:02X}" for byte in name)
    assert ask(files, f"/{encoded}").body == b"strange"


# Ranges


def slice_of(seen: Seen, start: int, stop: int) -> None:
    assert (seen.status, seen.body) == (206, DATA[start:stop])
    assert seen.fields["Content-Range"] == f"bytes {start}-{stop - 1}/100"


@pytest.mark.parametrize(
    ("value", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=99-99", 99, 100),
        ("bytes=10-19", 10, 20),
        ("bytes=10-", 10, 100),
        ("bytes=90-100", 90, 100),
        (f"bytes=90-{'9' * 90}", 90, 100),
        ("bytes=-1", 99, 100),
        ("bytes=-100", 0, 100),
        ("bytes=-101", 0, 100),
        ("Bytes=007-8", 7, 9),
        (" bytes= , 1-2 , ", 1, 3),
    ],
)
def test_a_range_is_sent_alone(files: Files, value: str, start: int, stop: int) -> None:
    seen = ask(files, "/a.txt", range=value)
    slice_of(seen, start, stop)
    whole = ask(files, "/a.txt").fields
    assert seen.fields == whole | {"Content-Range": seen.fields["Content-Range"]}


@pytest.mark.parametrize(
    "value",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=5",
        "bytes=2-1",
        "bytes=a-b",
        "bytes=0x1-2",
        "bytes=+1-2",
        "bytes=--1",
        "bytes=1--2",
        "bytes=1-2-3",
        "bytes=1 - 2",
        "bytes =1-2",
        "bytes:1-2",
        "bytes=\u0661-\u0662",
        "byte\u017f=1-2",
        "lines=1-2",
        "bytes=0-1,5-6",
        "bytes=0-1,1000-",
        "bytes=1000-,2000-",
        "bytes=0-1, bytes=5-6",
        f"bytes=-{'9' * 5000}",
    ],
)
def test_several_ranges_malformed_ones_and_other_units_get_the_whole_file(
    files: Files, value: str
) -> None:
    assert ask(files, "/a.txt", range=value) == ask(files, "/a.txt")


@pytest.mark.parametrize("value", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=9999-"])
def test_a_range_that_is_not_there_is_refused(files: Files, value: str) -> None:
    seen = ask(files, "/a.txt", range=value)
    assert (seen.status, seen.fields["Content-Range"]) == (416, "bytes */100")
    assert b"100 bytes" in seen.body


@pytest.fixture(name="shared", scope="module")
def make_shared(tmp_path_factory: pytest.TempPathFactory) -> Files:
    root = tmp_path_factory.mktemp("shared")
    for size in (0, 1, 2, 100):
        (root / str(size)).write_bytes(DATA[:size])
    return Files(str(root))


POSITION = st.integers(0, 5) | st.integers(95, 105) | st.integers(0)


@given(st.sampled_from([0, 1, 2, 100]), POSITION, st.none() | POSITION)
def test_what_is_sent_for_a_range_equals_the_slice(
    shared: Files, size: int, first: int, last: int | None
) -> None:
    text = "" if last is None else str(last)
    seen = ask(shared, f"/{size}", range=f"bytes={first}-{text}")
    if last is not None and last < first:
        assert (seen.status, seen.body) == (200, DATA[:size])
    elif first >= size:
        assert seen.status == 416
    else:
        expected = DATA[:size][first : None if last is None else last + 1]
        assert (seen.status, seen.body, seen.length) == (206, expected, len(expected))
        told = f"bytes {first}-{first + len(expected) - 1}/{size}"
        assert seen.fields["Content-Range"] == told


@given(st.sampled_from([1, 2, 100]), st.integers(1, 105) | st.integers(1))
def test_what_is_sent_for_a_suffix_equals_the_slice(shared: Files, size: int, count: int) -> None:
    seen = ask(shared, f"/{size}", range=f"bytes=-{count}")
    assert (seen.status, seen.body) == (206, DATA[:size][-count:])


# Conditions

AT = "Tue, 14 Nov 2023 22:13:20 GMT"
BEFORE = "Tue, 14 Nov 2023 22:13:19 GMT"
AFTER = "Tue, 14 Nov 2023 22:13:21 GMT"


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        # If-Match: strong, and before all others
        (200, {"if_match": "{etag}"}),
        (200, {"if_match": "*"}),
        (200, {"if_match": '"x", {etag} ,W/"y"'}),
        (200, {"if_match": ',, "a,b",{etag},'}),
        (412, {"if_match": '"x"'}),
        (412, {"if_match": "W/{etag}"}),
        (412, {"if_match": ""}),
        (412, {"if_match": "{etag} {etag}"}),
        (412, {"if_match": "x{etag}"}),
        (412, {"if_match": '*, "x"'}),
        (200, {"if_match": "{etag}", "if_unmodified_since": BEFORE}),
        (412, {"if_match": '"x"', "if_unmodified_since": AFTER}),
        (412, {"if_match": '"x"', "if_none_match": "{etag}"}),
        (304, {"if_match": "{etag}", "if_none_match": "{etag}"}),
        # If-Unmodified-Since
        (200, {"if_unmodified_since": AT}),
        (200, {"if_unmodified_since": AFTER}),
        (412, {"if_unmodified_since": BEFORE}),
        (200, {"if_unmodified_since": "yesterday"}),
        (412, {"if_unmodified_since": BEFORE, "if_none_match": "{etag}"}),
        (412, {"if_unmodified_since": BEFORE, "if_modified_since": AT}),
        # If-None-Match: weak, and instead of If-Modified-Since
        (304, {"if_none_match": "{etag}"}),
        (304, {"if_none_match": "W/{etag}"}),
        (304, {"if_none_match": " * "}),
        (304, {"if_none_match": 'W/"x",\t{etag}'}),
        (200, {"if_none_match": '"x"'}),
        (200, {"if_none_match": "w/{etag}"}),
        (200, {"if_none_match": "{etag}x"}),
        (200, {"if_none_match": '"x", *'}),
        (304, {"if_none_match": "{etag}", "if_modified_since": BEFORE}),
        (200, {"if_none_match": '"x"', "if_modified_since": AT}),
        # If-Modified-Since
        (304, {"if_modified_since": AT}),
        (304, {"if_modified_since": AFTER}),
        (200, {"if_modified_since": BEFORE}),
        (200, {"if_modified_since": "a day ago"}),
        (200, {"if_modified_since": f"{AT}, {AT}"}),
        # Range comes last
        (206, {"range": "bytes=0-0", "if_match": "{etag}"}),
        (412, {"range": "bytes=0-0", "if_match": '"x"'}),
        (304, {"range": "bytes=0-0", "if_none_match": "{etag}"}),
        (304, {"range": "bytes=100-", "if_none_match": "{etag}"}),
        # If-Range: strong, and one of them
        (206, {"range": "bytes=0-0", "if_range": "{etag}"}),
        (206, {"range": "bytes=0-0", "if_range": AT}),
        (416, {"range": "bytes=100-", "if_range": "{etag}"}),
        (200, {"range": "bytes=0-0", "if_range": "W/{etag}"}),
        (200, {"range": "bytes=0-0", "if_range": '"x"'}),
        (200, {"range": "bytes=100-", "if_range": '"x"'}),
        (200, {"range": "bytes=0-0", "if_range": '"x", {etag}'}),
        (200, {"range": "bytes=0-0", "if_range": "*"}),
        (200, {"range": "bytes=0-0", "if_range": AFTER}),
        (200, {"range": "bytes=0-0", "if_range": BEFORE}),
        (200, {"if_range": "{etag}"}),
    ],
)
def test_conditions_are_weighed_in_their_order(
    files: Files, status: int, fields: dict[str, str]
) -> None:
    etag = ask(files, "/a.txt").fields["ETag"]
    filled = {name: value.replace("{etag}", etag) for name, value in fields.items()}
    assert ask(files, "/a.txt", "GET", **filled).status == status


def test_304_tells_what_a_cache_needs_and_no_more(root: Path) -> None:
    files = Files(str(root), expires=60)
    whole = ask(files, "/a.txt").fields
    seen = ask(files, "/a.txt", if_none_match="*")
    assert (seen.status, seen.body, set(seen.fields)) == (
        304,
        b"",
        {"ETag", "Cache-Control", "Expires"},
    )
    assert seen.fields["ETag"] == whole["ETag"]


def test_conditions_do_not_count_where_there_is_no_file(files: Files) -> None:
    assert refused(files, "/none.txt", if_match='"x"') == 404
    assert refused(files, "/none.txt", if_none_match="*") == 404
    assert ask(files, "/sub", if_none_match="*").status == 301


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(DATA + b"."),
        lambda path: os.utime(path, ns=(0, CHANGED * 10**9 + 1)),
        lambda path: replace_alike(path),
    ],
    ids=["another size", "a nanosecond later", "another file"],
)
def test_each_change_gives_another_entity_tag(
    root: Path, files: Files, change: Callable[[Path], None]
) -> None:
    path = root / "a.txt"
    before = ask(files, "/a.txt").fields["ETag"]
    assert ask(files, "/a.txt").fields["ETag"] == before
    change(path)
    assert ask(files, "/a.txt").fields["ETag"] != before


def replace_alike(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(DATA[::-1])
    os.utime(other, (CHANGED, CHANGED))
    other.replace(path)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 784111777),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 784111777),
        ("Sun Nov  6 08:49:37 1994", 784111777),
        (" Thu, 01 Jan 1970 00:00:00 GMT ", 0),
        ("Sat, 31 Dec 2016 23:59:60 GMT", 1483228800),
        # Two digits: at most 50 years from now, which is 2026.
        ("Wednesday, 01-Jan-76 00:00:00 GMT", 3345062400),
        ("Saturday, 01-Jan-77 00:00:00 GMT", 220924800),
        ("Sunday, 01-Jan-26 00:00:00 GMT", 1767225600),
    ],
)
def test_a_date_has_three_forms(text: str, seconds: int) -> None:
    assert http_date(text, NOW) == seconds


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "784111777",
        "1994-11-06T08:49:37Z",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 UTC",
        "Sun, 06 Nov 1994 08:49:37 +0000",
        "Sun, 06 Nov 1994 08:49:37 GMT; length=10",
        "Sun, 6 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 94 08:49:37 GMT",
        "Sun, 06 nov 1994 08:49:37 GMT",
        "Sun, 31 Feb 1994 08:49:37 GMT",
        "Sun, 00 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 0000 08:49:37 GMT",
        "Sun, 06 Nov 1994 24:00:00 GMT",
        "Sun, 06 Nov 1994 08:60:37 GMT",
        "Sun, 06 Nov 1994 08:49:61 GMT",
        "Sun, \u0660\u0666 Nov 1994 08:49:37 GMT",
        "Sun Nov 6 08:49:37 1994",
    ],
)
def test_what_is_no_date_counts_for_nothing(text: str | None) -> None:
    assert http_date(text, NOW) is None


def test_last_modified_is_never_in_the_future(root: Path, files: Files) -> None:
    os.utime(root / "a.txt", (1e10, 1e10))
    fields = ask(files, "/a.txt").fields
    told = parsedate_to_datetime(fields["Last-Modified"]).timestamp()
    assert told <= now()
    seen = ask(files, "/a.txt", range="bytes=0-0", if_range=fields["Last-Modified"])
    assert seen.status == 200, "that second isn't over"


@posix_only
def test_a_file_from_before_1970_is_served(root: Path, files: Files) -> None:
    os.utime(root / "a.txt", (-5.5, -5.5))
    assert ask(files, "/a.txt").fields["Last-Modified"] == "Thu, 01 Jan 1970 00:00:00 GMT"


def now() -> float:
    return parsedate_to_datetime(formatdate(usegmt=True)).timestamp()


@pytest.mark.parametrize(
    ("expires", "seconds"), [(60, 60), (0, 0), (2.5, 2), (1e300, 2**31 - 1), (2592000.0, 2592000)]
)
def test_expires_is_told_to_caches(root: Path, expires: float, seconds: int) -> None:
    files = Files(str(root), expires=expires)
    for fields in ({}, {"range": "bytes=0-1"}, {"if_none_match": "*"}):
        before = now()
        seen = ask(files, "/a.txt", "GET", **fields)
        assert seen.fields["Cache-Control"] == f"max-age={seconds}"
        until = parsedate_to_datetime(seen.fields["Expires"]).timestamp()
        assert before + seconds <= until <= now() + seconds


def test_what_is_no_file_does_not_expire(root: Path) -> None:
    files = Files(str(root), expires=60)
    seen = [
        ask(files, "/sub"),
        ask(files, "/a.txt", "POST"),
        ask(files, "/a.txt", if_match='"x"'),
        ask(files, "/a.txt", range="bytes=100-"),
    ]
    assert [answer.status for answer in seen] == [301, 405, 412, 416]
    for answer in seen:
        assert not {"Cache-Control", "Expires", "ETag", "Last-Modified"} & set(answer.fields)
        assert answer.fields["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.body


# Folders


def test_a_folder_is_its_index(root: Path, files: Files) -> None:
    assert ask(files, "/").body == b"<p>start"
    seen = ask(files, "/sub/")
    assert (seen.body, seen.fields["Content-Type"]) == (b"<p>sub", "text/html; charset=utf-8")
    named = Files(str(root), index="a.txt")
    assert ask(named, "/").body == DATA
    assert refused(named, "/sub/") == 404


def test_a_folder_without_an_index_is_not_listed(root: Path, files: Files) -> None:
    assert refused(files, "/bare/") == 404
    (root / "bare" / "index.html").mkdir()
    assert refused(files, "/bare/") == 404
    assert ask(files, "/bare/index.html").status == 301


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_folder_without_its_slash_is_redirected_to_itself(files: Files, method: str) -> None:
    seen = ask(files, "/sub", method)
    assert seen.status == 301
    for at in ("http://h/sub", "http://h/deep/er/sub"):
        assert urljoin(at, seen.fields["Location"]) == f"{at}/", "wherever the route begins"


def test_a_redirect_passes_the_query_on(files: Files) -> None:
    location = dict(files(Ask("GET", {}), "/sub", "a=1&b=//x?y").fields)["Location"]
    assert urljoin("http://h/sub?a", location) == "http://h/sub/?a=1&b=//x?y"
    with pytest.raises(HTTPError, match="malformed query"):
        files(Ask("GET", {}), "/sub", "a=1\r\nSet-Cookie: b=2")


@posix_only
@pytest.mark.parametrize("path", ["/http:", "/javascript:x", "/evil.example", "/a%0d%0ab", "/%3Fx"])
def test_a_redirect_stays_on_its_host(root: Path, files: Files, path: str) -> None:
    for name in ("http:", "javascript:x", "evil.example", "a\r\nb", "?x"):
        (root / name).mkdir()
    seen = ask(files, path)
    assert seen.status == 301
    assert urljoin(f"http://h{path}", seen.fields["Location"]) == f"http://h{path}/"


@pytest.mark.parametrize(
    "path", ["//evil.example", "//evil.example/", "//sub", "/%2fsub", "/\\sub"]
)
def test_a_path_that_could_name_a_host_leads_nowhere(root: Path, files: Files, path: str) -> None:
    (root / "evil.example").mkdir()
    (root / "evil.example" / "index.html").write_bytes(b"")
    assert refused(files, path) == 404
    assert ask(files, "/evil.example").status == 301


# What is never served


@posix_only
@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/sub/../../secret.txt",
        "/%2e%2e/secret.txt",
        "/.%2E/secret.txt",
        "/..%2fsecret.txt",
        "/..%2Fsecret.txt",
        "/%2e%2e%2fsecret.txt",
        "/sub%2f..%2f..%2fsecret.txt",
        "/x/../../secret.txt",
        "/../www/a.txt",
        "/sub/../a.txt",
        "/./a.txt",
        "/sub/.",
        "/sub/..",
        "/..",
        "/../",
        "/..;/secret.txt",
        "/..\\secret.txt",
        "/..%5csecret.txt",
        "/sub%5c..%5ca.txt",
        "/back%5cslash.txt",
        "/sub%2findex.html",
        "/a.txt%2f",
        "//a.txt",
        "/sub//index.html",
        "/sub//",
        "//{outside}/secret.txt",
        "/{outside}/secret.txt",
        "/%2f{outside}/secret.txt",
        "/link.txt",
        "/absolute.txt",
        "/chain.txt",
        "/up/secret.txt",
        "/up/www/a.txt/",
        "/private/secret.txt",
        "/private/",
        "/private",
        "/gone.txt",
        "/loop.txt",
        "/null",
        "/.env",
        "/%2eenv",
        "/sub/.env",
        "/.git",
        "/.git/",
        "/.git/secret.txt",
        "/sub/.well-known/secret.txt",
        "/.well-known",
        "/.well-known/.env",
        "/.well-known/../../secret.txt",
        "/none.txt",
        "/none/",
        "/none/none.txt",
        "/a.txt/",
        "/a.txt/b.txt",
        "/a.txt/index.html",
        "/" + "x" * 300,
        "/" + "x/" * 5000,
        "/" + "x" * 300 + "/",
        "/fifo",
        "/fifo/",
        "/socket",
    ],
)
def test_nothing_else_can_be_reached(root: Path, tmp_path: Path, files: Files, path: str) -> None:
    (root / "link.txt").symlink_to("../secret.txt")
    (root / "absolute.txt").symlink_to(tmp_path / "secret.txt")
    (root / "chain.txt").symlink_to("link.txt")
    (root / "up").symlink_to("..")
    (root / "private").symlink_to("../www-private")
    (tmp_path / "www-private" / "index.html").write_bytes(b"secret")
    (root / "gone.txt").symlink_to("nowhere")
    (root / "loop.txt").symlink_to("loop.txt")
    (root / "null").symlink_to("/dev/null")
    (root / "back\\slash.txt").write_bytes(b"secret")
    (root / "sub\\..\\a.txt").write_bytes(b"secret")
    for folder in (root / ".well-known", root / "sub" / ".well-known", root / "..;"):
        folder.mkdir()
        (folder / "secret.txt").write_bytes(b"secret")
        (folder / ".env").write_bytes(b"secret")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        with contextlib.chdir(root):  # the whole path may be too long for it
            sock.bind("socket")
        assert refused(files, path.replace("{outside}", str(tmp_path)[1:])) == 404


@pytest.mark.parametrize(
    "path",
    [
        "/a.txt%00",
        "/a.txt%00.html",
        "/a.txt\0",
        "/%",
        "/%4",
        "/%zz",
        "/%u0041",
        "/a%2",
        "/a.txt\r\nx",
        "/a.txt\n",
        "/a b",
        "/файл",
        "/\udce9",
        "a.txt",
        "",
        "*",
    ],
)
def test_a_malformed_path_is_refused(files: Files, path: str) -> None:
    assert refused(files, path) == 400


@posix_only
def test_links_that_stay_inside_are_followed(root: Path, tmp_path: Path, files: Files) -> None:
    (root / "same.txt").symlink_to("a.txt")
    (root / "absolute.txt").symlink_to(root / "a.txt")
    (root / "sub" / "up").symlink_to("..")
    (root / "back.txt").symlink_to("../www/a.txt")
    # As Kubernetes mounts a ConfigMap: it is the owner who names a hidden folder here.
    (root / "mounted").symlink_to(".git")
    assert ask(files, "/same.txt").body == DATA
    assert ask(files, "/absolute.txt").body == DATA
    assert ask(files, "/back.txt").body == DATA
    assert ask(files, "/sub/up/sub/up/a.txt").body == DATA
    assert ask(files, "/sub/up").status == 301
    assert ask(files, "/mounted/secret.txt").body == b"secret"


def test_well_known_is_hidden_from_nobody(root: Path, files: Files) -> None:
    (root / ".well-known" / "acme-challenge").mkdir(parents=True)
    (root / ".well-known" / "acme-challenge" / "token").write_bytes(b"key")
    assert ask(files, "/.well-known/acme-challenge/token").body == b"key"


@posix_only
def test_a_root_that_is_a_link_may_move_to_another_release(root: Path, tmp_path: Path) -> None:
    current = tmp_path / "current"
    current.symlink_to("www")
    files = Files(str(current))
    assert ask(files, "/").body == b"<p>start"
    current.unlink()
    assert refused(files, "/") == 404
    current.symlink_to("www/sub")
    assert ask(files, "/").body == b"<p>sub"
    assert refused(files, "/../index.html") == 404


def test_the_root_of_all_can_be_served(root: Path) -> None:
    files = Files(os.path.abspath(os.sep))
    path = Path(root).as_posix().removeprefix(Path(root).drive)
    assert ask(files, f"{path}/a.txt").body == DATA


def test_a_relative_root_stays_where_it_was(root: Path, tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        files = Files("www")
    assert ask(files, "/a.txt").body == DATA


@contextlib.contextmanager
def swapped_when_opened(
    monkeypatch: pytest.MonkeyPatch, swap: Callable[[], None]
) -> Iterator[None]:
    plainly = os.open
    swaps = [swap]

    def swapping(path: str, flags: int) -> int:
        swaps.pop()()
        return plainly(path, flags)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", swapping)
        yield
    assert not swaps, "it was opened"


@posix_only
@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "nothing"])
def test_a_file_swapped_before_it_is_opened_is_not_served(
    root: Path, files: Files, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = root / "a.txt"

    def swap() -> None:
        path.unlink()
        if kind == "link":
            path.symlink_to("../secret.txt")
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()

    with swapped_when_opened(monkeypatch, swap):
        assert refused(files, "/a.txt") == 404


@posix_only
def test_nobody_waits_for_a_fifo_nor_disturbs_it(
    root: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(root / "fifo")
    opened: list[str] = []
    monkeypatch.setattr(os, "open", lambda path, flags: opened.append(path))
    assert refused(files, "/fifo") == 404
    assert not opened


@pytest.fixture(name="public")
def make_public() -> Iterator[Path]:
    """A folder that every user can reach, as tmp_path is not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """To root nothing is forbidden."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@posix_only
def test_what_the_proxy_may_not_read_is_forbidden(public: Path) -> None:
    for name in ("closed", "open"):
        (public / name).mkdir()
        (public / name / "a.txt").write_bytes(b"")
        (public / f"{name}.txt").write_bytes(b"")
    (public / "closed").chmod(0)
    (public / "closed.txt").chmod(0)
    files = Files(str(public))
    with as_nobody():
        assert refused(files, "/closed.txt") == 403
        assert refused(files, "/closed.txt", "HEAD") == 403
        assert refused(files, "/closed/a.txt") == 403
        assert refused(files, "/closed/") == 403
        assert refused(files, "/closed/none") == 403
        assert ask(files, "/open.txt").status == 200
        assert ask(files, "/open/a.txt").status == 200
    (public / "closed").chmod(0o755)


@posix_only
def test_without_descriptors_the_answer_is_to_come_again(files: Files) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        status = refused(files, "/a.txt")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert status == 503
    assert ask(files, "/a.txt").status == 200


def failing(error: Exception) -> Callable[..., int]:
    def fail(*_: object) -> int:
        raise error

    return fail


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (errno.EIO, 500),
        (errno.EILSEQ, 404),  # macOS: not UTF-8
        (errno.EINVAL, 404),  # Windows: a name like "a?b"
        (errno.ENFILE, 503),
    ],
)
def test_what_the_system_says_becomes_a_status(
    files: Files, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    monkeypatch.setattr(os, "open", failing(OSError(number, os.strerror(number))))
    assert refused(files, "/a.txt") == status


def test_a_name_that_the_system_can_not_spell_is_not_found(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "as on Windows")
    monkeypatch.setattr(os, "fsdecode", failing(error))
    assert refused(files, "/%E9") == 404


def test_a_file_stays_open_for_the_one_who_sends_it(root: Path, files: Files) -> None:
    answer = files(Ask("GET", {"range": "bytes=-10"}), "/a.txt")
    (root / "a.txt").unlink()
    assert isinstance(answer.body, FilePart)
    with answer.body.file as file:
        assert os.fstat(file.fileno()).st_size == 100
        file.seek(answer.body.offset)
        assert file.read() == DATA[-10:]


# What is refused before anything is served


@pytest.mark.parametrize("name", ["", "none", "www/a.txt", "www/a.txt/", "w\0w"])
def test_a_root_is_a_folder(root: Path, tmp_path: Path, name: str) -> None:
    with contextlib.chdir(tmp_path), pytest.raises(ValueError, match="is not a folder") as raised:
        Files(name)
    assert repr(name) in str(raised.value)


@pytest.mark.parametrize("name", ["", ".", "..", ".env", "sub/index.html", "a\\b", "a\0b"])
def test_an_index_is_the_name_of_a_file(root: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a file"):
        Files(str(root), index=name)


@pytest.mark.parametrize("seconds", [-1, -0.5, float("nan")])
def test_nothing_expires_in_the_past(root: Path, seconds: float) -> None:
    with pytest.raises(ValueError, match="is not a number of seconds"):
        Files(str(root), expires=seconds)
