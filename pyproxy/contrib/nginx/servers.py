"""`server`: where it listens, its names, its certificates, and whether it only redirects."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pyproxy.contrib.converting import Place, address_of, host_and_port, reach, whole
from pyproxy.contrib.nginx.part import Part, client_ca
from pyproxy.contrib.nginx.reading import Scope, Statement
from pyproxy.readers import Json


@dataclass
class Address:
    url: str
    place: Place
    secure: bool
    default: bool
    proxy_protocol: bool


@dataclass
class Server:
    """A virtual server: where it listens, whose names it has, and where it sends all of them."""

    scope: Scope
    place: Place
    listens: list[Address]
    names: list[str]
    redirect: tuple[int, str, Place] | None = None
    to_https: bool = False
    others: bool = False  # that are served beside the redirect
    # What no regular expression has a say in: a path, what serves it, and where that is said.
    sure: list[tuple[str, dict[str, Json], Place]] = field(default_factory=list)
    runs: Statement | None = None  # what runs files of its folders, which nobody may read then

    @property
    def local(self) -> bool:
        """Whether only this machine reaches it."""
        return all(reach(one.url)[0] for one in self.listens)

    @property
    def refuses(self) -> bool:
        """Whether nobody is served here, as `return 444` says."""
        return bool(self.scope.own("return")) and not self.redirect

    def leads_home(self, url: str) -> bool:
        """Whether a redirect leads from plain HTTP to the same host with TLS. Where that is served
        too, a route for it would lead in circles, since a route is for all addresses."""
        host = re.match(r"https://([^/:{?#]+|{host})", url)
        if not host or any(one.secure for one in self.listens):
            return False
        return host[1] in ("{host}", *self.names)


class Servers(Part):
    def read(self, block: Statement, http: Scope) -> Server:
        scope = Scope(block.block or [], http)
        self._for_all(scope)
        listens = []
        for one in scope.own("listen"):
            if found := self.address(one, scope):
                listens.append(found)
                if "ipv6only=off" in one.args:  # IPv4 too
                    listens.append(replace(found, url=found.url.replace("[::]", "0.0.0.0")))
        if not scope.own("listen"):
            listens = [Address("http://0.0.0.0:80", block.place, False, False, False)]
        names = []
        for one in scope.own("server_name"):
            for name in one.args:
                if name.startswith("~") or name.endswith("*"):
                    text = "hosts are names, or *. and a name: write out which are meant"
                    self._draft.note(one.place, f"server_name {name}: {text}")
                elif name.startswith("."):
                    names += [name[1:], f"*{name}"]
                elif name not in ("_", "", "$hostname"):
                    names.append(name.lower())
        server = Server(scope, block.place, listens, list(dict.fromkeys(names)))
        self._redirecting(server)
        return server

    def address(self, one: Statement, scope: Scope) -> Address | None:
        where_, *options = one.args or [""]
        if where_.startswith("unix:"):
            self.note(one, "sockets of files aren't listened on: say an address")
            return None
        if re.search("[0-9]-[0-9]+$", where_):
            self.note(one, "ports are listened on one by one: say each")
            return None
        if where_.isdigit():
            host, port = "0.0.0.0", whole(where_)
        else:
            host, port = host_and_port(where_)
            host = "0.0.0.0" if host in ("*", "") else host
        secure = "ssl" in options or any(on.args == ["on"] for on in scope.own("ssl"))
        proxied = "proxy_protocol" in options
        if proxied and not scope.all("set_real_ip_from"):
            self.note(one, "PROXY headers are believed from trusted_proxies only: name them there")
        if "http2" in options and not secure:
            self._draft.say("http2.prior_knowledge", True, one.place)
        if "quic" in options:
            self.note(one, "HTTP/3 isn't spoken")
            return None
        url = address_of(host, port or 80, "https" if secure else "http")
        default = "default_server" in options or "default" in options
        return Address(url, one.place, secure, default, proxied)

    def _redirecting(self, server: Server) -> None:
        """Whether all of it is one redirect."""
        scope = server.scope
        places = scope.own("location")
        found: tuple[int, str, Statement] | None = None
        if not places or scope.own("return"):
            found = next(filter(None, map(self.redirect_of(server), scope.own("return"))), None)
            # As certbot writes it: one `if` for each host, and 404 for the rest.
            found = found or self._by_host(server)
            for one in [] if found else scope.own("rewrite"):
                found = found or self.redirect_of(server)(one)
        elif roots := [one for one in places if one.args == ["/"]]:
            for one in roots[0].block or []:
                found = found or self.redirect_of(server)(one)
            server.others = len(places) > 1
        if not found:
            return
        status, url, at = found
        server.to_https = server.leads_home(url)
        if server.to_https or not server.others:
            server.redirect = (status, url, at.place)

    def _by_host(self, server: Server) -> tuple[int, str, Statement] | None:
        """Where `if`s for each of its hosts send them all."""
        sent = {
            one.args[2]: to
            for one in server.scope.own("if")
            if one.args[:2] == ["$host", "="] and len(one.args) == 3
            for inner in one.block or []
            if inner.name == "return" and (to := self.redirect_of(server)(inner))
        }
        same = {to[:2] for to in sent.values()}
        if not server.names or set(server.names) - set(sent) or len(same) > 1:
            return None
        return sent[server.names[0]]

    def redirect_of(
        self, server: Server
    ) -> Callable[[Statement], tuple[int, str, Statement] | None]:
        """Tells of a ``return`` or ``rewrite`` the status and where to, if it redirects."""

        def found(one: Statement) -> tuple[int, str, Statement] | None:
            args = one.args
            if one.name == "rewrite" and len(args) == 3 and args[2] in ("permanent", "redirect"):
                if args[0] not in ("^", "^(.*)$", "^/(.*)$", "^(.*)", ".*"):
                    return None
                status = "301" if args[2] == "permanent" else "302"
                url = args[1].removesuffix("?")
                group = "/$1" if args[0] == "^/(.*)$" else "$1"
                if url.endswith(group):
                    url = f"{url.removesuffix(group)}$request_uri"
            elif one.name == "return" and len(args) == 1 and not args[0].isdigit():
                status, url = "302", args[0]
            elif one.name == "return" and len(args) == 2 and args[0].startswith("3"):
                status, url = args
            else:
                return None
            if (to := self._location_of(url, server)) and whole(status):
                return int(status), to, one
            self.note(one, "in redirects only $host, $server_name, $scheme and $request_uri count")
            return None

        return found

    def _location_of(self, url: str, server: Server) -> str | None:
        """With {host} and {uri}; None if there is another variable in it."""
        schemes = {one.secure for one in server.listens}
        if len(schemes) == 1:
            url = url.replace("$scheme", "https" if schemes == {True} else "http")
        name = server.names[0] if server.names and server.names[0][0] != "*" else "{host}"
        for variable, value in (
            ("$uri$is_args$args", "{uri}"),
            ("${host}", "{host}"),
            ("$http_host", "{host}"),
            ("$host", "{host}"),
            ("$server_name", name),
            ("$request_uri", "{uri}"),
            ("$uri", "{uri}"),
        ):
            url = re.sub(re.escape(variable) + r"(?![A-Za-z0-9_])", value, url)
        return None if "$" in url else url

    def listen(self, servers: list[Server]) -> None:
        secure = any(one.secure for server in servers for one in server.listens)
        at: dict[str, list[tuple[Server, Address]]] = {}
        for server in servers:
            for one in server.listens:
                at.setdefault(one.url, []).append((server, one))
        for url, who in at.items():
            more: dict[str, Json] = {}
            sending = [one.redirect for one, _ in who if one.redirect and one.to_https]
            serving = [one for one, _ in who if not one.refuses]
            if secure and len(sending) == len(serving) and sending:
                more["redirect"] = "https"
                if sending[0][0] != 302:
                    more["redirect_status"] = sending[0][0]
            elif secure and sending:
                for _, _, place in sending:
                    self._draft.note(
                        place,
                        f"{url} redirects for some hosts only, and routes are for all addresses: "
                        "these hosts are served there; give them an address of their own",
                    )
            if any(one.proxy_protocol for _, one in who):
                more["proxy_protocol"] = True
            self._draft.listen(url, who[0][1].place, **more)
        self.certificates(servers)
        ours = [one for one in servers if any(at.secure for at in one.listens)]
        if asking := [one for one in ours if client_ca(one.scope)]:
            for server in ours:
                if server not in asking:
                    text = "clients need a certificate here, too, as there is one tls.client_ca"
                    self._draft.note(server.place, text)

    def certificates(self, servers: list[Server]) -> None:
        pairs: list[tuple[tuple[str, str], Place]] = []
        for server in servers:
            certificate = server.scope.get("ssl_certificate")
            if not certificate or not any(one.secure for one in server.listens):
                continue
            for other in server.scope.all("ssl_certificate")[:-1]:
                self.note(other, "a server has one certificate: the last one is it")
            key = server.scope.get("ssl_certificate_key") or certificate
            pair = (self._file(certificate.args[0]), self._file(key.args[0]))
            if pair not in [one for one, _ in pairs]:
                pairs.append((pair, certificate.place))
        for (first, second), place in pairs[:1]:
            self._draft.say("tls.certificate", first, place)
            self._draft.say("tls.key", second, place)
        if more := pairs[1:]:
            found = [{"certificate": one, "key": other} for (one, other), _ in more]
            self._draft.say("tls.certificates", found, more[0][1])


def default_of(servers: list[Server]) -> Server | None:
    """The one for hosts that no other has. What only this machine reaches isn't it for all."""
    servers = [one for one in servers if not one.local] or servers
    defaults = [one for one in servers if any(at.default for at in one.listens)]
    taken = {at.url for one in defaults for at in one.listens}
    # Without a name, at an address that has no other default, it is that.
    defaults += [one for one in servers if not one.names and {at.url for at in one.listens} - taken]
    serving = [one for one in defaults if not one.refuses]
    return next(iter(serving or defaults or servers), None)
