"""Sticky: a cookie that binds a client to its target."""

import base64
import hmac

from pyproxy.balancing.policy import Asked, Targets
from pyproxy.balancing.target import Target


class Sticky:
    """The cookie's value is a keyed hash (HMAC-SHA-256) of the target's address: it tells nobody
    where the target is, and without the secret nobody can make one; one that belongs to no target
    of the pool is ignored. Called from many threads."""

    def __init__(self, cookie: str, secret: bytes, attributes: str = "") -> None:
        """``attributes`` stand behind the value in Set-Cookie, like ``; Path=/``."""
        self.cookie = cookie
        self._secret = secret
        self._attributes = attributes
        self._known: tuple[Targets, dict[str, Target]] = ((), {})

    def find(self, request: Asked, targets: Targets) -> Target | None:
        """The target that the client's cookie names."""
        value = request.cookie(self.cookie)
        if not value:
            return None
        known, by_value = self._known
        if known is not targets:
            by_value = {self._value(target): target for target in targets}
            self._known = (targets, by_value)
        return by_value.get(value)

    def _value(self, target: Target) -> str:
        digest = hmac.digest(self._secret, target.url.encode(), "sha256")
        return base64.urlsafe_b64encode(digest[:18]).decode()

    def lines(self, target: Target) -> bytes:
        """The response's lines that bind its client to ``target``, and keep caches that several
        clients share from storing them."""
        cookie = f"{self.cookie}={self._value(target)}{self._attributes}"
        return f"Set-Cookie: {cookie}\r\nCache-Control: private\r\n".encode("latin-1")
