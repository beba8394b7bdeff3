"""`backend`, and the servers of `listen`, as pools."""

import itertools
import os
import re

from pyproxy.contrib.converting import Draft, Pool, address_of, said, whole
from pyproxy.contrib.haproxy.part import Files, Part
from pyproxy.contrib.haproxy.reading import Line, Section, address_of_line, options, seconds
from pyproxy.contrib.haproxy.words import SERVER_OPTIONS, SERVER_VALUES
from pyproxy.readers import Json

_HEALTHY = [200, 201, 202, 203, 204, 205, 206, 300, 301, 302, 303, 304, 307, 308]


class Pools(Part):
    """Of the backends among ``sections``."""

    def __init__(self, draft: Draft, files: Files, sections: list[Section]) -> None:
        super().__init__(draft, files)
        self._backends = {one.name: one for one in sections if one.kind in ("backend", "listen")}
        self._used: set[str] = set()

    def note_unused(self) -> None:
        for name, one in self._backends.items():
            if one.kind == "backend" and name not in self._used:
                self._draft.note(one.place, f"backend {name}: nothing is served by it")

    def pool(self, name: str, line: Line, front: Section) -> dict[str, Json] | None:
        section = self._backends.get(name)
        if section is None:
            self.note(line, f"there is no backend {name}")
            return None
        self._used.add(name)
        if section.own("disabled"):
            self.note(line, f"backend {name} is disabled: left out")
            return None
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
            key, options = f"query:{options[0]}", options[1:]
        elif not tcp and match:
            key = f"header:{match[1]}"
        if key not in ("", "uri") and options and line:
            self.note(line, f"its value is the key as it is, without {' '.join(options)}")
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
            self._http_check(asks, section.all("http-check"), pool)
        longest = section.get("timeout", "check")
        if longest and (time := said(seconds(longest.word(2)) or 0)):
            pool.say("health.timeout", time)

    def _http_check(self, asks: Line, more: list[Line], pool: Pool) -> None:
        """``asks`` is the line of `option httpchk`, ``more`` are those of `http-check`."""
        if asks.words[5:] or not re.fullmatch(r"HTTP/1\.[01]|", asks.word(4)):
            self.note(asks, "checks have header fields of their own")
        path = asks.word(3) or (asks.word(2) if asks.word(2).startswith("/") else "")
        method = asks.word(2) if asks.word(3) else "OPTIONS"
        statuses: list[int] = []
        for line in more:
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
        said_ = options([*defaults, *line.words[at + 1 :]], SERVER_VALUES)
        host, port = address_of_line(line.word(at))
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
        sends = 2 if "send-proxy-v2" in said_ else 1 if "send-proxy" in said_ else None
        if pool.targets and pool.said.get("send_proxy") != sends:
            text = "PROXY headers go to all targets or to none: here as the first server says"
            self.note(line, text)
        elif sends:
            pool.say("send_proxy", sends)
        scheme = self._scheme(line, said_, pool, tcp)
        if said_.get("ssl-min-ver", "TLSv1.2") != "TLSv1.2":
            self.note(line, "targets are spoken to by TLS 1.2 or newer")
        if "fastinter" in said_:
            self.note(line, "a target that is in doubt is checked no more often than others")
        if said_.get("proto") == "h2":
            self.note(line, "targets are asked by HTTP/1.1")
        if template and scheme != "https":
            scheme = "dns"
        checked.append("check" in said_)
        if "check" in said_:
            self._check(line, said_, pool)
        if "observe" in said_:
            pool.say("max_fails", whole(said_.get("error-limit", "")) or 10)
        unknown = [name for name in said_ if name not in SERVER_OPTIONS]
        if unknown:
            self.note(line, f"nothing is like {', '.join(unknown)}")
        pool.add(line.place, address_of(host, port, scheme), **_more(said_))

    def _scheme(self, line: Line, said_: dict[str, str], pool: Pool, tcp: bool) -> str:
        """How the server is spoken to; what its TLS needs is said of the pool."""
        if tcp:
            if "ssl" in said_:
                text = "targets of a tcp entry are spoken to as clients speak, without TLS"
                self.note(line, text)
            return "tcp"
        if "ssl" not in said_:
            return "http"
        verify, known = said_.get("verify") != "none", pool.said.get("target_tls")
        if known and known["verify"] != verify:
            self.note(line, "the certificates of all targets are verified, or of none: of all here")
            verify = True
        pool.say("target_tls.verify", verify)
        for key, option, base in (
            ("ca", "ca-file", self._files.ca_base),
            ("certificate", "crt", self._files.crt_base),
        ):
            if name := said_.get(option):
                path = os.path.join(base, name)
                if pool.said["target_tls"].setdefault(key, path) != path:
                    self.note(line, f"there is one {option} for all targets: the first one is it")
        return "https"

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


def _more(said_: dict[str, str]) -> dict[str, Json]:
    """What a target is besides its address."""
    more: dict[str, Json] = {}
    if (weight := whole(said_.get("weight", ""))) and weight != 1:
        more["weight"] = weight
    if "backup" in said_:
        more["backup"] = True
    if most := whole(said_.get("maxconn", "")):
        more["max_connections"] = most
    if time := said(seconds(said_.get("slowstart", "")) or 0):
        more["slow_start"] = time
    return more
