"""Properties, with h11 as an independent parser: what pyproxy accepts means the same to h11, and
what it sends on is never ambiguous. Messages are built of tokens, some crooked, then damaged.

h11 is known to differ, where it matters here:
- it refuses white space before a chunk extension, which RFC 9112, 7.1.1 allows;
- it judges Content-Length and Transfer-Encoding in trailers too, where they mean nothing and where
  pyproxy drops them.
Whatever pyproxy refuses is left to other tests: only its acceptance is judged.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple
from urllib.parse import urlsplit

import h11
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pyproxy.errors import BadReply, HTTPError
from pyproxy.http.body import BodyReader, ChunkedDecoder, chunk, last_chunk
from pyproxy.http.message import (
    Peer,
    ReplyHead,
    RequestFields,
    RequestLine,
    connection_line,
    hopeless,
    reply_heads,
    request_fields,
    request_lines,
    split_fields,
)

some = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
many = settings(some, max_examples=350)
few = settings(some, max_examples=6)  # of each crook

Pairs = list[tuple[bytes, bytes]]  # lower-case name, value

ADDRESS = "192.0.2.1"
PEERS = [Peer(ADDRESS), Peer(ADDRESS, trusted=True), Peer("2001:db8::1", scheme="https")]
HOP_BY_HOP = {
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"transfer-encoding",
    b"upgrade",
}
WHO_ASKS = re.compile(rb"forwarded|x[-_](forwarded[-_].*|real[-_]ip)")
STRICTER_H11 = re.compile(
    r"illegal chunk header: bytearray\(b['\"][0-9A-Fa-f]+(?: |\\t)+;"
    r"|.*(?:Content-Length|Transfer-Encoding)"  # the head has passed: it is a trailer
)


class Incomplete(Exception):
    """The message goes on behind the bytes that there are."""


class Heard(NamedTuple):
    """What a parser understands of a message."""

    start: tuple[bytes, ...]  # method, target, version; or version, status, reason
    fields: Pairs
    body: bytes
    trailers: Pairs  # that may be passed on
    rest: bytes


def pairs(section: bytes) -> Pairs:
    return [(name, value) for name, value, _ in split_fields(section)]


def plain(fields: Iterable[tuple[bytes, bytes]]) -> Pairs:
    """With the one value that h11 brings to lower case alike on both sides."""
    return [
        (bytes(name), bytes(value.lower() if name == b"transfer-encoding" else value))
        for name, value in fields
    ]


def end_to_end(fields: Pairs) -> Pairs:
    """Without what ends at a proxy, told independently of pyproxy."""
    options = {
        option.strip(b" \t").lower()
        for name, value in fields
        if name == b"connection"
        for option in value.split(b",")
    } - {b"host", b"content-length"}
    return [pair for pair in fields if pair[0] not in HOP_BY_HOP | options]


def passable(trailers: Pairs) -> Pairs:
    """Trailers without what has no business in them."""
    dropped = HOP_BY_HOP | {b"host", b"content-length"}
    return [pair for pair in trailers if pair[0] not in dropped and not WHO_ASKS.fullmatch(pair[0])]


def framings(fields: Pairs) -> list[bytes]:
    return [name for name, _ in fields if name in (b"content-length", b"transfer-encoding")]


def split_head(data: bytes) -> tuple[bytes, bytes, bytes]:
    """First line, field lines, and what is behind the head, as ``ProxyHandler`` finds them."""
    line_end = data.find(b"\r\n")
    end = data.find(b"\r\n\r\n", line_end) if line_end > 0 else -1
    if end < 0:
        raise Incomplete
    return data[:line_end], data[line_end + 2 : end + 2], data[end + 4 :]


def in_pieces(data: bytes, size: int) -> Callable[[], bytes]:
    """A ``receive`` that gives ``data`` in pieces of ``size``."""
    pieces = iter([data[at : at + size] for at in range(0, len(data), size)])

    def receive() -> bytes:
        for piece in pieces:
            return piece
        raise Incomplete

    return receive


class Request(NamedTuple):
    line: RequestLine
    fields: RequestFields
    block: bytes
    after: bytes  # what came behind the head


def accepted_head(data: bytes) -> Request | None:
    """The head of a request, if pyproxy takes it."""
    try:
        start, block, after = split_head(data)
        line = request_lines[start]
        return Request(line, request_fields[line.minor][block], block, after)
    except (HTTPError, Incomplete):
        return None


def body_of(request: Request, size: int = 65536) -> BodyReader | None:
    """Its body, which comes in pieces of ``size``; None if it has none."""
    fields = request.fields
    if not (fields.length or fields.chunked):
        return None
    return BodyReader(in_pieces(request.after, size), b"", fields.length, None)


def understood(request: Request | None) -> Heard | None:
    """A request as pyproxy understands it, if it accepts all of it."""
    if not request:
        return None
    line = request.line
    start = (line.method, line.target, b"1.%d" % line.minor)
    fields = plain(pairs(request.block))
    body = body_of(request)
    if not body:
        return Heard(start, fields, b"", [], request.after)
    try:
        data = b"".join(iter(body.read, b""))
    except (HTTPError, Incomplete):
        return None
    return Heard(start, fields, data, pairs(body.ending()[3:-2]), body.rest)


def forwarded(request: Request, peer: Peer, size: int, most: int) -> bytes:
    """A request as it goes to a target."""
    head = request.line.wire + request.fields.for_target(peer, b"own", request.line.authority)
    body = body_of(request, size)
    if not body:
        return head
    out = head + body.collect(most)
    if not body.done:
        while piece := body.read():
            out += body.frame(piece)
        out += body.ending()
    return out


class Reply(NamedTuple):
    head: ReplyHead
    heard: Heard


def accepted_reply(data: bytes, to_head: bool) -> Reply | None:
    """A response as pyproxy understands it, if it accepts all of it."""
    start, found, after = data.partition(b"\r\n\r\n")
    if not found:
        return None
    try:
        head = reply_heads[start + found]
        decoder = ChunkedDecoder()
        if head.bodiless or to_head:
            body, rest = b"", after
        elif head.length is not None:
            body, rest = after[: head.length], after[head.length :]
            if len(body) < head.length:
                return None
        elif head.chunked:
            body = decoder.feed(after)
            rest = decoder.rest
            if not decoder.done:
                return None
        else:
            body, rest = after, b""
    except (BadReply, HTTPError):
        return None
    line, _, block = (start + b"\r\n").partition(b"\r\n")
    _, status, reason = head.kept.partition(b"\r\n")[0].split(b" ", 2)
    heard = Heard(
        (line[5:8], status, reason), plain(pairs(block)), body, pairs(decoder.trailers), rest
    )
    return Reply(head, heard)


def events(connection: h11.Connection) -> Iterator[h11.Event]:
    while isinstance(found := connection.next_event(), h11.Event):
        yield found
    assert found is not h11.NEED_DATA, "to h11 the message goes on"


def heard_body(connection: h11.Connection) -> tuple[bytes, Pairs, bytes]:
    """Body, trailers, and what is behind."""
    body = b""
    for found in events(connection):
        if isinstance(found, h11.Data):
            body += found.data
        elif isinstance(found, h11.EndOfMessage):
            return body, passable(plain(found.headers)), connection.trailing_data[0]
    raise AssertionError("to h11 the message has no end")


def heard_request(data: bytes) -> Heard | None:
    """A request as h11 understands it; None if it is stricter than pyproxy with good reason."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    head = next(events(connection))
    assert isinstance(head, h11.Request)
    try:
        body, trailers, rest = heard_body(connection)
    except h11.RemoteProtocolError as error:
        if STRICTER_H11.match(str(error)):
            return None
        raise
    start = (head.method, head.target, head.http_version)
    return Heard(start, plain(head.headers), body, trailers, rest)


def heard_reply(data: bytes, method: bytes) -> Heard | None:
    """The same for a response, behind which the connection ends."""
    connection = h11.Connection(h11.CLIENT)
    # Upgrade, so that h11 accepts a 101; to everything else it makes no difference.
    connection.send(
        h11.Request(method=method, target="/", headers=[("Host", "h"), ("Upgrade", "x")])
    )
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    connection.receive_data(b"")
    head = next(events(connection))
    assert isinstance(head, h11.Response | h11.InformationalResponse)
    start = (head.http_version, b"%d" % head.status_code, bytes(head.reason))
    if isinstance(head, h11.InformationalResponse):
        return Heard(start, plain(head.headers), b"", [], connection.trailing_data[0])
    try:
        body, trailers, rest = heard_body(connection)
    except h11.RemoteProtocolError as error:
        if STRICTER_H11.match(str(error)):
            return None
        raise
    return Heard(start, plain(head.headers), body, trailers, rest)


CRLF = b"\r\n"
Tokens = list[bytes]

FIELDS: list[Tokens] = [
    [line, CRLF]
    for line in (
        b"Accept: */*",
        b"X-A:1",
        b"x-a:\t2 ",
        b"X_A: 3",
        b"X-B: gr\xc3\xbc\xdfe \x80\xff",
        b"X-Empty:",
        b"Cookie: a=b; c=d",
        b'!#$%&\'*+-.^_`|~: "q\\"",,;',
        b"Connection: close",
        b"Connection: keep-alive, X-A",
        b"X-A: 4\r\nConnection: \tx-a",
        b"Connection: x_a\r\nX_A: 5",
        b"Connection: host,content-length\t, ,Transfer-Encoding",
        b"Keep-Alive: timeout=5",
        b"Proxy-Connection: close",
        b"TE: trailers",
        b"TE: gzip",
        b"Trailer: X-Sum",
        b"Via: 1.0 other",
        b"Upgrade: websocket",
        b"Proxy-Authorization: Basic eDp5",
        b"X-Forwarded-For: 203.0.113.9",
        b"X_Forwarded_For: 203.0.113.9",
        b"X-Forwarded-Proto: gopher",
        b"Forwarded: for=203.0.113.9",
        b"X-Real-IP: 203.0.113.9",
    )
]
TRAILERS: list[Tokens] = [
    [line, CRLF]
    for line in (b"X-Sum: 1", b"x-sum:\xe4\t", b"X-Empty:", b"Host: t", b"X-Forwarded-For: 1")
]
RESTS = [b"", b"", b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n", b"\r\n", b"\n", b"0\r\n\r\n", b"x"]
DATA = [
    b"",
    b"a",
    b"hello",
    b"\r\n",
    b"0\r\n\r\n",
    b"\x00\xff",
    b"Content-Length: 1\r\n",
    b"x" * 99,
]

JUNK = [
    *(bytes([byte]) for byte in b'\r\n\0 \t\x0b\x0c\x1f\x7f\x80\x85\xa0:,;/#@015+-_x"'),
    *(b"\r\n", b"\r\n\r\n", b"\n\n", b"\r\r\n", b"\r\n ", b"\r\n\t", b";a=b", b" ;a", b"0x"),
    *(b"chunked", b", chunked", b"HTTP/1.0", b"HTTP/1.1", b"CONNECT", b"204"),
]
# What may stand at each place of a message (N is its number) ...
STRAIGHT = {
    "target": [b"/", b"/a%2Fb?c=d", b"//h/%", b"http://u.test:81", b"HTTPS://u.test?q=/", b'/"<>'],
    "colon": [b":", b":\t", b": "],
    "length": [b"N", b"0N"],
    "coding": [b"chunked", b"Chunked\t", b"\tCHUNKED"],
    "size": [b"N", b"00N"],
    "end": [b"\r\n"],
}
# ... and what stands there in crooked messages. A "line" is one more of the header section.
CROOKED = {
    "target": [
        b"/a b",
        b" /",
        b"/\t",
        b"/\0",
        b"/\x0b",
        b"/\x7f",
        b"/\xe4",
        b"/\r",
        b"/\n",
        b"/\r\n",
    ],
    "colon": [b" :", b"\t:", b"\0:", b"\x0b:", b"_:", b"\r\n :", b"\r\n: ", b"", b"::"],
    "length": [
        *(b"+N", b"-N", b"N,N", b"N, N", b"N,", b"N 0", b"N\t0", b"N_0", b"0xN", b"N;", b"", b"N."),
        *(b'"N"', b"\0N", b"N\x0b", b"\xa0N", b"N\xb2", b"0" * 20 + b"N", b"N\r\n 0", b"N\nX: y"),
        *(b"N\rX: y", b"N\r\nContent-Length: N", b"N\r\ncontent-length: 0"),
        *(b"N\r\nTransfer-Encoding: chunked", b"0\r\nTransfer-Encoding: N"),
    ],
    "coding": [
        *(b"gzip, chunked", b"chunked, gzip", b"chunked,chunked", b",chunked", b"chunked,"),
        *(b"xchunked", b"chunked;q=1", b'"chunked"', b"identity", b"gzip", b"", b"\0chunked"),
        *(b"\x0bchunked", b"\xa0chunked", b"chunked\x0c", b"chunked\r\n ", b"\r\n chunked"),
        *(b"chunked\nX: y", b"chunked\rX: y", b"chunked\r\nTransfer-Encoding: gzip"),
        *(b"gzip\r\nTransfer-Encoding: chunked", b"chunked\r\nContent-Length: 5"),
        *(b"chunked\r\nContent-Length: 0",),
    ],
    "size": [
        *(b"0xN", b"+N", b"-N", b" N", b"\tN", b"N ", b"N\t", b"N_", b"0_N", b"N,", b"N\r", b"N\n"),
        *(b"N\0", b"0" * 14 + b"N", b"0" * 20 + b"N", b"N;a\rb", b"N;a\nb", b"N;\0", b"N;\x7f"),
        *(b"N ;a", b""),
    ],
    "end": [b"\n", b"\r", b"\r\r\n", b"\n\r", b"", b" \r\n", b"x\r\n"],
    "line": [
        *(b"Host: other", b"host:", b"Host : other", b"Host: a@b", b"Expect: 100-continue", b""),
        *(b"Expect: x", b" folded", b"\tfolded", b":", b": x", b"x", b"\xe4: x", b"a b: c"),
        *(
            b"X: \0",
            b"X: \x01",
            b"X: \x0b",
            b"X\0: y",
            b"Content_Length: 5",
            b"\0Content-Length: 5",
        ),
        *(b"Transfer_Encoding: chunked", b" Content-Length: 5", b"X: y\nContent-Length: 5"),
        *(b"X: y\rTransfer-Encoding: chunked",),
    ],
}
Crook = tuple[str, bytes]  # a place, and what stands there
NONE: Crook = ("", b"")
CROOKS: list[Crook] = [(place, form) for place, forms in CROOKED.items() for form in forms]
CROOKS_OF_REPLIES = [crook for crook in CROOKS if crook[0] != "target"]
CROOKS_OF_CHUNKS = [crook for crook in CROOKS if crook[0] in ("size", "end")]
KINDS = {
    "length": ["length"],
    "coding": ["chunked"],
    "size": ["chunked"],
    "end": ["chunked"],
    "colon": ["length", "chunked"],
}


def pick(draw: st.DrawFn, place: str, crook: Crook) -> bytes:
    if crook[0] == place and draw(st.integers(0, 3)) < 3:
        return crook[1]
    return draw(st.sampled_from(STRAIGHT[place]))


@st.composite
def bodies(draw: st.DrawFn, kinds: list[str], crook: Crook) -> tuple[list[Tokens], Tokens]:
    """The lines that frame a body, and its tokens."""
    kind = draw(st.sampled_from(KINDS.get(crook[0], kinds)))
    if kind == "none":
        return [], []
    colon = pick(draw, "colon", crook)
    if kind == "length":
        data = draw(st.sampled_from(DATA))
        name = draw(st.sampled_from([b"Content-Length", b"content-length", b"CONTENT-length"]))
        length = pick(draw, "length", crook).replace(b"N", b"%d" % len(data))
        return [[name, colon, length, CRLF]], [data]
    extension = draw(st.sampled_from([b"", b"", b";", b";a", b';a="b;c"', b"; a = b"]))
    tokens: Tokens = []
    for data in [*draw(st.lists(st.sampled_from(DATA[1:]), max_size=3)), b""]:
        number = draw(st.sampled_from([b"%x", b"%X"])) % len(data)
        tokens += [pick(draw, "size", crook).replace(b"N", number), extension]
        tokens += [pick(draw, "end", crook)]
        tokens += [data, pick(draw, "end", crook)] if data else []
    for line in draw(st.lists(st.sampled_from(TRAILERS), max_size=2)):
        tokens += line
    name = draw(st.sampled_from([b"Transfer-Encoding", b"transfer-encoding"]))
    return [[name, colon, pick(draw, "coding", crook), CRLF]], [*tokens, CRLF]


@st.composite
def sections(draw: st.DrawFn, first: list[Tokens], crook: Crook) -> Tokens:
    """A header section with these lines among others, and its empty line."""
    lines = [*first, *draw(st.lists(st.sampled_from(FIELDS), max_size=4))]
    if crook[0] == "line":
        lines.append([crook[1], CRLF])
    return [token for line in draw(st.permutations(lines)) for token in line] + [CRLF]


@st.composite
def requests(draw: st.DrawFn, crook: Crook = NONE) -> Tokens:
    """A request, and perhaps something behind it. Without a crook everybody has to take it."""
    minor = draw(st.sampled_from([1, 1, 1, 0]))
    method = draw(st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"x-M!"]))
    target = pick(draw, "target", crook)
    if method == b"OPTIONS" and draw(st.booleans()):
        target = b"*"
    framing, body = draw(bodies(["none", "length", *["chunked"] * minor], crook))
    host = draw(st.sampled_from([b"h", b"h:80", b"[::1]:80", b""]))
    if minor or draw(st.booleans()):
        framing = [*framing, [b"Host", b":", b" ", host, CRLF]]
    rest = draw(st.sampled_from(RESTS))
    start = [method, b" ", target, b" ", b"HTTP/1.%d" % minor, CRLF]
    return [*start, *draw(sections(framing, crook)), *body, rest]


@st.composite
def replies(draw: st.DrawFn, crook: Crook = NONE) -> Tokens:
    """A response, and perhaps something behind it. Without a crook everybody has to take it."""
    minor = draw(st.sampled_from([1, 1, 1, 0]))
    status = draw(st.sampled_from([b"200", b"200", b"404", b"999", b"204", b"304", b"100", b"101"]))
    reason = draw(st.sampled_from([[b" ", b"OK"], [b" ", b"N\xf6  one\t"], [b" "], []]))
    framing, body = draw(bodies(["none", "length", *["chunked"] * minor], crook))
    rest = draw(st.sampled_from(RESTS))
    start = [b"HTTP/1.%d" % minor, b" ", status, *reason, CRLF]
    return [*start, *draw(sections(framing, crook)), *body, rest]


def damage_tokens(draw: st.DrawFn, tokens: Tokens) -> None:
    at = draw(st.integers(0, len(tokens) - 1))
    how = draw(st.sampled_from(["insert", "replace", "delete", "double", "swap"]))
    if how == "insert":
        tokens.insert(at, draw(st.sampled_from(JUNK)))
    elif how == "replace":
        tokens[at] = draw(st.sampled_from(JUNK))
    elif how == "delete":
        del tokens[at]
    elif how == "double":
        tokens.insert(at, tokens[at])
    else:
        other = draw(st.integers(0, len(tokens) - 1))
        tokens[at], tokens[other] = tokens[other], tokens[at]


def damage_lines(draw: st.DrawFn, tokens: Tokens) -> None:
    lines = re.findall(rb"[^\n]*\n|[^\n]+", b"".join(tokens)) or [b""]
    at = draw(st.integers(0, len(lines) - 1))
    how = draw(st.sampled_from(["double", "swap", "delete"]))
    if how == "double":
        lines.append(lines[at])
        lines.insert(at, lines.pop())
    elif how == "swap":
        other = draw(st.integers(0, len(lines) - 1))
        lines[at], lines[other] = lines[other], lines[at]
    else:
        del lines[at]
    tokens[:] = lines


def damage_bytes(draw: st.DrawFn, tokens: Tokens) -> None:
    data = b"".join(tokens)
    at = draw(st.integers(0, len(data)))
    gone = draw(st.integers(0, 1))
    new = draw(st.one_of(st.sampled_from(JUNK), st.binary(max_size=1)))
    tokens[:] = [data[:at], new, data[at + gone :]]


@st.composite
def damaged(draw: st.DrawFn, messages: st.SearchStrategy[Tokens]) -> bytes:
    """A message changed in some places or none."""
    tokens = list(draw(messages))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        kind = draw(st.sampled_from([damage_tokens, damage_lines, damage_bytes]))
        if tokens:
            kind(draw, tokens)
    return b"".join(tokens)


@some
@given(requests())
def test_a_valid_request_is_accepted_and_means_the_same_to_h11(tokens: Tokens) -> None:
    data = b"".join(tokens)
    ours = understood(accepted_head(data))
    assert ours
    assert ours.rest == tokens[-1]
    assert ours == heard_request(data)


Hop = tuple[Peer, int, int]  # who asks, how long the pieces of the body are, how many are kept
hops = st.tuples(st.sampled_from(PEERS), st.integers(1, 40), st.integers(0, 12))


@many
@given(damaged(requests()), hops)
def test_an_accepted_request_means_the_same_to_h11_and_is_forwarded_unambiguously(
    data: bytes, hop: Hop
) -> None:
    event("accepted" if check_request(data, *hop) else "refused")


@few
@pytest.mark.parametrize("crook", CROOKS, ids=str)
@given(drawn=st.data())
def test_a_crooked_request_if_accepted_means_the_same_to_h11_and_is_forwarded_unambiguously(
    drawn: st.DataObject, crook: Crook
) -> None:
    data = b"".join(drawn.draw(requests(crook)))
    check_request(data, *drawn.draw(hops))


def check_request(data: bytes, peer: Peer, size: int, most: int) -> bool:
    """Whether it is accepted."""
    request = accepted_head(data)
    ours = understood(request)
    if not (request and ours):
        return False
    assert heard_request(data) in (ours, None)
    sent = heard_request(forwarded(request, peer, size, most))
    assert sent
    assert (sent.body, sent.trailers, sent.rest) == (ours.body, ours.trailers, b"")
    assert framings(sent.fields) == framings(ours.fields)
    assert len(framings(sent.fields)) <= 1
    check_start(ours, sent)
    check_fields(ours, sent, request.line.authority, peer)
    return True


def check_start(ours: Heard, sent: Heard) -> None:
    method, target, _ = ours.start
    if target[:1] not in b"/*":
        parts = urlsplit(target)
        path = parts.path or (b"*" if method == b"OPTIONS" and not parts.query else b"/")
        target = path + (target[target.index(b"?") :] if b"?" in target else b"")
    assert sent.start == (method, target, b"1.1")


def check_fields(ours: Heard, sent: Heard, authority: bytes | None, peer: Peer) -> None:
    told = dict(ours.fields)
    host = told.get(b"host", b"own") if authority is None else authority
    assert [value for name, value in sent.fields if name == b"host"] == [host]
    known = [value for name, value in sent.fields if name == b"x-forwarded-for"]
    assert len(known) == 1
    assert known[0].endswith(peer.address.encode())
    assert peer.trusted or known == [peer.address.encode()]
    assert (b"via", b"1.%c pyproxy" % ours.start[2][-1:]) in sent.fields

    def others(fields: Pairs) -> Pairs:
        """Without what pyproxy replaces, and what is disguised as something that it drops."""
        ignored = {b"host", b"via", *([b"expect"] if ours.start[2] == b"1.0" else [])}
        return [
            (name, value)
            for name, value in end_to_end(fields)
            if name not in ignored and not WHO_ASKS.fullmatch(name) and b"_" not in name
        ]

    assert others(sent.fields) == others(ours.fields)
    assert {name for name, _ in sent.fields} <= {name for name, _ in end_to_end(ours.fields)} | {
        *(b"host", b"via", b"te", b"connection", b"transfer-encoding", b"forwarded", b"x-real-ip"),
        *(b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"upgrade"),
    }
    hops = [pair for pair in sent.fields if pair[0] in HOP_BY_HOP - {b"transfer-encoding"}]
    if hops[-2:-1] == [(b"connection", b"Upgrade")]:
        name, protocols = hops[-1]
        assert name == b"upgrade"
        asked = [one.strip(b" \t") for value in values(ours, name) for one in value.split(b",")]
        assert protocols.split(b", ") == [one for one in asked if one and one.lower() != b"h2c"]
        del hops[-2:]
    assert hops in ([], [(b"te", b"trailers"), (b"connection", b"TE")])


def values(heard: Heard, wanted: bytes) -> list[bytes]:
    return [value for name, value in heard.fields if name == wanted]


@some
@given(damaged(requests()))
def test_what_is_accepted_was_never_hopeless(data: bytes) -> None:
    if accepted_head(data):
        head = data[: data.index(b"\r\n\r\n")]
        assert not any(hopeless(head[:end]) for end in range(len(head)))


@some
@given(replies(), st.sampled_from([b"GET", b"HEAD"]))
def test_a_valid_reply_is_accepted_and_means_the_same_to_h11(tokens: Tokens, method: bytes) -> None:
    data = b"".join(tokens)
    ours = accepted_reply(data, method == b"HEAD")
    assert ours
    assert ours.heard == heard_reply(data, method)


Asked = tuple[bytes, int, bool]  # with which method and version, and whether it goes on
asked = st.tuples(st.sampled_from([b"GET", b"GET", b"HEAD"]), st.integers(0, 1), st.booleans())


@many
@given(damaged(replies()), asked)
def test_an_accepted_reply_means_the_same_to_h11_and_is_relayed_unambiguously(
    data: bytes, how: Asked
) -> None:
    event("accepted" if check_reply(data, *how) else "refused")


@few
@pytest.mark.parametrize("crook", CROOKS_OF_REPLIES, ids=str)
@given(drawn=st.data())
def test_a_crooked_reply_if_accepted_means_the_same_to_h11_and_is_relayed_unambiguously(
    drawn: st.DataObject, crook: Crook
) -> None:
    data = b"".join(drawn.draw(replies(crook)))
    check_reply(data, *drawn.draw(asked))


def check_reply(data: bytes, method: bytes, minor: int, keep: bool) -> bool:
    """Whether it is accepted."""
    reply = accepted_reply(data, method == b"HEAD")
    if not reply:
        return False
    head, ours = reply
    assert heard_reply(data, method) in (ours, None)
    wire, trailers = relayed(reply, method, minor, keep)
    sent = heard_reply(wire, method)
    assert sent
    assert sent.start == (b"1.1", *ours.start[1:])
    assert (sent.body, sent.trailers, sent.rest) == (ours.body, trailers, b"")
    assert len(framings(sent.fields)) <= 1
    gone = [b"content-length"] if head.status < 200 or head.status == 204 else []
    assert end_to_end(sent.fields) == [
        pair for pair in end_to_end(ours.fields) if pair[0] not in gone
    ]
    return True


def relayed(reply: Reply, method: bytes, minor: int, keep: bool) -> tuple[bytes, Pairs]:
    """A response as it goes to a client of HTTP/1.``minor``, framed as the table in ``relay.py``
    says, and its trailers."""
    head, heard = reply
    if head.status < 200:
        return head.ready, []
    out = head.kept + connection_line(minor, keep)
    if method == b"HEAD" or head.bodiless or head.length is not None or not minor:
        return out + b"\r\n" + heard.body, []
    out += b"Transfer-Encoding: chunked\r\n\r\n" + (chunk(heard.body) if heard.body else b"")
    section = b"".join(b"%b: %b\r\n" % pair for pair in heard.trailers)
    return out + last_chunk(section), heard.trailers


@st.composite
def splits(draw: st.DrawFn, crook: Crook = NONE) -> tuple[bytes, list[bytes]]:
    """A chunked body, damaged or not, whole and in pieces."""
    data = draw(damaged(bodies(["chunked"], crook).map(lambda found: found[1])))
    data += draw(st.sampled_from(RESTS))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    every = draw(st.sampled_from([False, False, True]))
    edges = [0, *(range(1, len(data)) if every else cuts), len(data)]
    return data, [data[start:end] for start, end in pairwise(edges)]


class Decoded(NamedTuple):
    data: bytes
    trailers: bytes
    rest: bytes
    done: bool


def decoded(pieces: list[bytes], limit: int) -> Decoded | None:
    """None if it is refused."""
    decoder = ChunkedDecoder(limit)
    left = list(pieces)
    data = b""
    try:
        while left and not decoder.done:
            data += decoder.feed(left.pop(0))
    except HTTPError:
        return None
    return Decoded(data, decoder.trailers, decoder.rest + b"".join(left), decoder.done)


@many
@given(splits(), st.sampled_from([0, 9, 20, 32768]))
def test_a_chunked_body_is_the_same_however_it_comes(
    body: tuple[bytes, list[bytes]], limit: int
) -> None:
    data, pieces = body
    assert decoded(pieces, limit) == decoded([data], limit)


@few
@pytest.mark.parametrize("crook", CROOKS_OF_CHUNKS, ids=str)
@given(drawn=st.data())
def test_a_crooked_chunked_body_is_the_same_however_it_comes(
    drawn: st.DataObject, crook: Crook
) -> None:
    data, pieces = drawn.draw(splits(crook))
    assert decoded(pieces, 32768) == decoded([data], 32768)


@some
@given(splits())
def test_an_accepted_chunked_body_means_the_same_to_h11(body: tuple[bytes, list[bytes]]) -> None:
    data, pieces = body
    ours = decoded(pieces, 32768)
    event("accepted" if ours and ours.done else "refused")
    if ours and ours.done:
        head = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        theirs = heard_request(head + data)
        assert theirs is None or (
            (theirs.body, theirs.trailers, theirs.rest)
            == (ours.data, pairs(ours.trailers), ours.rest)
        )
