"""Heads: what is refused and with which status, what is kept, dropped and added on the way."""

from collections.abc import Callable, Iterator

import pytest

from pyproxy.errors import BadReply, HTTPError
from pyproxy.http.message import (
    Memo,
    Peer,
    ReplyHead,
    RequestFields,
    RequestLine,
    connection_line,
    hopeless,
    reply_heads,
    request_fields,
    request_lines,
    trailer_lines,
)

STRANGER = Peer("192.0.2.1")
PROXY = Peer("192.0.2.1", trusted=True, scheme="https")

MALFORMED_LINES = [
    b"a: b\r\n folded",
    b"a: b\r\n\tfolded",
    b" a: b",
    b"\ta: b",
    b"a: b\rc: d",
    b"a: b\r",
    b"a: b\nc: d",
    b"a: b\n",
    b"\na: b",
    b"a: b\r\r\nc: d",
    b"a: b\x00",
    b"a: \x00b",
    b"a\x00: b",
    b"\x00a: b",
    b"a: \x01",
    b"a: \x0b",
    b"a: \x0c",
    b"a: \x1f",
    b"a: \x7f",
    b"a : b",
    b"a\t: b",
    b": b",
    b":",
    b"",
    b"a",
    b"a b",
    b"a b: c",
    b"a(b): c",
    b'"a": b',
    b"a,b: c",
    b"a@b: c",
    b"\xe4: b",
    b"a\x7f: b",
]

# Lines that tell the length of a body badly, and the status for a request with them.
BAD_FRAMING: list[tuple[tuple[bytes, ...], int]] = [
    ((b"Content-Length: 5", b"Transfer-Encoding: chunked"), 400),
    ((b"Transfer-Encoding: chunked", b"Content-Length: 5"), 400),
    ((b"Transfer-Encoding: chunked", b"content-length: 0"), 400),
    ((b"Transfer-Encoding: gzip", b"Content-Length: 5"), 400),
    ((b"Transfer-Encoding:", b"Content-Length: 5"), 400),
    ((b"Transfer-Encoding: chunked", b"Content-Length:"), 400),
    ((b"Content-Length: 5", b"Content-Length: 6"), 400),
    ((b"Content-Length: 5", b"Content-Length: 5"), 400),
    ((b"Content-Length: 5", b"X: y", b"CONTENT-LENGTH: 5"), 400),
    ((b"Content-Length: 5", b"Content-Length:"), 400),
    ((b"Content-Length:",), 400),
    ((b"Content-Length: +5",), 400),
    ((b"Content-Length: -1",), 400),
    ((b"Content-Length: -0",), 400),
    ((b"Content-Length: 5 5",), 400),
    ((b"Content-Length: 5\t5",), 400),
    ((b"Content-Length: 5,5",), 400),
    ((b"Content-Length: 5, 5",), 400),
    ((b"Content-Length: 5,",), 400),
    ((b"Content-Length: 5;",), 400),
    ((b"Content-Length: 5.0",), 400),
    ((b"Content-Length: 5_0",), 400),
    ((b"Content-Length: 0x5",), 400),
    ((b"Content-Length: 5e1",), 400),
    ((b'Content-Length: "5"',), 400),
    ((b"Content-Length: five",), 400),
    ((b"Content-Length: \xb2",), 400),
    ((b"Content-Length: \xd9\xa5",), 400),
    ((b"Content-Length: " + b"1" * 19,), 400),
    ((b"Content-Length: " + b"0" * 19,), 400),
    ((b"Content-Length: " + b"9" * 5000,), 400),
    ((b"Transfer-Encoding: chunked, gzip",), 400),
    ((b"Transfer-Encoding: chunked, chunked",), 400),
    ((b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), 400),
    ((b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip"), 400),
    ((b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"), 400),
    ((b"Transfer-Encoding: chunked,",), 400),
    ((b"Transfer-Encoding: gzip",), 501),
    ((b"Transfer-Encoding: gzip, chunked",), 501),
    ((b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"), 501),
    ((b"Transfer-Encoding: identity",), 501),
    ((b"Transfer-Encoding: ,chunked",), 501),
    ((b"Transfer-Encoding: xchunked",), 501),
    ((b"Transfer-Encoding: chunked;q=1",), 501),
    ((b"Transfer-Encoding: chunked chunked",), 501),
    ((b'Transfer-Encoding: "chunked"',), 501),
    ((b"Transfer-Encoding: \xa0chunked",), 501),
    ((b"Transfer-Encoding:",), 501),
]

MALFORMED_HOSTS = [
    b"user@h",
    b"user:password@h",
    b"@h",
    b"h/",
    b"h/path",
    b"http://h",
    b"h?q",
    b"h#f",
    b"h\\i",
    b"a b",
    b"a\tb",
    b"h\xe4",
    b'"h"',
    b"<h>",
    b"h:port",
    b"h:-1",
    b"h:+80",
    b"h:8_0",
    b"h:80:80",
    b"h:65536",
    b"::1",
    b"[::1",
    b"::1]",
    b"]::1[",
    b"[]",
    b"[h]",
    b"[::1]h:80",
    b"h[::1]:80",
    b"%zz",
]


def section(*lines: bytes) -> bytes:
    return b"".join(line + b"\r\n" for line in lines)


def fields(*lines: bytes, minor: int = 1) -> RequestFields:
    return request_fields[minor][section(*lines)]


def sent(
    *lines: bytes,
    peer: Peer = STRANGER,
    own: bytes = b"own.test",
    authority: bytes | None = None,
    minor: int = 1,
) -> list[bytes]:
    """The lines that go to a target for a request with ``lines``."""
    head = fields(*lines, minor=minor).for_target(peer, own, authority)
    assert head.endswith(b"\r\n\r\n")
    return head[:-4].split(b"\r\n")


def passed(*lines: bytes, minor: int = 1) -> list[bytes]:
    """The lines of a request that go to a target, without those that the proxy adds."""
    out = sent(*lines, minor=minor)
    return out[: out.index(b"Via: 1.%d pyproxy" % minor)]


def values(lines: list[bytes], name: bytes) -> list[bytes]:
    split = (line.partition(b": ") for line in lines)
    return [value for known, _, value in split if known.lower() == name.lower()]


def reply(*lines: bytes, start: bytes = b"HTTP/1.1 200 OK") -> ReplyHead:
    return reply_heads[section(start, *lines, b"")]


def status_of(function: Callable[[], object]) -> int:
    with pytest.raises(HTTPError) as caught:
        function()
    return caught.value.status


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"", 400),
        (b"GET", 400),
        (b"GET /", 400),
        (b"GET / ", 400),
        (b"GET /\r\n", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b"GET / HTTP/1.1\r", 400),
        (b"GET / HTTP/1.1\r\n", 400),
        (b"GET / HTTP/1.1\n", 400),
        (b" GET / HTTP/1.1", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET /  HTTP/1.1", 400),
        (b"GET\t/ HTTP/1.1", 400),
        (b"GET /\tHTTP/1.1", 400),
        (b"GET /\x0bHTTP/1.1", 400),
        (b"GET /a b HTTP/1.1", 400),
        (b"GET /\x00 HTTP/1.1", 400),
        (b"GET /\ra HTTP/1.1", 400),
        (b"GET /\na HTTP/1.1", 400),
        (b"GET /\x7f HTTP/1.1", 400),
        (b"GET /\xe4 HTTP/1.1", 400),
        (b"GET /\xc3\xa4 HTTP/1.1", 400),
        (b"G@T / HTTP/1.1", 400),
        (b"G\xcbT / HTTP/1.1", 400),
        (b"(GET) / HTTP/1.1", 400),
        (b"GET / http/1.1", 400),
        (b"GET / Http/1.1", 400),
        (b"GET / HTTP/1", 400),
        (b"GET / HTTP/1.", 400),
        (b"GET / HTTP/.1", 400),
        (b"GET / HTTP/1.10", 400),
        (b"GET / HTTP/01.1", 400),
        (b"GET / HTTP/1,1", 400),
        (b"GET / HTTP/ 1.1", 400),
        (b"GET / HTTPS/1.1", 400),
        (b"GET / HTTP/x.y", 400),
        (b"GET / HTTP/0.9", 505),
        (b"GET / HTTP/0.0", 505),
        (b"GET / HTTP/0.1", 505),
        (b"GET / HTTP/1.2", 505),
        (b"GET / HTTP/2.0", 505),
        (b"GET / HTTP/2.1", 505),
        (b"PRI * HTTP/2.0", 505),
        (b"CONNECT h:443 HTTP/1.1", 501),
        (b"CONNECT / HTTP/1.1", 501),
    ],
)
def test_a_bad_request_line_is_refused(line: bytes, status: int) -> None:
    assert status_of(lambda: request_lines[line]) == status


@pytest.mark.parametrize(
    "target",
    [
        b"#",
        b"/#",
        b"/a#f",
        b"/a?q#f",
        b"http://h/#f",
        b"*",
        b"a",
        b"h:80",
        b"?q",
        b"\\a",
        b"http:",
        b"http:/h",
        b"http:h",
        b"http//h",
        b"://h/",
        b"ftp://h/",
        b"file:///etc/passwd",
        b"javascript://h/",
        b"http://",
        b"http:///a",
        b"http://?q",
        b"http://:80/",
        *(b"http://%b/" % host for host in MALFORMED_HOSTS if not set(host) & set(b"/?# \t\xe4")),
    ],
)
def test_a_bad_target_is_refused(target: bytes) -> None:
    assert status_of(lambda: request_lines[b"GET %b HTTP/1.1" % target]) == 400


def test_the_asterisk_is_for_options() -> None:
    assert request_lines[b"OPTIONS * HTTP/1.1"].wire == b"OPTIONS * HTTP/1.1\r\n"
    assert status_of(lambda: request_lines[b"PUT * HTTP/1.1"]) == 400


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"//",
        b"//h/a",
        b"/a/../b/./c",
        b"/%2e%2e%2F%zz%",
        b"/%E4%C3%A4",
        b"/a%20b?c=%26&d",
        b"/?",
        b"/??a=/?",
        b"/http://h/",
        b"/a:b@c;d=e,f!$&'()*+~",
        b'/"<>\\^`{|}',
    ],
)
def test_an_origin_form_target_is_sent_byte_for_byte(target: bytes) -> None:
    line = request_lines[b"GET %b HTTP/1.1" % target]
    assert line.target == target
    assert line.wire == b"GET %b HTTP/1.1\r\n" % target
    assert line.authority is None


@pytest.mark.parametrize(
    ("method", "target", "authority", "path"),
    [
        (b"GET", b"http://h", b"h", b"/"),
        (b"GET", b"http://h/", b"h", b"/"),
        (b"GET", b"HTTPS://H:8443/A%2fb?c", b"H:8443", b"/A%2fb?c"),
        (b"GET", b"http://h?q=/x", b"h", b"/?q=/x"),
        (b"GET", b"http://[::1]:80/a", b"[::1]:80", b"/a"),
        (b"GET", b"http://h//a://b", b"h", b"//a://b"),
        (b"GET", b"http://h:/", b"h:", b"/"),
        (b"OPTIONS", b"http://h", b"h", b"*"),
        (b"OPTIONS", b"http://h/", b"h", b"/"),
        (b"OPTIONS", b"http://h?q", b"h", b"/?q"),
    ],
)
def test_an_absolute_target_is_split(
    method: bytes, target: bytes, authority: bytes, path: bytes
) -> None:
    line = request_lines[b"%b %b HTTP/1.1" % (method, target)]
    assert (line.target, line.authority) == (target, authority)
    assert line.wire == b"%b %b HTTP/1.1\r\n" % (method, path)


@pytest.mark.parametrize("minor", [0, 1])
def test_a_target_is_spoken_to_in_http_1_1(minor: int) -> None:
    line = request_lines[b"GET /a HTTP/1.%d" % minor]
    assert line.minor == minor
    assert line.wire == b"GET /a HTTP/1.1\r\n"


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"])
def test_an_idempotent_method_is_known(method: bytes) -> None:
    line = request_lines[b"%b / HTTP/1.1" % method]
    assert line.idempotent
    assert line.is_head == (method == b"HEAD")


@pytest.mark.parametrize(
    "method", [b"POST", b"PATCH", b"get", b"Head", b"GETS", b"!#$%&'*+-.^_`|~9"]
)
def test_another_method_is_passed_and_never_sent_twice(method: bytes) -> None:
    line = request_lines[b"%b / HTTP/1.1" % method]
    assert line.method == method
    assert not line.idempotent
    assert not line.is_head


@pytest.mark.parametrize("minor", [0, 1])
@pytest.mark.parametrize("line", MALFORMED_LINES)
def test_a_malformed_line_is_refused(line: bytes, minor: int) -> None:
    assert status_of(lambda: fields(b"Host: h", line, minor=minor)) == 400
    assert status_of(lambda: fields(line, b"Host: h", minor=minor)) == 400


def test_a_section_that_is_not_whole_is_refused() -> None:
    assert status_of(lambda: request_fields[1][b"Host: h\r\na: b"]) == 400


def test_a_refusal_names_the_field_but_not_its_value() -> None:
    with pytest.raises(HTTPError, match="X-Bad") as caught:
        fields(b"Host: h", b"X-Bad: secret\x00")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("lines", "status"), BAD_FRAMING)
def test_ambiguous_framing_is_refused(lines: tuple[bytes, ...], status: int) -> None:
    assert status_of(lambda: fields(b"Host: h", *lines)) == status


@pytest.mark.parametrize("coding", [b"chunked", b"gzip", b""])
def test_a_transfer_coding_in_http_1_0_is_refused(coding: bytes) -> None:
    assert status_of(lambda: fields(b"Transfer-Encoding: " + coding, minor=0)) == 400


@pytest.mark.parametrize("host", MALFORMED_HOSTS)
def test_a_malformed_host_is_refused(host: bytes) -> None:
    assert status_of(lambda: fields(b"Host: " + host)) == 400


@pytest.mark.parametrize("lines", [(), (b"X: y",), (b"X-Host: h",)])
def test_http_1_1_without_a_host_is_refused(lines: tuple[bytes, ...]) -> None:
    assert status_of(lambda: fields(*lines)) == 400


@pytest.mark.parametrize("minor", [0, 1])
@pytest.mark.parametrize("second", [b"Host: h", b"host: i", b"HOST:"])
def test_two_hosts_are_refused(second: bytes, minor: int) -> None:
    assert status_of(lambda: fields(b"Host: h", second, minor=minor)) == 400


@pytest.mark.parametrize(
    "lines",
    [
        (b"Expect: 200-ok",),
        (b"Expect: 100-continue, 200-ok",),
        (b"Expect: 100-continue", b"Expect: 100-continue"),
        (b"Expect: 100-continue;a=b",),
        (b"Expect:",),
    ],
)
def test_an_unknown_expectation_is_refused(lines: tuple[bytes, ...]) -> None:
    assert status_of(lambda: fields(b"Host: h", *lines)) == 417


@pytest.mark.parametrize(
    "host",
    [b"", b"h", b"h:", b"h:80", b"H.Example-1_2~:65535", b"[::1]", b"[::1]:80", b"127.0.0.1"],
)
def test_a_host_is_passed_unchanged(host: bytes) -> None:
    assert fields(b"Host: " + host).host == host
    assert passed(b"hOST:\t%b " % host) == [b"hOST:\t%b " % host]


@pytest.mark.parametrize(
    ("value", "length"),
    [(b"0", 0), (b" 5", 5), (b"\t5 \t", 5), (b"0005", 5), (b"9" * 18, 10**18 - 1)],
)
def test_a_length_is_understood(value: bytes, length: int) -> None:
    told = fields(b"Host: h", b"content-LENGTH:" + value)
    assert (told.length, told.chunked) == (length, False)
    assert fields(b"Content-Length:" + value, minor=0).length == length


@pytest.mark.parametrize("value", [b"chunked", b"Chunked", b"CHUNKED\t "])
def test_chunked_is_understood_and_sent_in_one_spelling(value: bytes) -> None:
    lines = (b"Host: h", b"transfer-ENCODING:" + value, b"X: y")
    told = fields(*lines)
    assert (told.length, told.chunked) == (None, True)
    assert values(sent(*lines), b"Transfer-Encoding") == [b"chunked"]


def test_a_request_that_tells_no_length_has_no_body() -> None:
    told = fields(b"Host: h")
    assert (told.length, told.chunked) == (None, False)
    assert not values(sent(b"Host: h"), b"Transfer-Encoding")


@pytest.mark.parametrize(
    ("lines", "in_1_0", "in_1_1"),
    [
        ((), False, True),
        ((b"Connection: keep-alive",), True, True),
        ((b"Connection: X, Keep-Alive\t",), True, True),
        ((b"Connection: close",), False, False),
        ((b"Connection: CLOSE",), False, False),
        ((b"Connection: x,\tClose ,y",), False, False),
        ((b"Connection: keep-alive", b"connection: close"), False, False),
        ((b"Connection: closed",), False, True),
        ((b"Keep-Alive: timeout=5",), False, True),
    ],
)
def test_who_keeps_the_connection_alive(
    lines: tuple[bytes, ...], in_1_0: bool, in_1_1: bool
) -> None:
    assert fields(b"Host: h", *lines, minor=0).keep_alive == in_1_0
    assert fields(b"Host: h", *lines, minor=1).keep_alive == in_1_1


@pytest.mark.parametrize("value", [b"100-continue", b"100-Continue", b" 100-CONTINUE\t"])
def test_100_continue_is_expected_and_passed_on(value: bytes) -> None:
    lines = (b"Host: h", b"Expect:" + value)
    assert fields(*lines).expects
    assert passed(*lines) == list(lines)


@pytest.mark.parametrize("value", [b"100-continue", b"200-ok"])
def test_http_1_0_expects_nothing(value: bytes) -> None:
    lines = (b"Host: h", b"Expect: " + value)
    assert not fields(*lines, minor=0).expects
    assert passed(*lines, minor=0) == [b"Host: h"]


def test_the_first_value_of_a_field_is_found() -> None:
    told = fields(b"Host: h", b"Referer:\t a b ", b"referer: c")
    assert told.get(b"referer") == b"a b"
    assert told.get(b"user-agent") is None


def test_end_to_end_lines_keep_their_bytes_and_their_order() -> None:
    lines = [
        b"x-b: 1",
        b"Host: h",
        b"X-A:2",
        b"x-b:  3 ,\t4  ",
        b"X-Text: gr\xc3\xbc\xdfe \x80\xff",
        b"X-A: 2",
        b"Cookie: a=b; c=d",
        b"Cookie: e=f",
        b"X-Empty:",
        b"!#$%&'*+-.^_`|~09aZ: ok",
        b"Authorization: Basic eDp5",
        b'Content-Type: text/plain; charset="utf-8"',
        b"Via: 1.0 other",
        b"Trailer: X-Sum",
    ]
    assert passed(*lines) == lines


@pytest.mark.parametrize(
    "line",
    [
        b"Connection: keep-alive",
        b"connection: close",
        b"Keep-Alive: timeout=5",
        b"Proxy-Authenticate: Basic",
        b"Proxy-Authorization: Basic eDp5",
        b"Proxy-Connection: keep-alive",
        b"TE: gzip",
        b"Upgrade: websocket",
        b"UPGRADE: h2c",
        b"Proxy_Authorization: Basic eDp5",
        b"Transfer_Encoding: chunked",
        b"Content_Length: 5",
    ],
)
def test_hop_by_hop_and_disguised_lines_are_dropped(line: bytes) -> None:
    assert passed(b"Host: h", line, b"X: y") == [b"Host: h", b"X: y"]


@pytest.mark.parametrize(
    "connection",
    [
        (b"Connection: x-one, X-TWO",),
        (b"Connection: X-One,x-two,close",),
        (b"Connection: ,\tX-One\t,, x-two ,",),
        (b"Connection: x-one", b"CONNECTION: x-two"),
    ],
)
def test_lines_named_by_connection_are_dropped(connection: tuple[bytes, ...]) -> None:
    lines = (b"X-One: 1", *connection, b"x-two: 2", b"X-Three: 3", b"x-one: 4", b"Host: h")
    assert passed(*lines) == [b"X-Three: 3", b"Host: h"]


def test_a_name_with_an_underscore_can_be_named_by_connection() -> None:
    assert passed(b"Host: h", b"Connection: x_one", b"X_One: 1") == [b"Host: h"]


def test_connection_cannot_drop_what_a_request_stands_on() -> None:
    lines = (b"Connection: host, content-length", b"Host: h", b"Content-Length: 5")
    assert passed(*lines) == [b"Host: h", b"Content-Length: 5"]
    assert fields(*lines).length == 5


def test_connection_cannot_drop_the_transfer_coding() -> None:
    lines = (b"Connection: transfer-encoding", b"Host: h", b"Transfer-Encoding: chunked")
    assert fields(*lines).chunked
    assert values(sent(*lines), b"Transfer-Encoding") == [b"chunked"]


@pytest.mark.parametrize("value", [b"trailers", b"Trailers\t"])
def test_te_trailers_is_said_to_the_target_too(value: bytes) -> None:
    lines = (b"Host: h", b"Connection: TE, close", b"TE:" + value, b"X: y")
    assert passed(*lines) == [b"Host: h", b"X: y", b"TE: trailers", b"Connection: TE"]


@pytest.mark.parametrize("minor", [0, 1])
def test_via_is_added_with_the_version_that_came(minor: int) -> None:
    assert values(sent(b"Host: h", minor=minor), b"Via") == [b"1.%d pyproxy" % minor]


def test_via_is_added_behind_others() -> None:
    lines = sent(b"Host: h", b"Via: 1.1 first")
    assert values(lines, b"Via") == [b"1.1 first", b"1.1 pyproxy"]


def test_an_http_1_0_request_without_a_host_gets_our_own() -> None:
    lines = sent(b"X: y", own=b"own.test:8000", minor=0)
    assert lines[:2] == [b"Host: own.test:8000", b"X: y"]
    assert values(lines, b"X-Forwarded-Host") == [b"own.test:8000"]


def test_an_http_1_0_request_keeps_its_host() -> None:
    assert values(sent(b"Host: h", minor=0), b"Host") == [b"h"]


@pytest.mark.parametrize("minor", [0, 1])
def test_the_authority_of_an_absolute_target_replaces_host(minor: int) -> None:
    lines = sent(b"X: y", b"host: h", authority=b"a:81", minor=minor)
    assert lines[:2] == [b"Host: a:81", b"X: y"]
    assert values(lines, b"Host") == [b"a:81"]
    assert values(lines, b"X-Forwarded-Host") == [b"a:81"]
    assert values(lines, b"Forwarded") == [b'for=192.0.2.1;host="a:81";proto=http']


def test_an_authority_is_not_remembered_for_the_next_request() -> None:
    told = fields(b"Host: h", b"X-Test: authority")
    before = told.for_target(STRANGER, b"own", None)
    told.for_target(STRANGER, b"own", b"elsewhere")
    assert told.for_target(STRANGER, b"own", None) == before


def test_our_own_host_is_not_remembered_for_another_proxy() -> None:
    assert values(sent(b"X-Test: own", own=b"one", minor=0), b"Host") == [b"one"]
    assert values(sent(b"X-Test: own", own=b"two", minor=0), b"Host") == [b"two"]


def test_a_target_is_told_who_asks() -> None:
    lines = sent(b"Host: h:8000")
    assert lines[lines.index(b"Via: 1.1 pyproxy") + 1 :] == [
        b"X-Forwarded-For: 192.0.2.1",
        b'Forwarded: for=192.0.2.1;host="h:8000";proto=http',
        b"X-Forwarded-Proto: http",
        b"X-Forwarded-Host: h:8000",
        b"X-Real-IP: 192.0.2.1",
    ]


def test_peers_with_the_same_head_are_told_apart() -> None:
    told = fields(b"Host: h", b"X-Test: peers")
    peers = [Peer(f"192.0.2.{number}") for number in range(200)]
    for peer in [*peers, *peers]:
        lines = told.for_target(peer, b"own", None).split(b"\r\n")
        assert values(lines, b"X-Real-IP") == [peer.address.encode()]


SPOOFED = [
    b"X-Forwarded-For: 203.0.113.9",
    b"x-forwarded-for: 203.0.113.8",
    b"X-Forwarded-Proto: gopher",
    b"X-Forwarded-Host: evil",
    b"X-Forwarded-Port: 1",
    b"X-Forwarded-Anything: 1",
    b"X-Real-IP: 203.0.113.9",
    b"Forwarded: for=203.0.113.9",
    b"X_Forwarded_For: 203.0.113.9",
    b"X_Forwarded-For: 203.0.113.9",
    b"X-Forwarded_Proto: gopher",
    b"x_real_ip: 203.0.113.9",
]


@pytest.mark.parametrize("spoofed", [[line] for line in SPOOFED] + [SPOOFED])
def test_an_untrusted_word_about_the_client_is_replaced(spoofed: list[bytes]) -> None:
    assert sent(b"Host: h", *spoofed) == sent(b"Host: h")


@pytest.mark.parametrize("line", [line for line in SPOOFED if b"_" in line])
def test_a_disguised_word_about_the_client_is_dropped_even_if_trusted(line: bytes) -> None:
    assert sent(b"Host: h", line, peer=PROXY) == sent(b"Host: h", peer=PROXY)


def test_a_trusted_word_about_the_client_is_extended() -> None:
    lines = sent(
        b"Host: h",
        b"X-Forwarded-For: 203.0.113.9, 203.0.113.8",
        b"Forwarded: for=203.0.113.9",
        b"x-forwarded-for: 203.0.113.7",
        b"forwarded: for=_hidden",
        peer=PROXY,
    )
    assert values(lines, b"X-Forwarded-For") == [
        b"203.0.113.9, 203.0.113.8, 203.0.113.7, 192.0.2.1"
    ]
    assert values(lines, b"Forwarded") == [
        b'for=203.0.113.9, for=_hidden, for=192.0.2.1;host="h";proto=https'
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"X-Forwarded-Proto: gopher",
        b"X-Forwarded-Host: first.test",
        b"X-Real-IP: 203.0.113.9",
        b"X-Forwarded-Port: 8443",
    ],
)
def test_a_trusted_word_that_is_no_list_is_kept(line: bytes) -> None:
    lines = sent(b"Host: h", line, peer=PROXY)
    name, _, value = line.partition(b": ")
    assert values(lines, name) == [value]


def test_a_trusted_peer_that_says_nothing_is_named_itself() -> None:
    lines = sent(b"Host: h", peer=PROXY)
    assert values(lines, b"X-Forwarded-For") == [b"192.0.2.1"]
    assert values(lines, b"X-Forwarded-Proto") == [b"https"]


@pytest.mark.parametrize("peer", [Peer("2001:db8::1"), Peer("2001:db8::1", trusted=True)])
def test_an_ipv6_peer_is_quoted_in_forwarded_alone(peer: Peer) -> None:
    lines = sent(b"Host: h", peer=peer)
    assert values(lines, b"Forwarded") == [b'for="[2001:db8::1]";host="h";proto=http']
    assert values(lines, b"X-Forwarded-For") == [b"2001:db8::1"]
    assert values(lines, b"X-Real-IP") == [b"2001:db8::1"]


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"HTTP/1.1",
        b"HTTP/1.1 ",
        b"HTTP/1.1 20",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 099 OK",
        b"HTTP/1.1 000 OK",
        b"HTTP/1.1 20x OK",
        b"HTTP/1.1 -20 OK",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1\t200 OK",
        b"HTTP/1.1 200\tOK",
        b"HTTP/1.1 200OK",
        b" HTTP/1.1 200 OK",
        b"http/1.1 200 OK",
        b"HTTP/1 200 OK",
        b"HTTP/1.2 200 OK",
        b"HTTP/0.9 200 OK",
        b"HTTP/2.0 200 OK",
        b"HTTP/2 200 OK",
        b"ICY 200 OK",
        b"200 OK",
        b"HTTP/1.1 200 O\x00K",
        b"HTTP/1.1 200 O\rK",
        b"HTTP/1.1 200 O\nK",
        b"HTTP/1.1 200 O\x7fK",
        b"GET / HTTP/1.1",
    ],
)
def test_a_malformed_status_line_is_a_bad_reply(start: bytes) -> None:
    with pytest.raises(BadReply):
        reply(start=start)


@pytest.mark.parametrize("line", MALFORMED_LINES)
def test_a_malformed_line_makes_a_bad_reply(line: bytes) -> None:
    with pytest.raises(BadReply):
        reply(b"Server: s", line, b"X: y")


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK", b"HTTP/1.1 204 No Content"])
@pytest.mark.parametrize("lines", [lines for lines, _ in BAD_FRAMING])
def test_ambiguous_framing_makes_a_bad_reply(lines: tuple[bytes, ...], start: bytes) -> None:
    with pytest.raises(BadReply):
        reply(*lines, start=start)


def test_a_transfer_coding_in_http_1_0_makes_a_bad_reply() -> None:
    with pytest.raises(BadReply):
        reply(b"Transfer-Encoding: chunked", start=b"HTTP/1.0 200 OK")


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK"])
def test_a_reply_keeps_its_lines_and_says_our_version(start: bytes) -> None:
    lines = [
        b"server: s",
        b"Set-Cookie: a=b",
        b"X-Text:  gr\xc3\xbc\xdfe\t",
        b"Set-Cookie: c=d",
        b"Content-Length: 5",
        b"Via: 1.1 other",
        b"x_underscore: 1",
    ]
    head = reply(*lines, start=start)
    assert head.kept == section(b"HTTP/1.1 200 OK", *lines)
    assert head.ready == head.kept + b"\r\n"
    assert (head.status, head.length, head.chunked, head.bodiless) == (200, 5, False, False)


@pytest.mark.parametrize(
    ("start", "sent_as"),
    [
        (b"HTTP/1.1 200", b"HTTP/1.1 200 "),
        (b"HTTP/1.1 200 ", b"HTTP/1.1 200 "),
        (b"HTTP/1.0 404 N\xf6  there\t", b"HTTP/1.1 404 N\xf6  there\t"),
        (b"HTTP/1.1 999 Odd", b"HTTP/1.1 999 Odd"),
    ],
)
def test_any_reason_phrase_or_none_is_passed_on(start: bytes, sent_as: bytes) -> None:
    assert reply(start=start).kept == sent_as + b"\r\n"


@pytest.mark.parametrize(
    "line",
    [
        b"Connection: keep-alive",
        b"Keep-Alive: timeout=5",
        b"Proxy-Authenticate: Basic",
        b"Proxy-Connection: close",
        b"TE: trailers",
        b"Transfer-Encoding: chunked",
        b"UPGRADE: websocket",
    ],
)
def test_hop_by_hop_lines_of_a_reply_are_dropped(line: bytes) -> None:
    assert reply(line, b"X: y").kept == section(b"HTTP/1.1 200 OK", b"X: y")


def test_lines_of_a_reply_named_by_connection_are_dropped() -> None:
    head = reply(b"X-One: 1", b"Connection: x-one,\tX_Two, content-length", b"x_two: 2", b"X: y")
    assert head.kept == section(b"HTTP/1.1 200 OK", b"X: y")
    head = reply(b"Connection: content-length", b"Content-Length: 5")
    assert head.length == 5
    assert head.kept == section(b"HTTP/1.1 200 OK", b"Content-Length: 5")


@pytest.mark.parametrize("start", [b"HTTP/1.1 100 Continue", b"HTTP/1.1 103 Early Hints"])
def test_an_interim_reply_has_no_body_and_loses_its_length(start: bytes) -> None:
    head = reply(b"Link: </a>", b"Content-Length: 5", start=start)
    assert head.bodiless
    assert head.kept == section(start, b"Link: </a>")


def test_a_204_has_no_body_and_loses_its_length() -> None:
    head = reply(b"Content-Length: 0", b"X: y", start=b"HTTP/1.1 204 No Content")
    assert head.bodiless
    assert head.kept == section(b"HTTP/1.1 204 No Content", b"X: y")


def test_a_304_has_no_body_and_keeps_its_length() -> None:
    lines = (b"Content-Length: 5", b"ETag: e")
    head = reply(*lines, start=b"HTTP/1.1 304 Not Modified")
    assert head.bodiless
    assert head.kept == section(b"HTTP/1.1 304 Not Modified", *lines)


@pytest.mark.parametrize("status", [200, 203, 205, 301, 404, 500])
def test_another_reply_has_a_body(status: int) -> None:
    assert not reply(start=b"HTTP/1.1 %d X" % status).bodiless


@pytest.mark.parametrize(
    ("start", "lines", "alive"),
    [
        (b"HTTP/1.1 200 OK", (), True),
        (b"HTTP/1.1 200 OK", (b"Connection: X, Close",), False),
        (b"HTTP/1.1 200 OK", (b"Connection: keep-alive", b"Connection: close"), False),
        (b"HTTP/1.0 200 OK", (), False),
        (b"HTTP/1.0 200 OK", (b"Connection: Keep-Alive",), True),
        (b"HTTP/1.0 200 OK", (b"Connection: Keep-Alive, close",), False),
    ],
)
def test_which_target_keeps_the_connection_alive(
    start: bytes, lines: tuple[bytes, ...], alive: bool
) -> None:
    assert reply(*lines, start=start).keep_alive == alive


def test_a_reply_may_end_with_its_connection() -> None:
    head = reply(start=b"HTTP/1.0 200 OK")
    assert (head.length, head.chunked) == (None, False)


def test_a_client_is_told_whether_the_connection_goes_on() -> None:
    assert connection_line(1, True) == b""
    assert connection_line(0, True) == b"Connection: keep-alive\r\n"
    assert connection_line(1, False) == b"Connection: close\r\n"
    assert connection_line(0, False) == b"Connection: close\r\n"


def test_trailers_keep_their_bytes_and_their_order() -> None:
    lines = (b"x-sum:  1", b"X-Other: \xe4\t", b"X-Sum: 2", b"Set-Cookie: a=b")
    assert trailer_lines(section(*lines)) == section(*lines)
    assert trailer_lines(b"") == b""


@pytest.mark.parametrize(
    "line",
    [
        b"Content-Length: 5",
        b"Transfer-Encoding: chunked",
        b"HOST: h",
        b"Connection: close",
        b"Keep-Alive: 1",
        b"TE: trailers",
        b"Upgrade: x",
        b"Proxy-Authorization: x",
        b"X-Forwarded-For: 203.0.113.9",
        b"X_Forwarded_For: 203.0.113.9",
        b"Forwarded: for=203.0.113.9",
        b"X-Real-IP: 203.0.113.9",
    ],
)
def test_a_trailer_that_belongs_into_a_head_is_dropped(line: bytes) -> None:
    assert trailer_lines(section(b"A: b", line, b"C: d")) == section(b"A: b", b"C: d")


@pytest.mark.parametrize("line", MALFORMED_LINES)
def test_a_malformed_trailer_is_refused(line: bytes) -> None:
    assert status_of(lambda: trailer_lines(section(b"A: b", line))) == 400


@pytest.mark.parametrize(
    "start",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"\x00",
        b"GET /\x00",
        b"GET / HTTP/1.1\n",
        b"GET / HTTP/1.1\nHost: h\n\n",
        b"\nGET",
        b"GET / HTTP/1.1\r\nHost: h\nX: y",
        b"GET /\x7f",
    ],
)
def test_what_cannot_become_a_request_is_not_waited_for(start: bytes) -> None:
    assert hopeless(start)


@pytest.mark.parametrize(
    "start",
    [b"", b"G", b"GET / HTTP/1.1", b"GET / HTTP/1.1\r", b"GET / HTTP/1.1\r\nHost: \xe4\tb\r"],
)
def test_what_can_become_a_request_is_waited_for(start: bytes) -> None:
    assert not hopeless(start)


def test_a_value_is_computed_once() -> None:
    asked = []

    def double(key: bytes) -> bytes:
        asked.append(key)
        return key * 2

    memo = Memo(double)
    assert [memo[b"a"], memo[b"b"], memo[b"a"]] == [b"aa", b"bb", b"aa"]
    assert asked == [b"a", b"b"]


def test_what_is_remembered_is_bounded_in_count() -> None:
    memo = Memo(len, entries=10)
    for number in range(100):
        assert memo[b"%d" % number] == len(str(number))
        assert len(memo) <= 10
    assert b"99" in memo


def test_what_is_remembered_is_bounded_in_size() -> None:
    memo = Memo(len, largest=4)
    assert [memo[b"1234"], memo[b"12345"], memo[b"12345"]] == [4, 5, 5]
    assert list(memo) == [b"1234"]


def test_errors_are_not_remembered() -> None:
    answers: Iterator[HTTPError | int] = iter([HTTPError(400, "first"), 1])

    def answer(_: bytes) -> int:
        found = next(answers)
        if isinstance(found, HTTPError):
            raise found
        return found

    memo = Memo(answer)
    assert status_of(lambda: memo[b"a"]) == 400
    assert memo[b"a"] == 1


@pytest.mark.parametrize("memo", [request_lines, *request_fields, reply_heads])
def test_the_parsers_bound_what_they_remember(memo: Memo[object]) -> None:
    before = len(memo)
    bad = b"x" * 10000
    with pytest.raises((HTTPError, BadReply)):
        memo[bad]
    assert bad not in memo
    assert len(memo) == before


def test_long_heads_are_parsed_but_not_remembered() -> None:
    long = b"a" * 8000
    request_lines[b"GET /%b HTTP/1.1" % long]
    fields(b"Host: h", b"X: " + long)
    reply(b"X: " + long)
    for memo in (request_lines, request_fields[1], reply_heads):
        assert all(len(key) < 8000 for key in memo)


def test_a_remembered_request_line_is_what_is_parsed() -> None:
    line = b"GET /remembered HTTP/1.1"
    remembered, parsed = request_lines[line], RequestLine(line)
    for name in RequestLine.__slots__:
        assert getattr(remembered, name) == getattr(parsed, name)
    assert request_lines[line] is remembered
