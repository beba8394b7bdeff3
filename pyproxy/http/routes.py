"""Routes: which service answers a request, by its host and path."""

from collections.abc import Callable
from dataclasses import dataclass
from http.client import responses
from urllib.parse import unquote

from pyproxy.errors import HTTPError
from pyproxy.http.answer import Answer
from pyproxy.http.forward import Reply, Request
from pyproxy.http.static import Files, to_folder
from pyproxy.readers import wildcards

# What answers requests: a pool's Forwarder, a Router, or a function.
Service = Callable[[Request], Reply | Answer]


@dataclass(frozen=True)
class Rule:
    """Sends what matches to a service. ``host`` is a name, ``*.`` and a name for all below it, or
    None for any; ``path`` is a prefix of whole segments; ``endings``, if there are some, are those
    that the last segment may have, in lower case."""

    host: str | None
    path: str
    service: Service
    endings: tuple[str, ...] = ()

    @property
    def segments(self) -> list[str]:
        return _segments(self.path)


class Router:
    """A service that asks the rule that fits best: first by host (exact, then ``*.`` the longest
    first, then any), then one with endings, then by path (the longest first). Without one: the
    default."""

    def __init__(self, rules: list[Rule], default: Service) -> None:
        self._default = default
        # By host, the best first; of each, prefixes and endings, the best first.
        self._by_host: dict[str | None, list[tuple[list[str], tuple[str, ...], Service]]] = {}
        for rule in sorted(rules, key=lambda rule: (not rule.endings, -len(rule.segments))):
            found = (rule.segments, rule.endings, rule.service)
            self._by_host.setdefault(rule.host, []).append(found)

    def __call__(self, request: Request) -> Reply | Answer:
        return self.find(request.host, request.uri.partition("?")[0])(request)

    def find(self, host: str, path: str) -> Service:
        """``host`` without a port; ``path`` as it came."""
        segments = _segments(path)
        for name in (host, *wildcards(host), None):
            for prefix, endings, service in self._by_host.get(name, ()):
                if segments[: len(prefix)] == prefix and (not endings or _ends(segments, endings)):
                    return service
        return self._default


def _segments(path: str) -> list[str]:
    """What a target may take the path for: decoded, without empty and dot segments (RFC 3986,
    5.2.4). Only for the choice; the path goes on as it came."""
    kept: list[str] = []
    for segment in unquote(path).split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    return kept


def _ends(segments: list[str], endings: tuple[str, ...]) -> bool:
    return bool(segments) and segments[-1].lower().endswith(endings)


def no_route(request: Request) -> Answer:
    """The service where nothing else is said."""
    raise HTTPError(404, "nothing is served here")


def files_below(prefix: str, files: Files) -> Service:
    """``files`` under the path ``prefix``."""
    depth = len(_segments(prefix))

    def serve(request: Request) -> Answer:
        path, _, query = request.uri.partition("?")
        rest = path.split("/")[1 + depth :]
        if not rest:
            return to_folder(path, query)
        return files(request, f"/{'/'.join(rest)}", query)

    return serve


def deny(status: int) -> Service:
    """Nobody gets anything there."""

    def serve(request: Request) -> Answer:
        raise HTTPError(status, responses.get(status, "denied"))

    return serve


def redirect(location: str, status: int) -> Service:
    """Sends the client to ``location``, in which ``{host}`` and ``{uri}`` (path and query) are
    those of the request."""

    def serve(request: Request) -> Answer:
        if "{host}" in location and not request.host:
            raise HTTPError(400, "only who names a host can be sent elsewhere")
        to = location.replace("{host}", request.host).replace("{uri}", request.uri)
        return Answer.text(status, f"it is at {to}", ("Location", to))

    return serve
