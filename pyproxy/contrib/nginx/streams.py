"""`stream`: connections that are relayed as they are."""

import copy

from pyproxy.contrib.nginx.part import Part
from pyproxy.contrib.nginx.pools import Pools
from pyproxy.contrib.nginx.reading import Scope, Statement
from pyproxy.contrib.nginx.servers import Server, Servers
from pyproxy.contrib.nginx.words import ADVICE, OF_STREAMS
from pyproxy.readers import Json


class Streams(Part):
    def convert(self, stream: Scope) -> None:
        self._others(stream, OF_STREAMS | {"server", "upstream", "map"})
        self._trust(stream)
        self._tls(stream)
        pools = Pools(self._draft, self._folder, stream)
        names = {one.args[1]: one for one in stream.own("map") if _by_server_name(one)}
        for one in stream.own("map"):
            if not _by_server_name(one):
                self.note(one, ADVICE["map"])
        for block in stream.own("server"):
            self._relay(Scope(block.block or [], stream), block, names, pools)
        pools.note_unused()

    def _relay(
        self, scope: Scope, block: Statement, names: dict[str, Statement], pools: Pools
    ) -> None:
        servers = Servers(self._draft, self._folder)
        if (log := scope.get("access_log")) and log.args != ["off"]:
            self.note(log, "the access log is of requests, not of what is relayed")
        self._others(scope, OF_STREAMS)
        self._trust(scope)
        self._tls(scope)
        passing = scope.get("proxy_pass")
        if not passing or not passing.args:
            self._draft.note(block.place, "nothing is said of who serves here: left out")
            return
        for one in scope.own("listen"):
            address = servers.address(one, scope)
            if "udp" in one.args:
                self.note(one, "UDP isn't relayed")
                continue
            if not address:
                continue
            entry: dict[str, Json] = {"listen": address.url.partition("://")[2]}
            if address.secure:
                entry["tls"] = True
                servers.certificates([Server(scope, block.place, [address], [])])
            if address.proxy_protocol:
                entry["proxy_protocol"] = True
            if chosen := names.get(passing.args[0]):
                for line in chosen.block or []:
                    if line.name.startswith("~") or line.name.endswith("*"):
                        self.note(line, "servers' names are names, or *. and a name")
                        continue
                    to = Statement("proxy_pass", line.args, line.place)
                    for name in _asked(line.name):
                        said_ = {"server_name": name} if name else {}
                        self._entry(entry | said_, to, scope, pools)
            else:
                self._entry(entry, passing, scope, pools)

    def _entry(
        self, entry: dict[str, Json], passing: Statement, scope: Scope, pools: Pools
    ) -> None:
        name = passing.args[0] if passing.args else ""
        if "$" in name or name.startswith("unix:") or not name:
            self.note(passing, "who serves must be said by address or upstream")
            return
        pool = pools.by_tcp(name, passing.place)
        times: dict[str, Json] = {}
        for directive, key in (("proxy_connect_timeout", "connect"), ("proxy_timeout", "idle")):
            if (one := scope.get(directive)) and (time := self._duration(one)):
                times[key] = time
        send = scope.get("proxy_protocol")
        if send and send.args == ["on"]:
            entry = entry | {"send_proxy": 1}
        next_ = scope.get("proxy_next_upstream")
        if pool.targets:
            sections = {"timeouts": times} if times else {}
            if next_ and next_.args == ["off"]:
                sections["retry"] = {"attempts": 1}
            entry = entry | pool.as_settings(**sections)
            self._draft.tcp(copy.deepcopy(entry), passing.place)


def _asked(name: str) -> list[str]:
    """The names that a line of a map by names is for; "" for all others."""
    if name in ("hostnames", "volatile"):
        return []
    if name == "default":
        return [""]
    return [name[1:].lower(), f"*{name}".lower()] if name.startswith(".") else [name.lower()]


def _by_server_name(one: Statement) -> bool:
    return len(one.args) == 2 and one.args[0] == "$ssl_preread_server_name"
