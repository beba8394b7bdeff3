"""`upstream` and what `proxy_pass` leads to: pools, with their policy, time-outs and retries."""

import re

from pyproxy.contrib.converting import Draft, Place, Pool, address_of, host_and_port, said, whole
from pyproxy.contrib.nginx.part import Part
from pyproxy.contrib.nginx.reading import Scope, Statement, seconds
from pyproxy.contrib.nginx.words import SILENT
from pyproxy.readers import Json

STATUSES = re.compile(r"http_([2-5][0-9]{2})")
POLICIES = {
    **{"least_conn": "least_connections", "ip_hash": "ip_hash", "hash": "", "random": ""},
    "least_time": "least_response_time",
}


class Pools(Part):
    """Of the upstreams of ``scope``, http or stream."""

    def __init__(self, draft: Draft, folder: str, scope: Scope) -> None:
        super().__init__(draft, folder)
        self._upstreams = {one.args[0]: one for one in scope.own("upstream") if one.args}
        self._used: set[str] = set()

    def note_unused(self) -> None:
        for name, one in self._upstreams.items():
            if name not in self._used:
                self._draft.note(one.place, f"upstream {name}: nothing is served by it")

    def by_http(self, passing: Statement, scope: Scope, path: str) -> dict[str, Json] | None:
        """Of a location's ``proxy_pass``; None if nobody is left."""
        match = re.fullmatch(r"(https?)://([^/$\s]+)(/[^$]*)?", " ".join(passing.args))
        if not match or match[2].startswith("unix:"):
            self.note(
                passing,
                "who serves must be said by address or upstream, without variables and sockets of "
                "files",
            )
            return None
        scheme, name, uri = match[1], match[2], match[3]
        if uri is not None and uri != path and uri.rstrip("/") != path.rstrip("/"):
            self.note(
                passing, f"targets get the path as it came: let them serve {path} instead of {uri}"
            )
        upstream = self._upstreams.get(name)
        if upstream:
            self._used.add(name)
            pool = self._upstream(upstream, scheme)
        else:
            pool = Pool(self._draft, passing.place)
            host, port = host_and_port(name)
            port = port or (443 if scheme == "https" else 80)
            pool.add(passing.place, address_of(host, port, scheme))
            named = any(one.args[:1] == ["Host"] for one in scope.all("proxy_set_header"))
            if re.search("[a-z]", host) and "." in host and not named:
                self.note(passing, f"the target gets Host as it came, not as {name}")
        if not pool.targets:
            self._draft.note(pool.place, f"no target is left, so {path} isn't served")
            return None
        self._targets_tls(pool, scope, scheme)
        return pool.as_settings(**self._times(scope), **self._retry(scope))

    def by_tcp(self, name: str, place: Place) -> Pool:
        """Of a stream's ``proxy_pass``."""
        if name in self._upstreams:
            self._used.add(name)
            return self._upstream(self._upstreams[name], "tcp")
        pool = Pool(self._draft, place)
        host, port = host_and_port(name)
        pool.add(place, address_of(host, port or 80, "tcp"))
        return pool

    def _times(self, scope: Scope) -> dict[str, Json]:
        found = {}
        for name, key in (
            ("proxy_connect_timeout", "connect"),
            ("proxy_read_timeout", "read"),
            ("proxy_send_timeout", "send"),
        ):
            if (one := scope.get(name)) and (time := self._duration(one)):
                found[key] = time
        return {"timeouts": found} if found else {}

    def _retry(self, scope: Scope) -> dict[str, Json]:
        found: dict[str, Json] = {}
        one = scope.get("proxy_next_upstream")
        if one and "off" in one.args:
            return {"retry": {"attempts": 1}}
        if one:
            statuses = [int(match[1]) for arg in one.args if (match := STATUSES.fullmatch(arg))]
            if statuses:
                found["statuses"] = statuses
            if "non_idempotent" in one.args:
                found["non_idempotent"] = True
            if not {"error", "timeout"} <= set(one.args):
                self.note(one, "errors and time-outs are always a reason to try the next target")
        tries = scope.get("proxy_next_upstream_tries")
        if tries and (count := whole(tries.args[0])):
            found["attempts"] = count
        return {"retry": found} if found else {}

    def _targets_tls(self, pool: Pool, scope: Scope, scheme: str) -> None:
        if scheme != "https":
            return
        verify = scope.get("proxy_ssl_verify")
        pool.say("target_tls.verify", bool(verify and verify.args == ["on"]))
        for name, key in (
            ("proxy_ssl_trusted_certificate", "ca"),
            ("proxy_ssl_certificate", "certificate"),
            ("proxy_ssl_certificate_key", "key"),
        ):
            if one := scope.get(name):
                pool.say(f"target_tls.{key}", self._file(one.args[0]))

    def _upstream(self, block: Statement, scheme: str) -> Pool:
        """``scheme``: of its targets; tcp in a stream."""
        pool = Pool(self._draft, block.place)
        scope = Scope(block.block or [])
        policy: Json = None
        fails: list[int] = []
        sleeps: list[float] = []
        for one in scope.statements:
            if one.name == "server":
                self._target(one, pool, scheme, fails, sleeps)
            elif one.name in POLICIES:
                policy = self._policy(one)
            elif one.name == "sticky":
                self._sticky(one, pool)
            elif one.name == "queue":
                self._queue(one, pool)
            elif one.name == "resolver":
                self._resolver(one)
            elif not SILENT.fullmatch(one.name) and one.name != "keepalive_timeout":
                self.note(one, "pyproxy has nothing like it")
        weighted = pool.weighted
        policy = policy or ("weighted_round_robin" if weighted else "round_robin")
        if policy == "least_connections" and weighted:
            policy = "weighted_least_connections"
        pool.say("policy", policy)
        self._failures(block.place, pool, fails, sleeps)
        return pool

    def _failures(self, place: Place, pool: Pool, fails: list[int], sleeps: list[float]) -> None:
        """What the targets say of them, each for itself, said of the pool."""
        if fails and max(fails) == 0:
            pool.say("max_evicted", 0)
        elif fails and max(fails) > 1:
            pool.say("max_fails", max(fails))
        if len(set(fails)) > 1:
            self._draft.note(place, f"max_fails is one for all targets: {max(fails)} here")
        if len(set(sleeps)) > 1:
            self._draft.note(place, "fail_timeout is one for all targets: the least here")
        if sleeps and (found := said(min(sleeps))) and found != "10s":
            pool.say("sleeping", found)

    def _target(
        self, one: Statement, pool: Pool, scheme: str, fails: list[int], sleeps: list[float]
    ) -> None:
        name, *options = one.args or [""]
        more: dict[str, Json] = {}
        failures, sleep, resolve = 1, 10.0, False
        for option in options:
            key, _, value = option.partition("=")
            number = whole(value)
            if key == "weight" and number:
                more |= {"weight": number} if number != 1 else {}
            elif key == "backup":
                more["backup"] = True
            elif key == "max_conns" and number is not None:
                more |= {"max_connections": number} if number else {}
            elif key == "max_fails" and number is not None:
                failures = number
            elif key == "fail_timeout" and (time := seconds(value)) is not None:
                sleep = time
            elif key == "slow_start" and (growth := said(seconds(value) or 0)):
                more["slow_start"] = growth
            elif key == "resolve":
                resolve = True
            elif key in ("down", "drain"):
                self.note(one, "left out; `pyproxy add` adds it while pyproxy runs")
                return
            elif key != "route":
                self.note(one, f"{option} has nothing like it")
        if name.startswith("unix:"):
            self.note(one, "targets are reached by TCP only: give it a port")
            return
        host, port = host_and_port(name)
        if resolve and scheme == "https":
            self.note(one, "only http targets are found by all addresses of a name")
        elif resolve:
            scheme = "dns"
        if sleep == 0:  # it is asked again at once
            failures = 0
        else:
            sleeps.append(sleep)
        fails.append(failures)
        pool.add(one.place, address_of(host, port or 80, scheme), **more)

    def _policy(self, one: Statement) -> Json:
        if one.name in ("ip_hash", "least_conn", "least_time"):
            return POLICIES[one.name]
        if one.name == "random":
            if one.args[:1] == ["two"] and "least_time" in "".join(one.args):
                self.note(one, "of the two the one with fewer requests under way is taken")
            return "power_of_two_choices" if one.args[:1] == ["two"] else "random"
        name = "consistent_hash" if "consistent" in one.args[1:] else "rendezvous_hash"
        key = self._hash_key(one)
        return {"name": name, "key": key} if key != "client" else {"name": name}

    def _hash_key(self, one: Statement) -> str:
        said_ = one.args[0] if one.args else ""
        if said_ in ("$remote_addr", "$binary_remote_addr"):
            return "client"
        if said_ in ("$request_uri", "$uri"):
            return "uri"
        for prefix, kind in (("$http_", "header"), ("$cookie_", "cookie"), ("$arg_", "query")):
            if re.fullmatch(re.escape(prefix) + r"[A-Za-z0-9_]+", said_):
                name = said_.removeprefix(prefix)
                return f"{kind}:{name.replace('_', '-').title() if kind == 'header' else name}"
        parts = re.findall(r"\$\{?(\w+)\}?", said_)
        if {"request_uri", "uri"} & set(parts) and set(parts) <= {
            *("request_uri", "uri", "scheme", "host", "proxy_host", "http_host")
        }:
            self.note(one, "the key is the uri only")
            return "uri"
        self.note(one, "there is no such key: the client's address is it")
        return "client"

    def _sticky(self, one: Statement, pool: Pool) -> None:
        if one.args[:1] != ["cookie"] or len(one.args) < 2:
            self.note(one, "clients are bound by a cookie of the proxy's own: say sticky.cookie")
            return
        pool.say("sticky.cookie", one.args[1])
        for option in one.args[2:]:
            key, _, value = option.partition("=")
            if key == "expires" and value == "max":
                pool.say("sticky.max_age", "3650d")
            elif key == "expires" and (life := said(seconds(value) or 0)):
                pool.say("sticky.max_age", life)
            elif key == "secure":
                pool.say("sticky.secure", True)
            elif key not in ("httponly", "path", "samesite"):
                self.note(one, f"{option} can't be said of the cookie")

    def _queue(self, one: Statement, pool: Pool) -> None:
        for arg in one.args:
            if (count := whole(arg)) is not None:
                pool.say("queue.size", count)
            elif arg.startswith("timeout=") and (time := said(seconds(arg[8:]) or 0)):
                pool.say("queue.timeout", time)
