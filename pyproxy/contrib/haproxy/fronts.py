"""`frontend` and `listen`: `bind`, `use_backend`, `redirect`, `http-request deny`, `stats` and
time-outs of clients."""

import re

from pyproxy.contrib.converting import WHOLE_SEGMENTS, Draft, address_of, said, whole
from pyproxy.contrib.haproxy.conditions import Conditions, Matcher, both, covers
from pyproxy.contrib.haproxy.part import Files, Part
from pyproxy.contrib.haproxy.pools import Pools
from pyproxy.contrib.haproxy.reading import Line, Section, seconds, speaks_tls
from pyproxy.contrib.haproxy.words import ADVICE
from pyproxy.readers import Json, is_loopback

_ON_LOOPBACK = "http://127.0.0.1:8404"


class Fronts(Part):
    def __init__(self, draft: Draft, files: Files, pools: Pools) -> None:
        super().__init__(draft, files)
        self._pools = pools
        self._conditions = Conditions(draft, files)

    def serve(self, section: Section, secure: bool) -> list[str]:
        """The addresses at which it serves."""
        self._times_of_clients(section)
        limit = section.get("maxconn")
        if limit and (count := whole(limit.word(1))):
            self._draft.say("limits.connections", count, limit.place)
        matchers = self._conditions.acls(section)
        to_https = self._to_https(section, matchers)
        urls = []
        for line, host, port in self._binds(section):
            more: dict[str, Json] = {}
            if "accept-proxy" in line.words:
                more["proxy_protocol"] = True
                text = "PROXY headers are believed from trusted_proxies only: name them there"
                self.note(line, text)
            if speaks_tls(line):
                self._bind_tls(line, line.words[2:])
            elif to_https and secure:
                more["redirect"] = "https"
                if to_https != 302:
                    more["redirect_status"] = to_https
            url = address_of(host, port, "https" if speaks_tls(line) else "http")
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
            self._pool_at(Matcher(), default.word(1), default, section)
        elif section.own("server") or section.own("server-template"):
            self._pool_at(Matcher(), section.name, Line(["listen"], section.place), section)
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
        chosen = [
            (line, self._conditions.condition(line, line.words[2:], known))
            for line in section.own("use_backend")
        ]
        narrower = [Matcher(), *(one for _, found in chosen for one in found or [])]
        seen: list[Matcher] = []
        denied: list[Matcher] = []
        allowed: list[list[Matcher] | None] = []  # before it is denied; None: who knows
        for line in section.lines:  # which HAProxy heeds first, wherever they stand
            words = line.words[1:] if line.name == "http-request" else line.words
            if words[:1] == ["redirect"] and words[1:3] != ["scheme", "https"]:
                seen += self._redirect(line, words, known)
            elif line.words[:2] == ["http-request", "deny"]:
                denied += self._deny(line, known, narrower, allowed)
            elif line.words[:2] == ["http-request", "allow"]:
                allowed.append(self._conditions.condition(line, line.words[2:], known))
        for line, wanted in chosen:
            if "%[" in line.word(1) or wanted is None or any(one.server_name for one in wanted):
                text = "routes go by host, path and ending only: say these by another proxy"
                self.note(line, text)
                continue
            if not wanted:
                self.note(line, "no request is for all of that: left out")
            for one in wanted:
                if any(covers(first, one) for first in denied + seen):
                    self.note(line, "a line above matches all that: left out")
                    continue
                self._order(line, one, seen)
                seen.append(one)
                self._pool_at(one, line.word(1), line, section)

    def _order(self, line: Line, one: Matcher, seen: list[Matcher]) -> None:
        """What goes by the first match there goes by the best one here."""
        if one.host and any((first.path or first.endings) and not first.host for first in seen):
            self.note(line, "a route for this host goes before those for any host")
        if one.endings and any(
            first.path and not first.endings and first.host == one.host for first in seen
        ):
            self.note(line, "a route for endings goes before those for paths")

    def _redirect(
        self, line: Line, words: list[str], known: dict[str, list[Matcher] | None]
    ) -> list[Matcher]:
        """What it is for."""
        at = next((at for at, word in enumerate(words) if word in ("if", "unless")), len(words))
        options = words[1:at]
        wanted = self._conditions.condition(line, words[at:], known)
        if (
            not wanted
            or any(one.server_name for one in wanted)
            or options[:1] not in (["location"], ["prefix"])
            or len(options) < 2
        ):
            self.note(line, "redirects go by host, path and ending only, to an address")
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
            self._draft.route(one.host, one.path or "/", what, line.place, one.endings)
        return wanted

    def _deny(
        self,
        line: Line,
        known: dict[str, list[Matcher] | None],
        narrower: list[Matcher],
        allowed: list[list[Matcher] | None],
    ) -> list[Matcher]:
        """What it is for. ``narrower``: what else is matched, of which a part may be denied;
        ``allowed``: what lines above allow (None: that can't be told)."""
        at = next((at for at, word in enumerate(line.words) if word in ("if", "unless")), None)
        options = line.words[2:at]
        wanted = self._conditions.condition(line, line.words[at:] if at else [], known)
        if not wanted or any(one.server_name for one in wanted):
            self.note(line, ADVICE["http-request deny"])
            return []
        for some in allowed:
            if some is None or any(both(one, other) for one in some for other in wanted):
                self.note(line, "a line above allows some of it: nobody is turned away")
                return []
        status = 403
        if options[:1] in (["deny_status"], ["status"]) and len(options) > 1:
            said_ = whole(options[1]) or 0
            status, options = said_ if 400 <= said_ <= 599 else 403, options[2:]
        if options:
            self.note(line, "its status is said, nothing else of the answer")
        for one in wanted:
            if one.path and not one.path.endswith("/"):
                self.note(line, WHOLE_SEGMENTS)
            for part in [found for other in narrower if (found := both(one, other))]:
                self._draft.route(
                    part.host, part.path or "/", {"deny": status}, line.place, part.endings
                )
        return wanted

    def _pool_at(self, one: Matcher, name: str, line: Line, section: Section) -> None:
        if pool := self._pools.pool(name, line, section):
            self._draft.route(one.host, one.path or "/", pool, line.place, one.endings)

    def relay(self, section: Section) -> None:
        known = self._conditions.acls(section)
        for line, host, port in self._binds(section):
            entry: dict[str, Json] = {"listen": address_of(host, port, "").removeprefix("://")}
            if "accept-proxy" in line.words:
                entry["proxy_protocol"] = True
                text = "PROXY headers are believed from trusted_proxies only: name them there"
                self.note(line, text)
            if speaks_tls(line):
                entry["tls"] = True
                self._bind_tls(line, line.words[2:])
            for one in section.own("use_backend"):
                wanted = self._conditions.condition(one, one.words[2:], known)
                if not wanted or any(
                    not one_.server_name or one_.host or one_.path or one_.endings
                    for one_ in wanted
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
        if pool := self._pools.pool(name, line, section):
            self._draft.tcp(entry | pool, line.place)

    def stats(self, section: Section) -> None:
        """The page of its own that stats are becomes the admin API, with its page."""
        line = next(iter(section.own("stats")))
        pages = section.get("stats", "uri")
        login = section.get("stats", "auth")
        for one in section.own("stats", "auth"):
            if one is not login:
                self.note(one, "one may log in: the last one")
        for one in section.own("stats", "http-request") + section.own("stats", "scope"):
            self.note(one, "who may log in (admin.user) may see and change all")
        changes = section.all("stats", "admin")
        if any(one.words[2:] != ["if", "TRUE"] for one in changes) or not changes:
            text = "who may see the dashboard may change targets, too, without stats admin"
            self.note(changes[0] if changes else line, text)
        binds = list(self._binds(section))
        alone = not (section.own("server") or section.all("default_backend"))
        url = _ON_LOOPBACK
        if alone and binds:
            bind, host, port = binds[0]
            if speaks_tls(bind) and not is_loopback(host):
                text = "the dashboard doesn't speak TLS: it is at 127.0.0.1, for a TLS tunnel"
                self.note(bind, text)
                host = "127.0.0.1"
            elif not (login or is_loopback(host)):
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
