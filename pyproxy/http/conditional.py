"""Conditional requests and ranges (RFC 9110, 13 and 14). Pure: values of fields in, decisions out.

A field that is malformed is ignored, except that an If-Match without a tag in it matches nothing.
"""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

_TAG = r'(?:W/)?"[!#-~\x80-\xff]*"'
_ENTITY_TAG = re.compile(_TAG)
_ENTITY_TAGS = re.compile(rf"[\t ,]*{_TAG}(?:[\t ]*,[\t ,]*{_TAG})*[\t ,]*")

_RANGE = re.compile(r"[\t ]*bytes=[\t ,]*(\d{0,99})-(\d{0,99})[\t ,]*", re.ASCII | re.IGNORECASE)

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>[0-5]\d|60)"
_DATES = tuple(
    re.compile(form, re.ASCII)
    for form in (
        rf"[A-Z][a-z]{{2}}, (?P<day>\d\d) {_MONTH} (?P<year>\d{{4}}) {_TIME} GMT",
        rf"[A-Z][a-z]+day, (?P<day>\d\d)-{_MONTH}-(?P<year>\d\d) {_TIME} GMT",
        rf"[A-Z][a-z]{{2}} {_MONTH} (?P<day>[ \d]\d) {_TIME} (?P<year>\d{{4}})",
    )
)


class Validators(NamedTuple):
    """What tells one state of a file from another: a strong entity tag, and the second in which it
    was modified."""

    etag: str
    modified: int

    def precondition(self, header: Callable[[str], str | None], now: float) -> int:
        """304 or 412 if a GET or HEAD is not to be performed, else 0 (RFC 9110, 13.2.2)."""
        if (tags := header("if-match")) is not None:
            refused = not _has_tag(tags, self.etag)
        else:
            date = http_date(header("if-unmodified-since"), now)
            refused = date is not None and self.modified > date
        if refused:
            return 412
        if (tags := header("if-none-match")) is not None:
            known = _has_tag(tags, self.etag, weakly=True)
        else:
            date = http_date(header("if-modified-since"), now)
            known = date is not None and self.modified <= date
        return 304 if known else 0

    def lets_range(self, if_range: str | None, now: float) -> bool:
        """Whether If-Range names this state, so that a Range counts (RFC 9110, 13.1.5)."""
        if if_range is None or if_range.strip() == self.etag:
            return True
        # A date is a strong validator only once its second is over: until then more may change.
        return http_date(if_range, now) == self.modified <= now - 1


def _has_tag(value: str, etag: str, weakly: bool = False) -> bool:
    """Whether ``*`` or a list of entity tags has ``etag``, which is strong."""
    if value.strip() == "*":
        return True
    if not _ENTITY_TAGS.fullmatch(value):
        return False
    tags: list[str] = _ENTITY_TAG.findall(value)
    return etag in tags or (weakly and f"W/{etag}" in tags)


def byte_range(value: str, size: int) -> tuple[int, int] | None:
    """Offset and length of the range asked for, with no length if it can't be satisfied. None if
    all is to be sent: the field is malformed, or has several ranges or an unknown unit."""
    match = _RANGE.fullmatch(value)
    if not match:
        return None
    first, last = match.groups()
    if not first:
        if not last or (not size and int(last)):  # the end of nothing can't be told as a range
            return None
        length = min(int(last), size)
        return size - length, length
    start, end = int(first), int(last) + 1 if last else size
    if last and end <= start:
        return None
    return start, max(min(end, size) - start, 0)


def http_date(value: str | None, now: float) -> int | None:
    """The seconds of an HTTP-date in any of its three forms (RFC 9110, 5.6.7); None if it is none.

    Not by ``email.utils``, which takes more than that, and two digits of a year for another one.
    """
    matches = (form.fullmatch((value or "").strip()) for form in _DATES)
    match = next(filter(None, matches), None)
    if not match:
        return None
    year = int(match["year"])
    if len(match["year"]) == 2:
        latest = time.gmtime(now).tm_year + 50
        year = latest - (latest - year) % 100
    try:
        minute = datetime(
            year,
            _MONTHS.index(match["month"]) + 1,
            int(match["day"]),
            int(match["hour"]),
            int(match["minute"]),
            tzinfo=UTC,
        )
    except ValueError:
        return None
    return int(minute.timestamp()) + int(match["second"])
