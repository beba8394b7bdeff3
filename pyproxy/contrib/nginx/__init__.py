"""nginx's configuration as settings (extra ``convert``: crossplane reads it). Where which directive
is translated:

=============  ==================================================================================
here           `worker_processes`, and which server is for which hosts
`part`         what may stand in any block and is said once: `keepalive_timeout`,
               `client_header_timeout`, `client_max_body_size`, `access_log`, `set_real_ip_from`,
               `resolver`, `ssl_protocols`, `ssl_ciphers`, `ssl_client_certificate`
`servers`      `server`: `listen`, `server_name`, `ssl_certificate`, and `return`, `rewrite` and
               `if` where they send all clients elsewhere
`locations`    `location`: `root`, `alias`, `index`, `expires`, `try_files`, `return`, `rewrite`
`pools`        `proxy_pass`, `proxy_read_timeout` and the like, `proxy_next_upstream`,
               `proxy_ssl_verify`; `upstream`: `server`, `hash`, `least_conn`, `sticky`, `queue`
`streams`      `stream`: `ssl_preread`, `proxy_timeout`, `proxy_protocol`
`words`        what is passed over, and what is told of what has no equivalent
=============  ==================================================================================

`reading` makes statements of files.
"""

import os
import re

from pyproxy.contrib.converting import (
    Converted,
    ConvertError,
    Draft,
    Place,
    note_elsewhere,
    reach,
    whole,
)
from pyproxy.contrib.nginx.locations import Locations
from pyproxy.contrib.nginx.part import Part
from pyproxy.contrib.nginx.pools import Pools
from pyproxy.contrib.nginx.reading import Scope, Statement, statements, told
from pyproxy.contrib.nginx.servers import Server, Servers, default_of
from pyproxy.contrib.nginx.streams import Streams
from pyproxy.contrib.nginx.words import ADVICE, EVERYWHERE


def convert(path: str) -> Converted:
    """What the file, with those that it includes, says. Raises ``ConvertError``."""
    try:
        import crossplane
    except ImportError:
        raise ConvertError(
            "reading nginx's files needs the package crossplane: pip install 'pyproxy-lb[convert]'"
        ) from None
    payload = crossplane.parse(path, check_ctx=False)
    draft = Draft(Place(path, 1))
    if not payload["config"][0]["parsed"] and payload["errors"]:
        raise ConvertError("\n".join(told(one) for one in payload["errors"]))
    for error in payload["errors"]:
        draft.note(
            Place(error["file"], error["line"] or 1),
            f"left out, as it can't be read: {told(error)}",
        )
    _Converter(draft, os.path.dirname(path)).convert(list(statements(draft, payload["config"])))
    return draft.finish()


class _Converter(Part):
    def convert(self, statements: list[Statement]) -> None:
        top = Scope(statements)
        self._others(top, {"http", "stream", "server", "upstream", "worker_processes", "resolver"})
        for one in top.own("worker_processes"):
            count = one.args[0] if one.args else ""
            if count == "auto" or (whole(count) or 0) > 1:
                self._draft.say("workers", whole(count) or "auto", one.place)
        blocks = [one.block for one in top.own("http") if one.block]
        if loose := top.own("server", "upstream"):  # of a file that another one includes
            blocks.append(statements if not blocks else loose)
        for block in blocks:
            self._http(Scope(block))
        for one in top.own("stream"):
            Streams(self._draft, self._folder).convert(Scope(one.block or []))

    def _http(self, http: Scope) -> None:
        self._others(http, EVERYWHERE | {"server", "upstream", "map", "worker_processes", "stream"})
        for one in http.own("map"):
            if one.args[:1] != ["$http_upgrade"]:
                self.note(one, ADVICE["map"])
        self._for_all(http)
        reader = Servers(self._draft, self._folder)
        servers = [reader.read(one, http) for one in http.own("server")]
        reader.listen(servers)
        secure = any(one.secure for server in servers for one in server.listens)
        pools = Pools(self._draft, self._folder, http)
        locations = Locations(self._draft, self._folder, reader, pools, secure)
        sent = [one for one in servers if one.redirect and one.to_https and secure]
        serving = [one for one in servers if one not in sent]
        default = default_of(serving)
        note_elsewhere(
            self._draft,
            [(one.place, [at.url for at in one.listens]) for one in serving if not one.refuses],
        )
        others = [one for one in serving if one is not default]
        wild = any(name.startswith("*") for one in others for name in one.names)
        redirecting = [one for one in serving if one.redirect]
        serving = [one for one in serving if not one.redirect]
        for server in serving:
            hosts: list[str | None] = [*server.names]
            if server is default:
                hosts = [None, *(server.names if wild else [])]
            elif not hosts and not server.refuses:
                self._draft.note(server.place, "no host leads to this server: give it a name")
            if server.refuses:
                hosts = self._refused(server, hosts, servers)
            locations.serve(server, hosts)
        for server in redirecting:
            assert server.redirect
            status, url, place = server.redirect
            if server is default:
                hosts = [None, *(server.names if wild else [])]
            else:
                hosts = [*server.names]
                if not hosts:
                    self._draft.note(server.place, "no host leads to this server: give it a name")
            for host in hosts:
                what = {"redirect": url} | ({"redirect_status": status} if status != 302 else {})
                self._draft.route(host, "/", what, place)
        for server in sent:
            assert server.redirect
            self._sent(server, *server.redirect)
            if server.others:
                locations.serve(server, [*server.names] or [None], redirected=True)
        pools.note_unused()

    def _refused(
        self, server: Server, hosts: list[str | None], servers: list[Server]
    ) -> list[str | None]:
        """Whom it refuses here, too: not those whom others serve by name elsewhere."""
        serving = [one for one in servers if not one.refuses]
        served = {name for one in serving for name in one.names}
        elsewhere = {reach(at.url) for one in serving for at in one.listens}
        if elsewhere - {reach(at.url) for at in server.listens}:
            self._draft.note(
                server.place,
                "a route is for all listening addresses: whom this server refuses is refused at "
                "all of them, or, if another one serves that host, at none",
            )
        return [host for host in hosts if host not in served]

    def _sent(self, server: Server, status: int, url: str, place: Place) -> None:
        """One whose clients are sent to https, by the listening address."""
        if not re.fullmatch(r"https://{host}(:\d+)?{uri}", url) and server.names != [
            url.removeprefix("https://").removesuffix("{uri}")
        ]:
            self._draft.note(place, "clients are sent to what they asked for, at https")
        if server.others:
            self._draft.note(place, "clients are sent to https for all paths, and served there")
