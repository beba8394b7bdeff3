"""Bodies: the chunked coding, strictly, and a request's body read piece by piece."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import pytest

from pyproxy.errors import HTTPError
from pyproxy.http.body import BodyReader, ChunkedDecoder, chunk, last_chunk

NEXT = b"GET /next HTTP/1.1\r\n"


class Gone(Exception):
    """What ``receive`` raises when the client sends nothing more."""


def source(pieces: Iterable[bytes]) -> Callable[[], bytes]:
    left: Iterator[bytes] = iter(pieces)

    def receive() -> bytes:
        for piece in left:
            return piece
        raise Gone

    return receive


def reader(
    *pieces: bytes, start: bytes = b"", length: int | None = None, limit: int | None = None
) -> BodyReader:
    return BodyReader(source(pieces), start, length, limit)


def decoded(
    data: bytes, step: int | None = None, trailer_limit: int = 32768
) -> tuple[bytes, ChunkedDecoder]:
    """What a decoder gives for ``data``, fed at once or in steps."""
    decoder = ChunkedDecoder(trailer_limit)
    size = step or len(data) or 1
    pieces = [decoder.feed(data[at : at + size]) for at in range(0, len(data), size)]
    return b"".join(pieces), decoder


def status_of(function: Callable[[], object]) -> int:
    with pytest.raises(HTTPError) as caught:
        function()
    return caught.value.status


def refused(data: bytes) -> bool:
    """Whether ``data`` gets a 400, whole as well as byte by byte."""
    return all(status_of(partial(decoded, data, step)) == 400 for step in (None, 1))


def whole(body: BodyReader) -> bytes:
    return b"".join(iter(body.read, b""))


@pytest.mark.parametrize("step", [None, 1, 2, 3, 7])
@pytest.mark.parametrize(
    ("data", "body"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"5\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\n\r\n", b"hello world"),
        (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n"),
        (b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
        (b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"1f\r\n" + b"x" * 31 + b"\r\n0\r\n\r\n", b"x" * 31),
        (b"1F\r\n" + b"x" * 31 + b"\r\n0\r\n\r\n", b"x" * 31),
        (b"000000000000005\r\nhello\r\n000000000000000\r\n\r\n", b"hello"),
    ],
)
def test_chunks_become_data(data: bytes, body: bytes, step: int | None) -> None:
    found, decoder = decoded(data, step)
    assert found == body
    assert (decoder.done, decoder.trailers, decoder.rest) == (True, b"", b"")


@pytest.mark.parametrize("step", [None, 1])
@pytest.mark.parametrize(
    "extension",
    [
        b";",
        b";a",
        b";a=b",
        b' ; a = "b;c\\"d" ;e',
        b"\t;a",
        b";a=\xe4\t",
        b";" + b"x" * 1020,
    ],
)
def test_chunk_extensions_are_dropped(extension: bytes, step: int | None) -> None:
    found, decoder = decoded(b"5%b\r\nhello\r\n0%b\r\n\r\n" % (extension, extension), step)
    assert (found, decoder.done, decoder.trailers) == (b"hello", True, b"")


@pytest.mark.parametrize(
    "size",
    [
        b"",
        b" ",
        b";a",
        b"-1",
        b"-0",
        b"+5",
        b"0x5",
        b"0X5",
        b"x5",
        b"5h",
        b"g",
        b"1_0",
        b"5.0",
        b" 5",
        b"\t5",
        b"5 5",
        b"5,5",
        b"5 a",
        b"5\x00",
        b"5\x0b",
        b"\xb2",
        b"5;a\x00",
        b"5;a\x01b",
        b"5;a\x7f",
        b"5;a\rb",
        b"5\r",
        b"5\rhello",
        b"1" * 16,
        b"0" * 15 + b"5",
        b"f" * 16,
        b"f" * 5000,
        b"5;" + b"x" * 1021,
        b"5;" + b"x" * 5000,
        b"0;" + b"x" * 1021,
    ],
)
def test_a_malformed_size_is_refused(size: bytes) -> None:
    assert refused(size + b"\r\nhello\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "data",
    [
        b"5\nhello\r\n0\r\n\r\n",
        b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        b"5\n",
        b"\n5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello\r\n0\n\r\n\r\n",
        b"5\r\nhello\r\n0\n\n",
        b"0\r\nA: b\n\r\n\r\n",
        b"0\r\n\nA: b\r\n\r\n",
    ],
)
def test_a_bare_line_feed_is_refused(data: bytes) -> None:
    assert refused(data)


@pytest.mark.parametrize(
    "ending", [b"0\r\n\r\n", b"5\r\nhello", b"!\r\n", b"\r!", b"\r\r", b"\n", b" \r\n", b"\x00\x00"]
)
def test_data_without_its_line_end_is_refused(ending: bytes) -> None:
    assert refused(b"5\r\nhello" + ending)


def test_a_size_line_is_not_waited_for_without_end() -> None:
    decoder = ChunkedDecoder()
    assert decoder.feed(b"5;" + b"x" * 1021) == b""
    assert status_of(lambda: decoder.feed(b"x")) == 400


@pytest.mark.parametrize("step", [None, 1])
def test_trailers_that_may_be_passed_on_are_kept(step: int | None) -> None:
    data = (
        b"0\r\nX-Sum:  1 \r\nContent-Length: 5\r\nx-sum: \xe4\r\nTransfer-Encoding: chunked\r\n"
        b"Host: h\r\nX_Forwarded_For: 1\r\nConnection: close\r\nX-Last:\r\n\r\n"
    )
    found, decoder = decoded(data, step)
    assert (found, decoder.done) == (b"", True)
    assert decoder.trailers == b"X-Sum:  1 \r\nx-sum: \xe4\r\nX-Last:\r\n"


@pytest.mark.parametrize(
    "trailers",
    [
        b"A : b",
        b"A",
        b": b",
        b" A: b",
        b"A: b\r\n folded",
        b"A: b\rc",
        b"A: b\x00",
        b"GET / HTTP/1.1\r\nHost: h",
        b"5\r\nhello",
    ],
)
def test_malformed_trailers_are_refused(trailers: bytes) -> None:
    assert refused(b"0\r\n%b\r\n\r\n" % trailers)


def test_trailers_over_the_limit_are_refused_before_they_end() -> None:
    decoder = ChunkedDecoder(trailer_limit=20)
    assert status_of(lambda: decoder.feed(b"0\r\nX: " + b"y" * 40)) == 400


@pytest.mark.parametrize("step", [None, 1])
@pytest.mark.parametrize("size", [16, 17])
def test_trailers_may_be_as_long_as_their_limit_however_they_come(
    size: int, step: int | None
) -> None:
    _, decoder = decoded(b"0\r\nX: %b\r\n\r\n" % (b"y" * size), step, trailer_limit=20)
    assert decoder.done


@pytest.mark.parametrize("step", [None, 1])
@pytest.mark.parametrize("size", [18, 19, 40])
def test_trailers_over_their_limit_are_refused_however_they_come(
    size: int, step: int | None
) -> None:
    data = b"0\r\nX: %b\r\n\r\n" % (b"y" * size)
    assert status_of(lambda: decoded(data, step, trailer_limit=20)) == 400


@pytest.mark.parametrize("trailers", [b"", b"A: b\r\n"])
@pytest.mark.parametrize("rest", [NEXT, b"\r\n", b"0\r\n\r\n", b"\x00"])
def test_what_comes_behind_the_body_is_the_rest(rest: bytes, trailers: bytes) -> None:
    found, decoder = decoded(b"5\r\nhello\r\n0\r\n%b\r\n%b" % (trailers, rest))
    assert (found, decoder.done, decoder.rest) == (b"hello", True, rest)
    assert decoder.trailers == trailers


def test_a_body_that_is_cut_off_is_not_done() -> None:
    data = b"5;a\r\nhello\r\n5\r\nworld\r\n0\r\nA: b\r\n\r\n"
    for end in range(len(data)):
        found, decoder = decoded(data[:end])
        assert not decoder.done
        assert found + decoder.feed(data[end:]) == b"helloworld"
        assert decoder.done


def test_data_is_given_as_soon_as_it_comes() -> None:
    decoder = ChunkedDecoder()
    assert decoder.feed(b"ff\r\nab") == b"ab"
    assert decoder.feed(b"c") == b"c"
    assert decoder.feed(b"") == b""
    assert decoder.feed(b"d" * 252 + b"\r") == b"d" * 252
    assert decoder.feed(b"\n1\r\ne") == b"e"
    assert not decoder.done


def test_a_chunk_is_read_back() -> None:
    parts = [b"a", b"b" * 10, b"\r\n", bytes(range(256)) * 300]
    data = b"".join(map(chunk, parts)) + last_chunk(b"A: b\r\n")
    found, decoder = decoded(data)
    assert (found, decoder.done, decoder.trailers) == (b"".join(parts), True, b"A: b\r\n")


def test_chunks_have_one_spelling() -> None:
    assert chunk(b"x" * 31) == b"1f\r\n" + b"x" * 31 + b"\r\n"
    assert last_chunk() == b"0\r\n\r\n"
    assert last_chunk(b"A: b\r\n") == b"0\r\nA: b\r\n\r\n"


def test_a_body_with_a_length_is_read_as_it_comes() -> None:
    body = reader(b"lo", b" wor", b"ld" + NEXT, start=b"hel", length=11)
    assert (body.done, body.size, body.chunked) == (False, 0, False)
    assert [body.read(), body.read(), body.read()] == [b"hel", b"lo", b" wor"]
    assert (body.done, body.size, body.rest) == (False, 9, b"")
    assert [body.read(), body.read()] == [b"ld", b""]
    assert (body.done, body.size, body.rest) == (True, 11, NEXT)


def test_a_chunked_body_is_read_as_it_comes() -> None:
    body = reader(b"5\r\nwo", b"rld\r", b"\n0\r\nA: b\r\n", b"\r\n" + NEXT, start=b"3\r\nabc\r\n")
    assert (body.done, body.size, body.chunked) == (False, 0, True)
    assert [body.read(), body.read(), body.read()] == [b"abc", b"wo", b"rld"]
    assert (body.done, body.size, body.rest) == (False, 8, b"")
    assert body.read() == b""
    assert (body.done, body.size, body.rest) == (True, 8, NEXT)
    assert body.ending() == b"0\r\nA: b\r\n\r\n"


def test_nothing_is_received_behind_the_end() -> None:
    for body in (reader(start=b"hello", length=5), reader(start=b"5\r\nhello\r\n0\r\n\r\n")):
        assert [body.read(), body.read(), body.read()] == [b"hello", b"", b""]
        assert body.done


def test_a_body_of_no_bytes_is_done_at_once() -> None:
    body = reader(length=0)
    assert (body.done, body.read(), body.ending(), body.collect(10)) == (True, b"", b"", b"")


def test_what_stands_behind_a_body_of_no_bytes_is_the_rest() -> None:
    assert reader(start=NEXT, length=0).rest == NEXT


@pytest.mark.parametrize(("start", "length"), [(b"ab", 3), (b"3\r\nab", None)])
def test_a_client_that_goes_within_a_body_is_noticed(start: bytes, length: int | None) -> None:
    body = reader(start=start, length=length)
    assert body.read() == b"ab"
    with pytest.raises(Gone):
        body.read()
    with pytest.raises(Gone):
        body.collect(10)
    assert not body.done


def test_malformed_chunks_in_a_body_are_refused() -> None:
    body = reader(b"5\r\nhello\r\n", b"5\nworld")
    assert body.read() == b"hello"
    assert status_of(body.read) == 400
    assert not body.done


@pytest.mark.parametrize(
    ("pieces", "length"),
    [
        ([b"hello"], 5),
        ([b"he", b"llo"], 5),
        ([b"5\r\nhello\r\n0\r\n\r\n"], None),
        ([b"2\r\nhe\r\n", b"3\r\nllo\r\n", b"0\r\n\r\n"], None),
    ],
)
def test_a_body_may_be_as_long_as_its_limit_and_no_longer(
    pieces: list[bytes], length: int | None
) -> None:
    body = reader(*pieces, length=length, limit=5)
    assert (whole(body), body.done, body.size) == (b"hello", True, 5)
    body = reader(*pieces, length=length, limit=4)
    assert status_of(lambda: whole(body)) == 413


def test_framing_does_not_count_for_the_limit() -> None:
    data = b"".join(b"1;extension=long\r\nx\r\n" for _ in range(10)) + b"0\r\nA: bcdefghij\r\n\r\n"
    body = reader(data, limit=10)
    assert body.read() == b"x" * 10


def test_a_body_without_end_meets_its_limit() -> None:
    body = reader(*[b"1\r\nx\r\n"] * 1000, limit=10)
    assert status_of(lambda: body.collect(10**6)) == 413
    assert body.size == 11


def test_a_short_body_is_collected_whole() -> None:
    body = reader(b"llo" + NEXT, start=b"he", length=5)
    assert body.collect(5) == b"hello"
    assert (body.done, body.size, body.rest) == (True, 5, NEXT)


def test_a_short_chunked_body_is_collected_with_framing_of_its_own() -> None:
    body = reader(b"02;x\r\nhe\r\n3\r\nl", b"lo\r\n00\r\nA: b\r\nHost: h\r\n\r\n" + NEXT)
    assert body.collect(5) == b"3\r\nhel\r\n2\r\nlo\r\n0\r\nA: b\r\n\r\n"
    assert (body.done, body.size, body.rest) == (True, 5, NEXT)


def test_an_empty_chunked_body_is_collected_as_its_end() -> None:
    assert reader(b"0\r\n", b"\r\n").collect(0) == b"0\r\n\r\n"


def test_the_start_of_a_long_body_is_collected_and_the_remainder_read() -> None:
    body = reader(b"cd", b"ef", b"gh" + NEXT, start=b"ab", length=8)
    assert body.collect(3) == b"abcd"
    assert (body.done, body.size) == (False, 4)
    assert [body.read(), body.read(), body.read()] == [b"ef", b"gh", b""]
    assert (body.done, body.size, body.rest, body.ending()) == (True, 8, NEXT, b"")


def test_the_start_of_a_long_chunked_body_is_collected_and_the_remainder_read() -> None:
    body = reader(b"2\r\nab\r\n", b"2\r\ncd\r\n", b"2\r\nef\r\n0\r\nA: b\r\n\r\n" + NEXT)
    assert body.collect(3) == b"2\r\nab\r\n2\r\ncd\r\n"
    assert (body.done, body.size) == (False, 4)
    assert body.frame(body.read()) == b"2\r\nef\r\n"
    assert (body.read(), body.frame(b""), body.done) == (b"", b"", True)
    assert (body.ending(), body.rest) == (b"0\r\nA: b\r\n\r\n", NEXT)


@pytest.mark.parametrize("most", [0, 1, 2, 3, 4])
def test_a_body_as_long_as_the_most_is_collected_whole(most: int) -> None:
    for step in (1, 2, 4):
        data = b"x" * most
        pieces = [data[at : at + step] for at in range(0, most, step)]
        body = reader(*pieces, length=most)
        assert (body.collect(most), body.done) == (data, True)
        body = reader(*map(chunk, pieces), last_chunk())
        body.collect(most)
        assert (body.done, body.size) == (True, most)


def test_pieces_travel_framed_only_in_a_chunked_body() -> None:
    assert reader(length=3).frame(b"abc") == b"abc"
    assert reader().frame(b"abc") == b"3\r\nabc\r\n"
    assert reader(length=3).ending() == b""
