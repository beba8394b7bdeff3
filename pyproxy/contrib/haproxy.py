"""HAProxy's configuration as settings."""

import itertools
import os
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from pyproxy.contrib.converting import (
    Converted,
    ConvertError,
    Draft,
    Place,
    Pool,
    address_of,
    host_and_port,
    note_elsewhere,
    said,
    whole,
)
from pyproxy.readers import Json, is_loopback

_SECTIONS = {
    *("global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "userlist"),
    *("mailers", "program", "cache", "ring", "http-errors", "fcgi-app", "log-forward"),
    *("crt-store", "log-profile", "traces", "acme"),
}
# What pyproxy does anyway, does in another way, or has no need of.
_SILENT = re.compile(
    r"""bind-process | chroot | clitcpka.* | cpu-map | daemon | description | expose-fd.*
    | fullconn | gid | group | hash-type | id | localpeer | log-format.* | log-tag
    | master-worker | maxconnrate | maxpipes | maxsock | mode | nbproc | nbthread | node
    | numa-cpu-mapping | pidfile | (load-)?server-state.* | set-dumpable | spread-checks
    | ssl-default-server-.* | ssl-server-verify | srvtcpka.* | stats-file | tune\..* | uid
    | ulimit-n | unix-bind | user | zero-warning | unique-id-.* | max-keep-alive-queue
    | dynamic-cookie-key | http-reuse""",
    re.VERBOSE,
)
_SILENT_OPTIONS = {
    *("httplog", "tcplog", "dontlognull", "dontlog-normal", "http-server-close", "redispatch"),
    *("http-keep-alive", "forwardfor", "log-health-checks", "logasap", "tcpka", "clitcpka"),
    *(
        "srvtcpka",
        "contstats",
        "splice-auto",
        "splice-request",
        "splice-response",
        "prefer-last-server",
    ),
    *(
        "prefer-last-server",
        "socket-stats",
        "log-separate-errors",
        "http-buffer-request",
        "tcp-smart-accept",
    ),
    *("tcp-smart-connect", "abortonclose", "http-pretend-keepalive", "idle-close-on-response"),
    *(
        "http-ignore-probes",
        "tcp-check",
        "allbackups",
        "transparent",
        "http-use-htx",
        "http-no-delay",
    ),
}
_ADVICE = {
    "http-request deny": "nobody is turned away: let the application do it",
    "http-request tarpit": "nobody is turned away: let the application do it",
    "http-request reject": "nobody is turned away: let the application do it",
    "http-request auth": "nobody is asked who they are: let the application do it",
    "http-request track-sc": "nothing is kept of clients, and nothing limits who asks how often",
    "http-request return": "only redirects can be said: let the application answer",
    "http-request redirect": "a pool doesn't redirect: say it of a route, or of the address",
    "redirect": "a pool doesn't redirect: say it of a route, or of the address",
    "log": "say access_log, a file or - for standard output",
    "http-request": "requests are passed on as they are: let the application do it",
    "http-response": "answers are passed on as they are: let the application do it",
    "http-after-response": "answers are passed on as they are: let the application do it",
    "compression": "answers are passed on as they are: compress in the application",
    "errorfile": "unavailable.status and unavailable.body are what is said when no target is left",
    "errorloc": "unavailable.status and unavailable.body are what is said when no target is left",
    "http-error": "unavailable.status and unavailable.body are what is said when no target is left",
    "stick-table": "nothing is kept of clients: say sticky.cookie, or policy ip_hash",
    "stick": "nothing is kept of clients: say sticky.cookie, or policy ip_hash",
    "tcp-request": "all connections are taken: close the port to others by a firewall",
    "tcp-response": "answers are passed on as they are",
    "capture": "the access log has fields of its own",
    "declare": "the access log has fields of its own",
    "monitor": "the admin API has /health: say admin.listen",
    "rate-limit": "nothing limits who asks how often: limits.connections is for all together",
    "filter": "there are no filters",
    "lua": "there is no Lua; a policy may be a Python function",
    "tcp-check": "a check connects, or asks for health.path",
    "use-server": "the policy chooses; a route may have targets of its own",
    "external-check": "a check connects, or asks for health.path",
    "email-alert": "nobody is written to: watch the metrics",
    "block": "nobody is turned away: let the application do it",
    "acl": "routes go by host and path",
    "source": "connections to targets are from the address that the system chooses",
    "stats": "the admin API is what stats and its socket are: say admin.listen",
    "backlog": "it is the system's",
    "disabled": "left out",
    "resolvers": "names are looked up as the system does it: see its resolv.conf",
    "peers": "proxies share nothing",
    "userlist": "nobody is asked who they are: let the application do it",
    "mailers": "nobody is written to: watch the metrics",
    "program": "it runs no programs but targets: see scaling",
    "cache": "nothing is cached: put a cache before or behind pyproxy",
}
_TIME = {"us": 0.000001, "ms": 0.001, "": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_HEALTHY = [200, 201, 202, 203, 204, 205, 206, 300, 301, 302, 303, 304, 307, 308]
_ON_LOOPBACK = "http://127.0.0.1:8404"


@dataclass
class Line:
    words: list[str]
    place: Place

    @property
    def name(self) -> str:
        return self.words[0]

    def word(self, at: int) -> str:
        return self.words[at] if at < len(self.words) else ""

    def __str__(self) -> str:
        return " ".join(self.words)


@dataclass
class Section:
    """``defaults`` stand under it."""

    kind: str
    name: str
    place: Place
    defaults: "Section | None"
    lines: list[Line] = field(default_factory=list)

    def own(self, *start: str) -> list[Line]:
        return [one for one in self.lines if tuple(one.words[: len(start)]) == start]

    def all(self, *start: str) -> list[Line]:
        return self.own(*start) or (self.defaults.all(*start) if self.defaults else [])

    def get(self, *start: str) -> Line | None:
        found = self.all(*start)
        return found[-1] if found else None

    @property
    def mode(self) -> str:
        found = self.get("mode")
        return found.word(1) if found else "tcp"


@dataclass(frozen=True)
class Matcher:
    """A condition on requests; None: any."""

    host: str | None = None
    path: str | None = None
    server_name: str | None = None


def seconds(text: str) -> float | None:
    """``5000`` and ``5s``: a number is of milliseconds."""
    match = re.fullmatch(r"([0-9]{1,12})(us|ms|[smhd]|)", text)
    return int(match[1]) * _TIME[match[2]] if match else None


def convert(text: str, file: str) -> Converted:
    """``file`` is the name that notes tell. Raises ``ConvertError``."""
    draft = Draft(Place(file, 1))
    sections = _read(text, file)
    _Converter(draft, sections, os.path.dirname(file)).convert()
    return draft.finish()


def _read(text: str, file: str) -> list[Section]:
    sections: list[Section] = []
    defaults: dict[str, Section] = {}
    last: Section | None = None
    for number, raw in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(raw, comments=True)
        except ValueError as error:
            raise ConvertError(f"{file}:{number}: {str(error).lower()}") from None
        if not words:
            continue
        place = Place(file, number)
        if words[0] in _SECTIONS:
            kind, name = words[0], words[1] if len(words) > 1 else ""
            under = last
            if "from" in words[1:-1]:
                wanted = words[words.index("from", 1) + 1]
                if wanted not in defaults:
                    raise ConvertError(f'{file}:{number}: there is no section "defaults {wanted}"')
                under = defaults[wanted]
            elif kind == "defaults":
                under = None
            section = Section(kind, name, place, None if kind == "global" else under)
            sections.append(section)
            if kind in ("frontend", "listen") and words[2:3] not in ([], ["from"]):  # of old
                section.lines.append(Line(["bind", *words[2:]], place))
            if kind == "defaults":
                last = defaults[name] = section
        elif not sections:
            raise ConvertError(
                f'{file}:{number}: "{words[0]}" stands before any section (global, defaults, '
                "frontend, backend or listen)"
            )
        else:
            sections[-1].lines.append(Line(words, place))
    return sections


class _Converter:
    def __init__(self, draft: Draft, sections: list[Section], folder: str) -> None:
        self._draft = draft
        self._sections = sections
        self._folder = folder
        self._backends = {one.name: one for one in sections if one.kind in ("backend", "listen")}
        self._used: set[str] = set()
        self._certificates: list[tuple[str, Place]] = []
        self._crt_base = self._ca_base = folder

    def note(self, one: Line, text: str) -> None:
        said_ = str(one)
        self._draft.note(one.place, f"{said_ if len(said_) < 80 else one.name}: {text}")

    def convert(self) -> None:
        for section in self._sections:
            if section.kind == "global":
                self._global(section)
            elif section.kind not in ("defaults", "frontend", "backend", "listen"):
                known = _ADVICE.get(section.kind, "pyproxy has nothing like it")
                self._draft.note(section.place, f"{section.kind} {section.name}: {known}")
        for section in self._sections:
            if section.kind in ("defaults", "frontend", "backend", "listen"):
                self._others(section)
        fronts = [one for one in self._sections if one.kind in ("frontend", "listen")]
        serving: list[tuple[Place, list[str]]] = []
        secure = any(_secure(line) for one in fronts for line in one.own("bind"))
        for section in fronts:
            if section.own("disabled"):
                continue
            if _has_stats(section):
                self._stats(section)
            serves = section.own("server") or section.own("server-template")
            if not (serves or section.all("default_backend") or _chooses(section)):
                if not _has_stats(section):
                    self._draft.note(section.place, f"{section.name} leads nowhere: left out")
            elif not section.own("bind"):
                self._draft.note(section.place, f"{section.name} listens nowhere: left out")
            elif section.mode == "tcp":
                self._relay(section)
            elif urls := self._front(section, secure):
                serving.append((section.place, urls))
        note_elsewhere(self._draft, serving)
        for name, one in self._backends.items():
            if one.kind == "backend" and name not in self._used:
                self._draft.note(one.place, f"backend {name}: nothing is served by it")
        self._say_certificates()

    def _say_certificates(self) -> None:
        files = list(dict(self._certificates).items())
        for name, place in files[:1]:
            self._draft.say("tls.certificate", name, place)
        if len(files) > 1:
            pairs = [{"certificate": name, "key": name} for name, _ in files[1:]]
            self._draft.say("tls.certificates", pairs, files[1][1])

    def _global(self, section: Section) -> None:
        for line in section.lines:
            match line.words:
                case ["maxconn", count] if whole(count):
                    self._draft.say("limits.connections", whole(count), line.place)
                case ["crt-base", folder]:
                    self._crt_base = os.path.join(self._folder, folder)
                case ["ca-base", folder]:
                    self._ca_base = os.path.join(self._folder, folder)
                case ["ssl-default-bind-ciphers", ciphers]:
                    self._draft.say("tls.ciphers", ciphers, line.place)
                case ["ssl-default-bind-options", *options]:
                    self._bind_tls(line, options)
                case _:
                    self._unknown(line)

    def _unknown(self, line: Line) -> None:
        if _SILENT.fullmatch(line.name):
            return
        known = [name for name in _ADVICE if str(line).startswith(name)]
        self.note(line, _ADVICE[known[0]] if known else "pyproxy has nothing like it")

    def _others(self, section: Section) -> None:
        """Notes what nothing is made of."""
        for line in section.lines:
            handled = _HANDLED if section.kind in ("frontend", "listen") else _OF_BACKENDS
            if line.name in handled or line.name == "no" or line.words == ["log", "global"]:
                continue
            if line.name == "option":
                if line.word(1) == "forwardfor" and {"except", "header"} & set(line.words):
                    self.note(line, "X-Forwarded-For is always said, and by that name")
                elif line.word(1) not in _SILENT_OPTIONS | {"httpchk"}:
                    self.note(line, "pyproxy has nothing like it")
            elif line.name == "timeout":
                if line.word(1) not in _TIMEOUTS:
                    self.note(line, "there is no such time-out")
                elif said(seconds(line.word(2)) or 0) is None:
                    self.note(line, "this is no duration that pyproxy can have")
            elif not _is_heeded(line, section):
                self._unknown(line)

    # Who asks

    def _binds(self, section: Section) -> Iterator[tuple[Line, str, int]]:
        for line in section.own("bind"):
            if odd := _options(line.words[2:], _BIND_VALUES).keys() - _BIND_OPTIONS:
                self.note(line, f"nothing is like {', '.join(sorted(odd))}")
            for address in line.word(1).split(","):
                host, port = _host_and_port(address)
                if address.startswith(("/", "unix@", "abns@", "fd@", "quic")) or port is None:
                    self.note(line, f"{address or 'nothing'} can't be listened on: say host:port")
                else:
                    yield line, "0.0.0.0" if host in ("", "*") else host, port
                    if host == "::" and "v4v6" in line.words:
                        yield line, "0.0.0.0", port

    def _front(self, section: Section, secure: bool) -> list[str]:
        """The addresses at which it serves."""
        self._times_of_clients(section)
        limit = section.get("maxconn")
        if limit and (count := whole(limit.word(1))):
            self._draft.say("limits.connections", count, limit.place)
        matchers = self._acls(section)
        to_https = self._to_https(section, matchers)
        urls = []
        for line, host, port in self._binds(section):
            more: dict[str, Json] = {}
            if "accept-proxy" in line.words:
                more["proxy_protocol"] = True
                text = "PROXY headers are believed from trusted_proxies only: name them there"
                self.note(line, text)
            if _secure(line):
                self._bind_tls(line, line.words[2:])
            elif to_https and secure:
                more["redirect"] = "https"
                if to_https != 302:
                    more["redirect_status"] = to_https
            url = address_of(host, port, "https" if _secure(line) else "http")
            self._draft.listen(url, line.place, **more)
            if "redirect" not in more:
                urls.append(url)
        if to_https and not secure:
            what = {"redirect": "https://{host}{uri}", "redirect_status": to_https}
            text = f"all that comes to {section.name} is sent to https: nothing else of it is here"
            self._draft.note(section.place, text)
            self._draft.route(None, "/", what, section.place)
            return urls
        self._routes(section, matchers)
        if default := section.get("default_backend"):
            self._pool_at(None, "/", default.word(1), default, section)
        elif section.own("server") or section.own("server-template"):
            self._pool_at(None, "/", section.name, Line(["listen"], section.place), section)
        return urls

    def _times_of_clients(self, section: Section) -> None:
        header = section.get("timeout", "http-request")
        keep = section.get("timeout", "http-keep-alive")
        for line, key in (
            (header, "header"),
            (keep or header or section.get("timeout", "client"), "keep_alive"),
        ):
            if line and (time := said(seconds(line.word(2)) or 0)):
                self._draft.say(f"timeouts.{key}", time, line.place)

    def _bind_tls(self, line: Line, options: Sequence[str]) -> None:
        for name, value in itertools.pairwise([*options, ""]):
            if name == "crt":
                path = os.path.join(self._crt_base, value)
                if os.path.isdir(path):
                    self.note(line, "certificates are files: name each, in tls.certificates")
                else:
                    self._certificates.append((path, line.place))
            elif name == "ciphers":
                self._draft.say("tls.ciphers", value, line.place)
            elif name == "ssl-min-ver" and value in ("TLSv1.2", "TLSv1.3"):
                self._draft.say("tls.min_version", value.removeprefix("TLSv"), line.place)
            elif name == "ssl-min-ver":
                self.note(line, "TLS 1.2 is the oldest that is spoken")
            elif name == "ca-file":
                if "required" in options:
                    ca = os.path.join(self._ca_base, value)
                    self._draft.say("tls.client_ca", ca, line.place)
            elif name == "verify" and value == "optional":
                self.note(
                    line, "certificates of clients are needed (tls.client_ca) or not asked for"
                )

    def _acls(self, section: Section) -> dict[str, list[Matcher] | None]:
        """What each name stands for; None where routes can't say it."""
        found: dict[str, list[Matcher] | None] = {"TRUE": [Matcher()], "HTTP": [Matcher()]}
        for line in section.own("acl"):
            name = line.word(1)
            meant = self._criterion(line, line.words[2:])
            if meant is None:
                if line.word(2) not in ("ssl_fc", "dst_port"):
                    self.note(line, "routes go by host and path only")
                found[name] = None
            elif (before := found.get(name, [])) is not None:
                found[name] = [*before, *meant]
        return found

    def _criterion(self, line: Line, words: Sequence[str]) -> list[Matcher] | None:
        """Of ``path_beg /api /x``; None if routes can't say it."""
        if not words:
            return None
        fetch, *values = words
        fetch, *converters = fetch.split(",")
        flags = []
        while values and values[0].startswith("-"):
            flag = values.pop(0)
            if flag == "-m" and values:
                flags.append(values.pop(0))
            elif flag == "--":
                break
            elif flag != "-i":
                return None
        if set(converters) - {"lower", "field(1,:)", "host_only"} or not values:
            return None
        kind = flags[0] if flags else ""
        fetch = fetch.removeprefix("req.").removeprefix("req_")
        if fetch == "ssl_sni":
            if kind == "end":
                return [Matcher(server_name=one) for one in _below(values)]
            return [Matcher(server_name=one) for one in values] if kind in ("", "str") else None
        if fetch in ("path", "path_beg", "path_dir"):
            exact = fetch == "path" and kind in ("", "str")
            if not all(one.startswith("/") for one in values):
                return None
            if kind not in ("", "str", "beg", "dir"):
                return None
            if exact:
                self.note(line, "a route is for all below its path too")
            return [Matcher(path=one) for one in values]
        match = re.fullmatch(r"hdr(?:_(end))?\((?:host|Host)(?:,\d+)?\)", fetch)
        if not match or kind not in ("", "str", "end"):
            return None
        if match[1] or kind == "end":
            return [Matcher(host=one) for one in _below(values)]
        return [Matcher(host=one.partition(":")[0]) for one in values]

    def _condition(
        self, line: Line, words: list[str], known: dict[str, list[Matcher] | None]
    ) -> list[Matcher] | None:
        """Of ``if a b || { path_beg /c }``: any of these; None if routes can't say it."""
        if words[:1] != ["if"]:
            return None if words else [Matcher()]
        found: list[Matcher] = []
        for alternative in _split(words[1:]):
            both = [Matcher()]
            for term in alternative:
                meant = known.get(term) if isinstance(term, str) else self._criterion(line, term)
                if meant is None:
                    return None
                joined = [_both(one, other) for one in both for other in meant]
                both = [one for one in joined if one]
            found += both
        return found

    def _to_https(self, section: Section, known: dict[str, list[Matcher] | None]) -> int | None:
        """The status with which who comes without TLS is sent there."""
        for line in section.lines:
            words = line.words[1:] if line.name == "http-request" else line.words
            if words[:3] != ["redirect", "scheme", "https"]:
                continue
            rest = words[3:]
            status = 302
            if rest[:1] == ["code"]:
                status, rest = whole(rest[1] if len(rest) > 1 else "") or 302, rest[2:]
            plain = {line.word(1) for line in section.own("acl") if line.word(2) == "ssl_fc"}
            text = " ".join(rest)
            if text in ("", "if !{ ssl_fc }", "unless { ssl_fc }") or any(
                text in (f"if !{name}", f"unless {name}") for name in plain
            ):
                return status
            self.note(line, "all of an address is sent to https, or nothing")
        return None

    def _routes(self, section: Section, known: dict[str, list[Matcher] | None]) -> None:
        seen: list[Matcher] = []
        for line in section.lines:  # which HAProxy heeds first, wherever they stand
            words = line.words[1:] if line.name == "http-request" else line.words
            if words[:1] == ["redirect"] and words[1:3] != ["scheme", "https"]:
                seen += self._redirect(line, words, known)
        for line in section.own("use_backend"):
            wanted = self._condition(line, line.words[2:], known)
            if "%[" in line.word(1) or wanted is None or any(one.server_name for one in wanted):
                self.note(line, "routes go by host and path only: say these with another proxy")
                continue
            if not wanted:
                self.note(line, "no request is for all of that: left out")
            for one in wanted:
                if any(_covers(first, one) for first in seen):
                    self.note(line, "a line above matches all that: left out")
                    continue
                self._order(line, one, seen)
                seen.append(one)
                self._pool_at(one.host, one.path or "/", line.word(1), line, section)

    def _order(self, line: Line, one: Matcher, seen: list[Matcher]) -> None:
        """What goes by the first match there goes by the best one here."""
        if one.host and any(first.path and not first.host for first in seen):
            self.note(line, "a route for this host goes before those for any host")

    def _redirect(
        self, line: Line, words: list[str], known: dict[str, list[Matcher] | None]
    ) -> list[Matcher]:
        """What it is for."""
        at = next((at for at, word in enumerate(words) if word in ("if", "unless")), len(words))
        options = words[1:at]
        wanted = self._condition(line, words[at:], known)
        if (
            not wanted
            or any(one.server_name for one in wanted)
            or options[:1] not in (["location"], ["prefix"])
            or len(options) < 2
        ):
            self.note(line, "redirects go by host and path only, to an address")
            return []
        to = options[1] + ("{uri}" if options[0] == "prefix" else "")
        to = to.replace("%[hdr(host)]", "{host}").replace("%[req.hdr(host)]", "{host}")
        to = to.replace("%[capture.req.uri]", "{uri}")
        if "%" in re.sub("%[0-9A-Fa-f]{2}", "", to):
            self.note(line, "in redirects only the host and the uri count")
            return []
        what: dict[str, Json] = {"redirect": to}
        if "code" in options[2:-1] and (code := whole(options[options.index("code", 2) + 1])):
            what |= {"redirect_status": code} if code != 302 else {}
        for one in wanted:
            self._draft.route(one.host, one.path or "/", what, line.place)
        return wanted

    # Who serves

    def _pool_at(
        self, host: str | None, path: str, name: str, line: Line, section: Section
    ) -> None:
        if pool := self._pool(name, line, section):
            self._draft.route(host, path, pool, line.place)

    def _pool(self, name: str, line: Line, front: Section) -> dict[str, Json] | None:
        section = self._backends.get(name)
        if section is None:
            self.note(line, f"there is no backend {name}")
            return None
        self._used.add(name)
        tcp = front.mode == "tcp"
        pool = Pool(self._draft, section.place)
        self._servers(section, pool, front, tcp)
        if not pool.targets:
            self._draft.note(section.place, f"{name} has no target left: it isn't served")
            return None
        self._times(section, front, pool, tcp)
        self._health(section, pool, tcp)
        self._retry(section, pool, tcp)
        if not tcp:
            self._cookie(section, pool)
        pool.say("policy", self._policy(section, pool, tcp))
        return pool.as_settings()

    def _times(self, section: Section, front: Section, pool: Pool, tcp: bool) -> None:
        def time(name: str, where: Section = section) -> float:
            line = where.get("timeout", name)
            return (seconds(line.word(2)) if line else None) or 0

        idle = time("tunnel")
        if tcp and not idle:
            idle = max(time("server"), time("client", front))
        for key, value in (
            ("timeouts.connect", time("connect")),
            ("timeouts.idle", idle),
            ("timeouts.read", 0 if tcp else time("server")),
            ("timeouts.send", 0 if tcp else time("server")),
            ("queue.timeout", time("queue")),
        ):
            if found := said(value):
                pool.say(key, found)

    def _retry(self, section: Section, pool: Pool, tcp: bool) -> None:
        if (line := section.get("retries")) and (count := whole(line.word(1))) is not None:
            pool.say("retry.attempts", count + 1)
        if (line := section.get("retry-on")) and not tcp:
            statuses = [int(word) for word in line.words if re.fullmatch("[45][0-9]{2}", word)]
            if "all-retryable-errors" in line.words:
                statuses = [500, 502, 503, 504]
            if statuses:
                pool.say("retry.statuses", statuses)

    def _cookie(self, section: Section, pool: Pool) -> None:
        line = section.get("cookie")
        if not line:
            return
        name_ = line.word(1)
        if "insert" not in line.words:
            name_ += "_target"
            text = f"the application's cookie isn't changed: the proxy has one of its own, {name_}"
            self.note(line, text)
        pool.say("sticky.cookie", name_)
        if "secure" in line.words:
            pool.say("sticky.secure", True)
        for name, value in itertools.pairwise(line.words[2:]):
            if name == "maxlife":
                life = seconds(f"{value}s" if value.isdigit() else value)
                pool.say("sticky.max_age", said(life or 0))
            elif name in ("maxidle", "domain", "attr"):
                self.note(line, f"{name} can't be said of the cookie")

    def _policy(self, section: Section, pool: Pool, tcp: bool) -> Json:
        line = section.get("balance")
        name, *options = line.words[1:] if line and len(line.words) > 1 else ["roundrobin"]
        weighted = "weighted_" if pool.weighted else ""
        turns = "weighted_round_robin" if weighted else "round_robin"
        hashed = section.get("hash-type")
        consistent = bool(hashed and hashed.word(1) == "consistent")
        factor = section.get("hash-balance-factor")
        match = re.fullmatch(r"hdr\(([^,)]+).*\)", name)
        random = re.fullmatch(r"random(?:\((\d+)\))?", name)
        if name in ("roundrobin", "static-rr"):
            return turns
        if name == "leastconn":
            return f"{weighted}least_connections"
        if name == "first":
            return "first"
        if random:
            return "random" if random[1] == "1" else "power_of_two_choices"
        key = ""
        if name == "source":
            key = "client"
        elif not tcp and name == "uri":
            key = "uri"
            if options and line:
                self.note(line, "the whole uri is the key")
        elif not tcp and name == "url_param" and options:
            key = f"query:{options[0]}"
        elif not tcp and match:
            key = f"header:{match[1]}"
        if not key:
            if line:
                self.note(line, f"there is no such policy: {turns} instead")
            return turns
        if key == "client" and not consistent:
            return "ip_hash"
        found: dict[str, Json] = {"name": "consistent_hash" if consistent else "rendezvous_hash"}
        if key != "client":
            found["key"] = key
        if consistent and factor and (percent := whole(factor.word(1))):
            found["bounded_load"] = percent / 100
        return found

    def _health(self, section: Section, pool: Pool, tcp: bool) -> None:
        if "health" not in pool.said:
            return
        asks = section.get("option", "httpchk")
        if not asks:
            if not tcp:
                pool.say("health.tcp", True)
        elif tcp:
            self.note(asks, "a tcp entry's targets are only connected to")
        else:
            if asks.words[5:] or not re.fullmatch(r"HTTP/1\.[01]|", asks.word(4)):
                self.note(asks, "checks have header fields of their own")
            path = asks.word(3) or (asks.word(2) if asks.word(2).startswith("/") else "")
            method = asks.word(2) if asks.word(3) else "OPTIONS"
            statuses: list[int] = []
            for line in section.all("http-check"):
                if line.word(1) == "send":
                    said_ = dict(itertools.pairwise(line.words[2:]))
                    path, method = said_.get("uri", path), said_.get("meth", method)
                    if {"hdr", "body"} & said_.keys():
                        self.note(line, "checks have header fields of their own, and no body")
                elif line.word(1) == "expect" and not self._expect(line, pool, statuses):
                    self.note(line, "health.status is a list of statuses, health.body a text")
            if method != "GET":
                self.note(asks, "checks ask with GET")
            pool.say("health.path", path or "/")
            if statuses or "body" not in pool.said["health"]:
                pool.say("health.status", statuses or _HEALTHY)
        longest = section.get("timeout", "check")
        if longest and (time := said(seconds(longest.word(2)) or 0)):
            pool.say("health.timeout", time)

    def _expect(self, line: Line, pool: Pool, statuses: list[int]) -> bool:
        rest = [word for word in line.words[2:] if word not in ("min-recv", "comment")]
        if len(rest) == 2 and rest[0] == "string":
            pool.say("health.body", rest[1])
            return True
        if len(rest) != 2 or rest[0] != "status":
            return False
        for part in rest[1].split(","):
            match = re.fullmatch(r"([2-5][0-9]{2})(?:-([2-5][0-9]{2}))?", part)
            if not match:
                return False
            statuses += range(int(match[1]), int(match[2] or match[1]) + 1)
        return True

    def _servers(self, section: Section, pool: Pool, front: Section, tcp: bool) -> None:
        checked: list[bool] = []
        known: dict[str, Line] = {}
        lines = []
        for line in section.own("server") + section.own("server-template"):
            if line.name == "server" and line.word(1) in known:
                first = known[line.word(1)]
                self.note(line, f"joined with line {first.place.line}: names are unique in HAProxy")
                if first.word(2) == line.word(2):
                    first.words += line.words[3:]
                continue
            line = Line(list(line.words), line.place)
            known[line.word(1)] = line
            lines.append(line)
        defaults = [one.words[1:] for one in section.all("default-server")]
        for line in lines:
            self._server(line, [*itertools.chain(*defaults)], pool, front, tcp, checked)
        if checked and any(checked) and not all(checked):
            self._draft.note(section.place, "checks are for all targets, or for none: for all here")
        backups = [one for one, _ in pool.targets if one.get("backup")]
        if len(backups) > 1 and not section.get("option", "allbackups"):
            text = "all backups serve when they must, not only the first"
            self._draft.note(section.place, text)

    def _server(
        self,
        line: Line,
        defaults: list[str],
        pool: Pool,
        front: Section,
        tcp: bool,
        checked: list[bool],
    ) -> None:
        template = line.name == "server-template"
        at = 3 if template else 2
        said_ = _options([*defaults, *line.words[at + 1 :]], _WITH_VALUE)
        host, port = _host_and_port(line.word(at))
        if host.startswith("_"):
            self.note(line, "SRV records aren't looked up: say a name and a port")
            return
        if line.word(at).startswith(("/", "unix@", "abns@")) or not host:
            self.note(line, "targets are reached by TCP only: give it a host and a port")
            return
        if "disabled" in said_ or said_.get("weight") == "0":
            self.note(line, "left out; `pyproxy add` adds it while pyproxy runs")
            return
        if port is None:
            port = next((port for _, _, port in self._binds(front)), 80)
            self.note(line, f"without a port: {port} is taken, where clients come")
        more: dict[str, Json] = {}
        if (weight := whole(said_.get("weight", ""))) and weight != 1:
            more["weight"] = weight
        if "backup" in said_:
            more["backup"] = True
        if most := whole(said_.get("maxconn", "")):
            more["max_connections"] = most
        if time := said(seconds(said_.get("slowstart", "")) or 0):
            more["slow_start"] = time
        if {"send-proxy", "send-proxy-v2"} & said_.keys():
            pool.say("send_proxy", 2 if "send-proxy-v2" in said_ else 1)
        scheme = "tcp" if tcp else "http"
        if "ssl" in said_ and tcp:
            self.note(line, "targets of a tcp entry are spoken to as clients speak, without TLS")
        elif "ssl" in said_:
            scheme = "https"
            pool.say("target_tls.verify", said_.get("verify") != "none")
            for key, option in (("ca", "ca-file"), ("certificate", "crt")):
                if name := said_.get(option):
                    base = self._ca_base if key == "ca" else self._crt_base
                    pool.say(f"target_tls.{key}", os.path.join(base, name))
        if said_.get("proto") == "h2":
            self.note(line, "targets are asked by HTTP/1.1")
        if template and scheme != "https":
            scheme = "dns"
        checked.append("check" in said_)
        if "check" in said_:
            self._check(line, said_, pool)
        if "observe" in said_:
            pool.say("max_fails", whole(said_.get("error-limit", "")) or 10)
        unknown = [name for name in said_ if name not in _SERVER_OPTIONS]
        if unknown:
            self.note(line, f"nothing is like {', '.join(unknown)}")
        pool.add(line.place, address_of(host, port, scheme), **more)

    def _check(self, line: Line, said_: dict[str, str], pool: Pool) -> None:
        inter = seconds(said_.get("inter", "2s")) or 2
        every = said(inter) or "2s"
        found: dict[str, Json] = {
            "interval": every,
            "timeout": every,
            "rise": whole(said_.get("rise", "")) or 2,
            "fall": whole(said_.get("fall", "")) or 3,
        }
        if pool.said.setdefault("health", found) != found:
            self.note(line, "all targets are checked alike: as the first one is")
        pool.said.setdefault(
            "sleeping", said(seconds(said_.get("downinter", "")) or inter) or every
        )

    # Connections as they are

    def _relay(self, section: Section) -> None:
        known = self._acls(section)
        for line, host, port in self._binds(section):
            entry: dict[str, Json] = {"listen": address_of(host, port, "").removeprefix("://")}
            if "accept-proxy" in line.words:
                entry["proxy_protocol"] = True
                text = "PROXY headers are believed from trusted_proxies only: name them there"
                self.note(line, text)
            if _secure(line):
                entry["tls"] = True
                self._bind_tls(line, line.words[2:])
            for one in section.own("use_backend"):
                wanted = self._condition(one, one.words[2:], known)
                if not wanted or any(
                    not one_.server_name or one_.host or one_.path for one_ in wanted
                ):
                    self.note(one, "connections go by the name in TLS only")
                    continue
                for match in wanted:
                    self._entry(
                        entry | {"server_name": match.server_name}, one, one.word(1), section
                    )
            if default := section.get("default_backend"):
                self._entry(entry, default, default.word(1), section)
            elif section.own("server") or section.own("server-template"):
                self._entry(entry, line, section.name, section)

    def _entry(self, entry: dict[str, Json], line: Line, name: str, section: Section) -> None:
        if pool := self._pool(name, line, section):
            self._draft.tcp(entry | pool, line.place)

    def _stats(self, section: Section) -> None:
        """The page of its own that stats are becomes the admin API, with its page."""
        line = next(iter(section.own("stats")))
        pages = section.get("stats", "uri")
        login = section.get("stats", "auth")
        for one in section.own("stats", "auth"):
            if one is not login:
                self.note(one, "one may log in: the last one")
        binds = list(self._binds(section))
        alone = not (section.own("server") or section.all("default_backend"))
        url = _ON_LOOPBACK
        if alone and binds:
            _, host, port = binds[0]
            if not (login or is_loopback(host)):
                self.note(line, "without a password only this machine may look: it is 127.0.0.1")
                host = "127.0.0.1"
            url = address_of(host, port, "http")
        self._draft.say("admin.listen", url, line.place)
        if login:
            user, _, password = login.word(2).partition(":")
            self._draft.say("admin.user", user, login.place)
            self._draft.say("admin.password", password, login.place)
        at = f", not at {pages.word(2)}" if pages else ""
        self.note(line, f"the dashboard is at {url}/{at}")


_TIMEOUTS = {
    *("connect", "client", "server", "http-request", "http-keep-alive", "queue", "tunnel", "check"),
    *("client-fin", "server-fin", "tarpit"),
}
_HANDLED = {
    *(
        "bind",
        "server",
        "server-template",
        "default-server",
        "balance",
        "cookie",
        "default_backend",
    ),
    *("use_backend", "acl", "redirect", "retries", "retry-on", "maxconn", "hash-balance-factor"),
    *("stats", "disabled", "enabled"),
}
_OF_BACKENDS = _HANDLED - {"redirect", "stats"}
_BIND_VALUES = {
    *("alpn", "backlog", "ca-file", "ciphers", "ciphersuites", "crl-file", "crt", "crt-list"),
    *("curves", "ecdhe", "gid", "group", "id", "interface", "level", "maxconn", "mode", "mss"),
    *("name", "namespace", "nice", "npn", "process", "proto", "shards", "ssl-max-ver"),
    *("ssl-min-ver", "tcp-ut", "thread", "tls-ticket-keys", "uid", "user", "verify"),
}
_BIND_OPTIONS = {
    *("accept-proxy", "alpn", "backlog", "ca-file", "ciphers", "crt", "curves", "defer-accept"),
    *("ecdhe", "id", "mss", "name", "nice", "no-sslv3", "no-tls-tickets", "no-tlsv10"),
    *("no-tlsv11", "npn", "prefer-client-ciphers", "process", "shards", "ssl", "ssl-min-ver"),
    *("tfo", "thread", "v4v6", "v6only", "verify"),
}
_WITH_VALUE = {
    *(
        "weight",
        "inter",
        "fastinter",
        "downinter",
        "rise",
        "fall",
        "maxconn",
        "cookie",
        "slowstart",
    ),
    *(
        "verify",
        "ca-file",
        "crt",
        "sni",
        "alpn",
        "resolvers",
        "resolve-prefer",
        "init-addr",
        "port",
    ),
    *(
        "addr",
        "observe",
        "error-limit",
        "on-error",
        "on-marked-down",
        "on-marked-up",
        "id",
        "proto",
    ),
    *("maxqueue", "minconn", "check-sni", "check-alpn", "check-proto", "verifyhost", "namespace"),
    *("source", "track", "redir", "ciphers", "ciphersuites", "ssl-min-ver", "ssl-max-ver", "tfo"),
    *("pool-max-conn", "pool-purge-delay", "pool-low-conn", "max-reuse", "resolve-opts", "ws"),
}
_SERVER_OPTIONS = {
    *("weight", "inter", "downinter", "rise", "fall", "maxconn", "cookie", "slowstart", "verify"),
    *("ca-file", "crt", "backup", "check", "ssl", "send-proxy", "send-proxy-v2", "observe", "sni"),
    *(
        "error-limit",
        "resolvers",
        "resolve-prefer",
        "init-addr",
        "id",
        "pool-max-conn",
        "max-reuse",
    ),
    *(
        "pool-purge-delay",
        "pool-low-conn",
        "enabled",
        "check-ssl",
        "on-error",
        "fastinter",
        "proto",
    ),
    *("ssl-min-ver", "check-sni", "stick", "non-stick", "no-check", "no-backup", "no-ssl", "alpn"),
}
# Fields that say what pyproxy says anyway.
_OUR_FIELDS = {
    "x-forwarded-proto": ("%[ssl_fc,iif(https,http)]",),
    "x-forwarded-for": ("%[src]", "%ci"),
    "x-real-ip": ("%[src]", "%ci"),
    "x-forwarded-host": ("%[hdr(host)]", "%[req.hdr(host)]"),
}


def _options(words: list[str], with_value: Collection[str]) -> dict[str, str]:
    """The value of each, "" where it has none; the last one counts."""
    found: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        value = next(rest, "") if word in with_value else ""
        if word.startswith("no-"):
            found.pop(word[3:], None)
        found[word] = value
    return found


def _host_and_port(text: str) -> tuple[str, int | None]:
    """What follows the last colon is the port, of IPv6 too, with or without brackets."""
    address = re.sub("^(ipv[46]|unix|abns)@", "", text)
    return host_and_port(re.sub("^([^[]*:.*):", r"[\1]:", address))


def _secure(line: Line) -> bool:
    return "ssl" in line.words[2:]


def _has_stats(section: Section) -> bool:
    return bool(section.own("stats", "enable") or section.own("stats", "uri"))


def _chooses(section: Section) -> bool:
    """Whether it has lines that say who serves, or where to go."""
    return bool(
        section.own("use_backend")
        or section.own("redirect")
        or section.own("http-request", "redirect")
    )


def _is_heeded(line: Line, section: Section) -> bool:
    """Whether something is made of it elsewhere, or it says what pyproxy says anyway."""
    what = (line.name, line.word(1))
    if what in (("http-request", "set-header"), ("http-request", "add-header")):
        name, value, *condition = [one.lower() for one in [*line.words[2:], "", ""]]
        if name == "x-forwarded-proto" and value in ("http", "https"):
            binds = section.own("bind")
            always = {_secure(one) for one in binds} == {value == "https"}
            return always or bool({"{ssl_fc}", "!{ssl_fc}"} & {"".join(condition[1:])})
        return value in _OUR_FIELDS.get(name, ())
    if what == ("http-request", "redirect"):
        return section.kind in ("frontend", "listen")
    if what == ("tcp-request", "content"):
        return "ssl_hello_type" in str(line) and line.word(2) == "accept"
    return what in (
        *(("http-check", "expect"), ("http-check", "send"), ("tcp-request", "inspect-delay")),
    )


def _both(one: Matcher, other: Matcher) -> Matcher | None:
    """What both match; None if nothing does."""
    host = _narrower(one.host, other.host, _is_host_of)
    path = _narrower(one.path, other.path, _is_path_of)
    name = _narrower(one.server_name, other.server_name, _is_host_of)
    return None if "" in (host, path, name) else Matcher(host, path, name)


def _narrower(one: str | None, other: str | None, within: Callable[[str, str], bool]) -> str | None:
    """Of two patterns the one that is within the other; "" if none is."""
    if one is None or other is None:
        return one if other is None else other
    return one if within(one, other) else other if within(other, one) else ""


def _is_host_of(one: str, pattern: str) -> bool:
    return one == pattern or (pattern.startswith("*") and one.endswith(pattern[1:]))


def _is_path_of(one: str, path: str) -> bool:
    return f"{one.rstrip('/')}/".startswith(f"{path.rstrip('/')}/")


def _below(ends: Sequence[str]) -> list[str]:
    """The hosts of what a name ends with."""
    found = [[f"*{one}"] if one.startswith(".") else [one, f"*.{one}"] for one in ends]
    return [*itertools.chain(*found)]


def _covers(one: Matcher, other: Matcher) -> bool:
    """Whether all that the other matches is matched by the one, which stands before it."""
    return one == Matcher() or (
        one.host == other.host
        and one.server_name == other.server_name
        and _is_path_of(other.path or "/", one.path or "/")
    )


def _split(words: list[str]) -> Iterator[list[str | list[str]]]:
    """The alternatives of a condition, each its terms: names, and what stands in braces."""
    terms: list[str | list[str]] = []
    rest = iter(words)
    for word in rest:
        if word in ("||", "or"):
            yield terms
            terms = []
        elif word == "{":
            terms.append(list(itertools.takewhile(lambda one: one != "}", rest)))
        else:
            terms.append(word)
    yield terms
