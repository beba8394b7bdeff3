"""Guard: who may ask the admin API. Pure: header fields in, a refusal or nothing out.

With a password       every request needs it
Without one           the request must name this machine: a page elsewhere whose name has come to
                      point here (DNS rebinding) names itself
Requests that change  must not come from another site's page, which the browser would send with the
                      password it knows
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

from pyproxy.errors import ControlError
from pyproxy.readers import is_loopback
from pyproxy.sections import Admin

SAFE = ("GET", "HEAD")  # these change nothing


class Guard:
    """Calling it raises ``ControlError``, 401 or 403. May be called from any thread."""

    def __init__(self, admin: Admin) -> None:
        self._wanted: tuple[bytes, bytes] | None = None
        if admin.password:
            self._wanted = _digest(admin.user.encode()), _digest(admin.password.encode())
        self._host = admin.place[1] if admin.place else None

    @property
    def asks_password(self) -> bool:
        return self._wanted is not None

    def __call__(self, method: str, fields: Mapping[str, str], is_open: bool = False) -> None:
        """``fields`` have names in lower case, and ``host`` is one of them; ``is_open``: what is
        asked for needs no password."""
        if self._wanted is None:
            self._refuse_other_names(fields.get("host", ""))
        elif not is_open and not self._known(fields.get("authorization", "")):
            wrong = "authorization" in fields
            raise ControlError(401, "wrong user or password" if wrong else "say user and password")
        if method not in SAFE:
            _refuse_other_sites(fields)

    def _known(self, said: str) -> bool:
        assert self._wanted is not None
        scheme, _, coded = said.partition(" ")
        try:
            user, _, password = base64.b64decode(coded.strip(), validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return False
        # Both are compared, each in the same time whatever it is.
        same_user = hmac.compare_digest(_digest(user), self._wanted[0])
        same_password = hmac.compare_digest(_digest(password), self._wanted[1])
        return scheme.lower() == "basic" and same_user and same_password

    def _refuse_other_names(self, host: str) -> None:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if not is_loopback(name) and name != self._host:
            raise ControlError(403, "without a password only this machine's own names are answered")


def _refuse_other_sites(fields: Mapping[str, str]) -> None:
    site, origin = fields.get("sec-fetch-site"), fields.get("origin")
    own = [f"http://{fields['host']}".lower()]
    if site == "same-origin":  # an https proxy may stand before this one
        own.append(f"https://{fields['host']}".lower())
    other = origin is not None and origin.lower() not in own
    if other or site not in (None, "same-origin", "none"):
        raise ControlError(403, "a page of another site may change nothing here")


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()
