"""nginx's configuration as settings (extra ``convert``: crossplane reads it)."""

import copy
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
    where,
    whole,
)
from pyproxy.readers import Json

# What pyproxy does anyway, does in another way, or has no need of.
_SILENT = re.compile(
    r"""absolute_redirect | access_log | aio\w* | alias | charset\w* | client_body_(?!in_file)\w*
    | client_header_buffer_size | connection_pool_size | daemon | default_type | directio\w* | env
    | error_log | etag | events | expires | fastopen
    | gzip_(?!static)\w+ | http2_\w+ | ignore_invalid_headers | index
    | keepalive(?!_timeout)\w* | large_client_header_buffers | lingering_\w+
    | load_module | log_\w+ | map_hash\w+ | master_process | merge_slashes
    | multi_accept | open_file_cache\w* | output_buffers | pcre_jit | pid | port_in_redirect
    | postpone_output | preread_\w+
    | proxy_(buffer\w* | busy_\w+ | headers_hash\w+ | http_version | max_temp_file_size
      | request_buffering | socket_keepalive | ssl_server_name | ssl_session_reuse | temp_\w+)
    | real_ip_recursive | reset_timedout_connection | resolver_timeout | root | sendfile\w*
    | server_name_in_redirect | server_names_hash\w+ | server_tokens | state
    | ssl_(buffer_size | early_data | ecdh_curve | prefer_server_ciphers
      | session_\w+)
    | tcp_no\w+ | thread_pool | timer_resolution | types\w* | use | user | variables_hash\w+
    | worker_(?!processes)\w+ | zone""",
    re.VERBOSE,
)

# The first that a name begins with.
_ADVICE = {
    "gzip": "answers are passed on as they are: compress in the application",
    "brotli": "answers are passed on as they are: compress in the application",
    "proxy_cache": "nothing is cached: put a cache before or behind pyproxy",
    "proxy_no_cache": "nothing is cached: put a cache before or behind pyproxy",
    "proxy_hide_header": "answers are passed on as they are: leave it out in the application",
    "proxy_pass_header": "answers are passed on as they are",
    "proxy_cookie": "answers are passed on as they are: set the cookie right in the application",
    "proxy_redirect": "Location is passed on as the target says it: let the application make it "
    "from X-Forwarded-Host and X-Forwarded-Proto",
    "proxy_intercept_errors": "answers of targets are passed on as they are",
    "error_page": "answers of targets are passed on as they are; unavailable.body is what is said "
    "when no target is left",
    "add_header": "fields can't be added to answers: let the application do it",
    "more_": "fields can't be changed: let the application do it",
    "proxy_set_header": "fields can't be set for targets: pyproxy sends Host as it came, X-Real-IP "
    "and X-Forwarded-For, -Proto and -Host",
    "proxy_pass_request": "requests are passed on as they are",
    "proxy_set_body": "requests are passed on as they are",
    "proxy_method": "requests are passed on as they are",
    "proxy_bind": "connections to targets are from the address that the system chooses",
    "proxy_next_upstream_timeout": "tries are bounded by retry.attempts and time-outs only",
    "limit_except": "routes are for all methods: let the application refuse some",
    "limit_": "nothing limits who asks how often: put what does so before pyproxy "
    "(limits.connections is for all clients together)",
    "allow": "everybody may ask: close the port to others by a firewall",
    "deny": "everybody may ask: close the port to others by a firewall",
    "auth_": "nobody is asked who they are: let the application do it",
    "satisfy": "nobody is asked who they are: let the application do it",
    "fastcgi": "targets speak HTTP: put a server that does so before the application",
    "uwsgi": "targets speak HTTP: give uWSGI an http-socket",
    "scgi": "targets speak HTTP: put a server that does so before the application",
    "grpc": "targets are asked by HTTP/1.1, which gRPC isn't: relay it by a tcp entry",
    "memcached": "targets speak HTTP",
    "break": "targets get the path as it came: let the application do it",
    "rewrite": "targets get the path as it came: let the application do it",
    "try_files": "a folder's files are served or answered with 404: give what is to be asked for "
    "the rest a route of its own",
    "autoindex": "folders aren't listed",
    "sub_filter": "answers are passed on as they are",
    "mirror": "requests aren't copied",
    "split_clients": "weights share requests among targets",
    "if": "routes go by host, path and ending only: let the application decide",
    "set": "there are no variables",
    "map": "there are no variables",
    "geo": "there are no variables",
    "ssl_dhparam": "it isn't used: clients negotiate elliptic curves",
    "ssl_stapling": "OCSP isn't stapled",
    "ssl_password_file": "keys are read without a password: decrypt it",
    "ssl_crl": "certificates of clients are checked without a list of revoked ones",
    "ssl_trusted_certificate": "it is not needed: clients are checked by tls.client_ca only",
    "ssl_verify_depth": "it is OpenSSL's",
    "proxy_ssl": "connections to targets are TLS by https:// and target_tls only, and not in tcp",
    "health_check": "say health.interval and what goes with it",
    "stub_status": "the admin API tells more: say admin.listen",
    "status": "the admin API tells more: say admin.listen",
    "api": "there is another admin API: say admin.listen",
    "send_timeout": "proxy_send_timeout says it for both sides (timeouts.send)",
    "lua": "there is no Lua; a policy may be a Python function",
    "js_": "there is no JavaScript; a policy may be a Python function",
    "ntlm": "connections to targets are shared by clients",
    "mail": "mail isn't proxied, but for connections as they are: tcp",
}

_TIME = {
    **{"ms": 0.001, "s": 1, "": 1, "m": 60, "h": 3600, "d": 86400},
    **{"w": 604800, "M": 2592000, "y": 31536000},
}
_OLD_TLS = {"SSLv2", "SSLv3", "TLSv1", "TLSv1.1"}
_STATUSES = re.compile(r"http_([2-5][0-9]{2})")
_ENDINGS = re.compile(r"\\\.(?:\((?:\?:)?([A-Za-z0-9_|?-]+)\)|([A-Za-z0-9_-]+))\$")
_PLAIN_REGEX = re.compile(r"\^(/(?:[A-Za-z0-9_/-]|\\[./-])*)(?:\.\*)?")
# Fields that say what pyproxy says anyway.
_OURS = {
    "host": ("$host", "$http_host", "$host:$server_port"),
    "x-real-ip": ("$remote_addr", "$proxy_protocol_addr"),
    "x-forwarded-for": ("$proxy_add_x_forwarded_for", "$remote_addr", "$proxy_protocol_addr"),
    "x-forwarded-proto": ("$scheme",),
    "x-forwarded-host": ("$host", "$http_host"),
    "upgrade": ("$http_upgrade",),
    "connection": ("upgrade", "$connection_upgrade", "close", ""),
    "x-request-id": ("$request_id", "$http_x_request_id"),
}


@dataclass
class Statement:
    name: str
    args: list[str]
    place: Place
    block: "list[Statement] | None" = None

    def __str__(self) -> str:
        return " ".join([self.name, *self.args])


class Scope:
    """What is said in a block, over what is said around it."""

    def __init__(self, statements: Sequence[Statement], around: "Scope | None" = None) -> None:
        self.statements = statements
        self._around = around

    def own(self, *names: str) -> list[Statement]:
        return [one for one in self.statements if one.name in names]

    def all(self, name: str) -> list[Statement]:
        return self.own(name) or (self._around.all(name) if self._around else [])

    def get(self, name: str) -> Statement | None:
        found = self.all(name)
        return found[-1] if found else None


def seconds(text: str) -> float | None:
    """``1m30s``; a number is of seconds."""
    found = re.findall(r"([0-9]{1,12})(ms|[smhdwMy]|)\s*", text)
    if not found or "".join(number + unit for number, unit in found) != text.replace(" ", ""):
        return None
    return sum(int(number) * _TIME[unit] for number, unit in found)


def size(text: str) -> int | None:
    """``10m``, in bytes."""
    match = re.fullmatch(r"([0-9]{1,12})([kKmMgG]?)", text)
    return int(match[1]) * 1024 ** " kmg".index(match[2].lower() or " ") if match else None


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
        raise ConvertError("\n".join(_told(one) for one in payload["errors"]))
    for error in payload["errors"]:
        draft.note(
            Place(error["file"], error["line"] or 1),
            f"left out, as it can't be read: {_told(error)}",
        )
    _Converter(draft, os.path.dirname(path)).convert(list(_statements(draft, payload["config"])))
    return draft.finish()


def _told(error: dict[str, Any]) -> str:
    text = error["error"] or "unexpected end of file"
    return text if error["file"] in text else f"{text} in {error['file']}"


def _statements(
    draft: Draft, config: list[Any], at: int = 0, above: tuple[int, ...] = ()
) -> Iterator[Statement]:
    file = config[at]["file"]

    def of(parsed: list[Any]) -> Iterator[Statement]:
        for one in parsed:
            if one["directive"] == "include":
                for number in one.get("includes", ()):
                    if number not in (*above, at):
                        yield from _statements(draft, config, number, (*above, at))
                continue
            place = Place(file, one["line"])
            block = list(of(one["block"])) if "block" in one else None
            if one["args"] or block is not None or one["directive"] in _BARE:
                yield Statement(one["directive"], one["args"], place, block)
            else:
                draft.note(place, f"{one['directive']}: it needs a value")

    return of(config[at]["parsed"])


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
    runs: Statement | None = None  # what runs files of its folders, which nobody may read then

    def leads_home(self, url: str) -> bool:
        """Whether a redirect leads from plain HTTP to the same host with TLS. Where that is served
        too, a route for it would lead in circles, since a route is for all addresses."""
        host = re.match(r"https://([^/:{?#]+|{host})", url)
        if not host or any(one.secure for one in self.listens):
            return False
        return host[1] in ("{host}", *self.names)


class _Converter:
    def __init__(self, draft: Draft, folder: str) -> None:
        self._draft = draft
        self._folder = folder
        self._upstreams: dict[str, Statement] = {}
        self._used: set[str] = set()
        self._secure = False  # whether some address speaks TLS

    def note(self, one: Statement, text: str) -> None:
        self._draft.note(
            one.place, f"{one}: {text}" if len(str(one)) < 80 else f"{one.name}: {text}"
        )

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
            self._stream(Scope(one.block or []))

    def _others(self, scope: Scope, handled: set[str]) -> None:
        """Notes what nothing is made of."""
        for one in scope.statements:
            if not (one.name in handled or _SILENT.fullmatch(one.name) or _ours(one, scope)):
                known = [name for name in _ADVICE if one.name.startswith(name)]
                if one.name == "try_files" and _fallback(scope):
                    self.note(one, "files aren't looked for first: give them a route of their own")
                    continue
                self.note(one, _ADVICE[known[0]] if known else "pyproxy has nothing like it")

    # Servers

    def _http(self, http: Scope) -> None:
        self._others(
            http, _EVERYWHERE | {"server", "upstream", "map", "worker_processes", "stream"}
        )
        for one in http.own("map"):
            if one.args[:1] != ["$http_upgrade"]:
                self.note(one, _ADVICE["map"])
        self._upstreams = {one.args[0]: one for one in http.own("upstream") if one.args}
        self._used = set()
        self._for_all(http)
        servers = [self._server(one, http) for one in http.own("server")]
        self._listen(servers)
        self._secure = any(one.secure for server in servers for one in server.listens)
        sent = [one for one in servers if one.redirect and one.to_https and self._secure]
        serving = [one for one in servers if one not in sent]
        default = _default(serving)
        note_elsewhere(
            self._draft, [(one.place, [at.url for at in one.listens]) for one in serving]
        )
        others = [one for one in serving if one is not default]
        wild = any(name.startswith("*") for one in others for name in one.names)
        redirecting = [one for one in serving if one.redirect]
        serving = [one for one in serving if not one.redirect]
        for server in serving:
            hosts: list[str | None] = [*server.names]
            if server is default:
                hosts = [None, *(server.names if wild else [])]
            elif not hosts:
                self._draft.note(server.place, "no host leads to this server: give it a name")
            self._serve(server, hosts)
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
        for name, one in self._upstreams.items():
            if name not in self._used:
                self._draft.note(one.place, f"upstream {name}: nothing is served by it")

    def _sent(self, server: Server, status: int, url: str, place: Place) -> None:
        """One whose clients are sent to https, by the listening address."""
        if not re.fullmatch(r"https://{host}(:\d+)?{uri}", url) and server.names != [
            url.removeprefix("https://").removesuffix("{uri}")
        ]:
            self._draft.note(place, "clients are sent to what they asked for, at https")
        if server.others:
            self._draft.note(place, "clients are sent to https for all paths, and served there")
            self._serve(server, [*server.names] or [None], redirected=True)

    def _for_all(self, scope: Scope) -> None:
        """What pyproxy says once, wherever it stands."""
        for one in scope.statements:
            value = one.args[0] if one.args else ""
            if one.name in ("keepalive_timeout", "client_header_timeout"):
                key = "keep_alive" if one.name == "keepalive_timeout" else "header"
                if (found := self._duration(one)) is not None:
                    self._draft.say(f"timeouts.{key}", found, one.place)
            elif one.name == "client_max_body_size":
                if (most := size(value)) is None:
                    self.note(one, "this isn't a size")
                else:
                    self._draft.say("limits.body", _size(most) if most else None, one.place)
            elif one.name == "access_log" and value not in ("off", ""):
                if value.startswith("syslog:") or "$" in value:
                    self.note(one, "access_log is a file, or - for standard output")
                else:
                    out = "-" if value == "/dev/stdout" else value
                    self._draft.say("access_log", out, one.place)
            elif one.name == "set_real_ip_from":
                self._trust(scope)
            elif one.name == "real_ip_header":
                if value.lower() not in ("x-forwarded-for", "proxy_protocol", "forwarded"):
                    self.note(one, "clients are told by X-Forwarded-For, Forwarded or PROXY")
            elif one.name == "resolver":
                self._resolver(one)
        self._tls(scope)

    def _trust(self, scope: Scope) -> None:
        found = [
            one for one in scope.own("set_real_ip_from") if one.args and one.args[0] != "unix:"
        ]
        if found:
            self._draft.say("trusted_proxies", [one.args[0] for one in found], found[0].place)

    def _resolver(self, one: Statement) -> None:
        for arg in one.args:
            if arg.startswith("valid=") and (found := said(seconds(arg[6:]) or 0)):
                self._draft.say("resolving", found, one.place)
        self.note(one, "names are looked up as the system does it: see its resolv.conf")

    def _tls(self, scope: Scope) -> None:
        for one in scope.own("ssl_protocols"):
            new = [arg for arg in one.args if arg not in _OLD_TLS]
            if old := [arg for arg in one.args if arg in _OLD_TLS]:
                self.note(one, f"{' and '.join(old)} are not spoken, 1.2 is the oldest TLS that is")
            if new == ["TLSv1.2"]:
                self.note(one, "TLS 1.3 is spoken too")
            if new:
                oldest = "1.2" if "TLSv1.2" in new else "1.3"
                self._draft.say("tls.min_version", oldest, one.place)
        for one in scope.own("ssl_ciphers"):
            self._draft.say("tls.ciphers", ":".join(one.args), one.place)
        verify = scope.get("ssl_verify_client")
        for one in scope.own("ssl_client_certificate"):
            if verify and verify.args == ["on"]:
                self._draft.say("tls.client_ca", self._file(one.args[0]), one.place)
        for one in scope.own("ssl_verify_client"):
            if one.args not in (["on"], ["off"]):
                self.note(
                    one, "certificates of clients are needed (tls.client_ca) or not asked for"
                )

    def _certificates(self, servers: list[Server]) -> None:
        pairs: list[tuple[tuple[str, str], Place]] = []
        for server in servers:
            certificate = server.scope.get("ssl_certificate")
            if not certificate or not any(one.secure for one in server.listens):
                continue
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

    def _file(self, name: str) -> str:
        return name if os.path.isabs(name) else os.path.join(self._folder, name)

    def _server(self, block: Statement, http: Scope) -> Server:
        scope = Scope(block.block or [], http)
        self._for_all(scope)
        listens = []
        for one in scope.own("listen"):
            if found := self._address(one, scope):
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

    def _address(self, one: Statement, scope: Scope) -> Address | None:
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
            found = next(filter(None, map(self._redirect_of(server), scope.own("return"))), None)
            # As certbot writes it: one `if` for each host, and 404 for the rest.
            for one in [] if found else scope.own("if"):
                for inner in one.block or []:
                    if inner.name == "return" and (one.args[:1] == ["$host"]):
                        found = found or self._redirect_of(server)(inner)
            for one in [] if found else scope.own("rewrite"):
                found = found or self._redirect_of(server)(one)
        elif roots := [one for one in places if one.args == ["/"]]:
            for one in roots[0].block or []:
                found = found or self._redirect_of(server)(one)
            server.others = len(places) > 1
        if not found:
            return
        status, url, at = found
        server.to_https = server.leads_home(url)
        if server.to_https or not server.others:
            server.redirect = (status, url, at.place)

    def _redirect_of(self, server: Server) -> Any:
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

    def _listen(self, servers: list[Server]) -> None:
        secure = any(one.secure for server in servers for one in server.listens)
        at: dict[str, list[tuple[Server, Address]]] = {}
        for server in servers:
            for one in server.listens:
                at.setdefault(one.url, []).append((server, one))
        for url, who in at.items():
            more: dict[str, Json] = {}
            sending = [one.redirect for one, _ in who if one.redirect and one.to_https]
            if secure and len(sending) == len(who) and sending:
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
        self._certificates(servers)

    # Locations

    def _serve(self, server: Server, hosts: list[str | None], *, redirected: bool = False) -> None:
        """``redirected``: without what is for all paths."""
        scope = server.scope
        self._others(scope, _EVERYWHERE | _OF_SERVERS)
        for one in scope.own("return", "rewrite", "if"):
            text = "only redirects can be said" if one.name == "return" else _ADVICE[one.name]
            self.note(one, text)
        paths = []
        locations = list(_flat(scope))
        regexes = [found for found in locations if found[0].args[:1] in (["~"], ["~*"])]
        running = ("fastcgi_pass", "uwsgi_pass", "scgi_pass")
        server.runs = next((one for one, inner in regexes if inner.own(*running)), None)
        named = {one.args[0]: inner for one, inner in locations if one.args[0].startswith("@")}
        wanted = [_fallback(inner) for inner in [scope, *(inner for _, inner in locations)]]
        for one, inner in locations:
            if (one, inner) in regexes or (redirected and one.args == ["/"]):
                continue
            if one.args[0] in named:
                if one.args[0] not in wanted:
                    self.note(one, "nothing leads to a location with a name")
                continue
            path = self._path(one)
            if other := named.get(_fallback(inner)):
                self._others(inner, _EVERYWHERE | _OF_LOCATIONS)
                inner = other
            if path and self._location(server, inner, hosts, path, one):
                paths.append(path)
        if "/" not in paths and (other := named.get(_fallback(scope))):
            at = scope.own("try_files")[-1]
            if not self._wholly(locations) and self._location(server, other, hosts, "/", at):
                paths.append("/")
        if "/" in paths or redirected:
            pass
        elif (root := scope.get("root")) and not self._wholly(locations):
            self._files(server, scope, hosts, "/", root.place)
        elif None not in hosts:
            self._draft.note(
                server.place,
                f"other paths of {', '.join(map(str, hosts))} are answered as for any other host",
            )
        for one, inner in regexes:
            self._regex(server, inner, hosts, paths, one)

    def _wholly(self, locations: list[tuple[Statement, Scope]]) -> bool:
        """Whether some location is for all paths in its own way."""
        return any(one.args[:1] == ["/"] for one, _ in locations)

    def _path(self, one: Statement) -> str | None:
        match one.args:
            case [path] if path.startswith("/"):
                return path
            case ["^~", path]:
                return path
            case ["=", "/"]:
                self.note(one, "a route is for all below its path: left out")
            case ["=", path]:
                return path
            case [path] if path.startswith("="):
                return path[1:]
            case _:
                self.note(one, "this is no path")
        return None

    def _regex(
        self,
        server: Server,
        scope: Scope,
        hosts: list[str | None],
        paths: list[str],
        one: Statement,
    ) -> None:
        pattern = one.args[1] if len(one.args) > 1 else ""
        ends = _endings(pattern)
        if server.runs and scope.own("fastcgi_pass", "uwsgi_pass", "scgi_pass"):
            self._location(server, scope, hosts, "/", one)
        elif self._closed(one, scope):
            pass
        elif ends and not scope.own("proxy_pass") and scope.get("root"):
            self._others(scope, _EVERYWHERE | _OF_LOCATIONS)
            self._files(server, scope, hosts, "/", one.place, ends)
        elif ends and (passing := scope.own("proxy_pass")):
            self._others(scope, _EVERYWHERE | _OF_LOCATIONS)
            if pool := self._pool(passing[0], scope, "/"):
                for host in hosts:
                    self._draft.route(host, "/", pool, one.place, ends)
        elif (match := _PLAIN_REGEX.fullmatch(pattern)) and match[1] != "/":
            self.note(one, "a route is for whole segments of a path")
            path = match[1].replace("\\", "")
            self._location(server, scope, hosts, path, one)
        else:
            self.note(
                one, "regular expressions aren't known to routes: say a path for each that is meant"
            )

    def _closed(self, at: Statement, scope: Scope) -> bool:
        """Whether no client gets anything there; notes that."""
        closed = [
            one for one in scope.own("deny") if one.args == ["all"] and not scope.own("allow")
        ]
        if not (closed or scope.own("internal")):
            return False
        self.note(
            closed[0] if closed else at,
            "nobody gets this there, and no route says so: it is answered as the paths around it "
            "are; see that they have nothing to hide",
        )
        return True

    def _location(
        self, server: Server, scope: Scope, hosts: list[str | None], path: str, at: Statement
    ) -> bool:
        """Whether it is served, or sent elsewhere."""
        if self._closed(at, scope):
            return False
        exact = at.name == "location" and at.args[0].startswith("=")
        self._others(scope, _EVERYWHERE | _OF_LOCATIONS)
        self._for_all(scope)
        sent = None
        for one in scope.own("return", "rewrite"):
            if sent := sent or self._redirect_of(server)(one):
                break
            if one.name == "return":
                self.note(one, "only redirects can be said: let the application answer")
            else:
                self.note(one, _ADVICE["rewrite"])
        if sent and self._secure and server.leads_home(sent[1]):
            self.note(at, "all paths of an address are sent to https, or none: served as it is")
            return False
        what: dict[str, Json] | None = None
        if sent:
            what = {"redirect": sent[1]} | ({"redirect_status": sent[0]} if sent[0] != 302 else {})
        elif passing := scope.own("proxy_pass"):
            if what := self._pool(passing[0], scope, path):
                for one in scope.own("expires"):
                    self.note(one, "it is for files only: let the application say how long")
        elif other := scope.own("fastcgi_pass", "uwsgi_pass", "scgi_pass", "grpc_pass"):
            what_ = " ".join(at.args) if at.args[0][:1] == "~" else path
            self.note(other[0], f"so {where(hosts[0] if hosts else None, what_)} isn't served")
        elif scope.own("return", "rewrite"):
            pass
        elif exact and scope.get("root") and not scope.own("alias"):
            self.note(at, "routes are for folders: the file is answered by who serves the rest")
        elif scope.own("alias") or scope.get("root"):
            return self._files(server, scope, hosts, path, at.place, sure=at.args[0] == "^~")
        elif not scope.own("stub_status", "status", "api", "memcached_pass"):
            self.note(at, "nothing is said of who serves it: left out")
        if what and exact:
            self.note(at, "a route is for all below its path too")
        for host in hosts if what else ():
            self._draft.route(host, path, what or {}, at.place)
        return bool(what)

    def _files(
        self,
        server: Server,
        scope: Scope,
        hosts: list[str | None],
        path: str,
        place: Place,
        ends: Sequence[str] = (),
        *,
        sure: bool = False,
    ) -> bool:
        """``sure``: no regular expression has a say in it. Whether they are served."""
        if server.runs and not (ends or sure):
            self._draft.note(
                place,
                f"the files of {path} aren't served: line {server.runs.place.line} runs some of "
                "them, which everybody could read; give those that may be read a folder of their "
                "own",
            )
            return False
        if alias := scope.own("alias"):
            folder = self._file(alias[-1].args[0])
        else:
            root = scope.get("root")
            assert root
            folder = self._file(root.args[0]).rstrip("/") + path.rstrip("/")
        what: dict[str, Json] = {"files": folder or "/"}
        index = scope.get("index")
        if index and index.args and index.args[0] != "index.html":
            what["index"] = index.args[0]
        if index and len(index.args) > 1:
            self.note(index, f"one file stands for its folder: {index.args[0]}")
        if (life := self._expires(scope)) is not None:
            what["expires"] = life
        for host in hosts:
            self._draft.route(host, path, what, place, ends)
        return True

    def _expires(self, scope: Scope) -> str | None:
        one = scope.get("expires")
        if one and one.args == ["max"]:
            return "3650d"
        if one and one.args != ["off"]:
            life = seconds(one.args[0]) if len(one.args) == 1 else None
            if (found := said(life or 0)) is None:
                self.note(one, "files can be said to be good for some time only, as in 30d")
            return found
        for field in scope.all("add_header"):
            match = re.search(r"max-age=([0-9]{1,12})", " ".join(field.args[1:]))
            if field.args[0].lower() == "cache-control" and match:
                return said(int(match[1]))
        return None

    # Pools

    def _duration(self, one: Statement) -> str | None:
        time = seconds(one.args[0]) if one.args else None
        found = said(time or 0)
        if found is None:
            self.note(one, "this is no duration that pyproxy can have: its default holds")
        return found

    def _pool(self, passing: Statement, scope: Scope, path: str) -> dict[str, Json] | None:
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

    def _times(self, scope: Scope) -> dict[str, Json]:
        found = {}
        for name in ("connect", "read", "send"):
            one = scope.get(f"proxy_{name}_timeout")
            if one and (time := self._duration(one)):
                found[name] = time
        return {"timeouts": found} if found else {}

    def _retry(self, scope: Scope) -> dict[str, Json]:
        found: dict[str, Json] = {}
        one = scope.get("proxy_next_upstream")
        if one and "off" in one.args:
            return {"retry": {"attempts": 1}}
        if one:
            statuses = [int(match[1]) for arg in one.args if (match := _STATUSES.fullmatch(arg))]
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
            elif one.name in _POLICIES:
                policy = self._policy(one)
            elif one.name == "sticky":
                self._sticky(one, pool)
            elif one.name == "queue":
                self._queue(one, pool)
            elif one.name == "resolver":
                self._resolver(one)
            elif not _SILENT.fullmatch(one.name) and one.name != "keepalive_timeout":
                self.note(one, "pyproxy has nothing like it")
        weighted = pool.weighted
        policy = policy or ("weighted_round_robin" if weighted else "round_robin")
        if policy == "least_connections" and weighted:
            policy = "weighted_least_connections"
        pool.say("policy", policy)
        if fails and max(fails) == 0:
            pool.say("max_evicted", 0)
        elif fails and max(fails) > 1:
            pool.say("max_fails", max(fails))
        if len(set(fails)) > 1:
            self._draft.note(block.place, f"max_fails is one for all targets: {max(fails)} here")
        if len(set(sleeps)) > 1:
            self._draft.note(block.place, "fail_timeout is one for all targets: the least here")
        if sleeps and (found := said(min(sleeps))) and found != "10s":
            pool.say("sleeping", found)
        return pool

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
            return _POLICIES[one.name]
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

    # Connections as they are

    def _stream(self, stream: Scope) -> None:
        self._others(stream, _OF_STREAMS | {"server", "upstream", "map"})
        self._upstreams = {one.args[0]: one for one in stream.own("upstream") if one.args}
        names = {one.args[1]: one for one in stream.own("map") if _by_server_name(one)}
        for one in stream.own("map"):
            if not _by_server_name(one):
                self.note(one, _ADVICE["map"])
        for block in stream.own("server"):
            self._relay(Scope(block.block or [], stream), block, names)

    def _relay(self, scope: Scope, block: Statement, names: dict[str, Statement]) -> None:
        self._others(scope, _OF_STREAMS)
        self._tls(scope)
        passing = scope.get("proxy_pass")
        if not passing or not passing.args:
            self._draft.note(block.place, "nothing is said of who serves here: left out")
            return
        for one in scope.own("listen"):
            address = self._address(one, scope)
            if "udp" in one.args:
                self.note(one, "UDP isn't relayed")
                continue
            if not address:
                continue
            entry: dict[str, Json] = {"listen": address.url.partition("://")[2]}
            if address.secure:
                entry["tls"] = True
                self._certificates([Server(scope, block.place, [address], [])])
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
                        self._entry(entry | said_, to, scope)
            else:
                self._entry(entry, passing, scope)

    def _entry(self, entry: dict[str, Json], passing: Statement, scope: Scope) -> None:
        name = passing.args[0] if passing.args else ""
        if "$" in name or name.startswith("unix:") or not name:
            self.note(passing, "who serves must be said by address or upstream")
            return
        if name in self._upstreams:
            pool = self._upstream(self._upstreams[name], "tcp")
        else:
            pool = Pool(self._draft, passing.place)
            host, port = host_and_port(name)
            pool.add(passing.place, address_of(host, port or 80, "tcp"))
        times = {}
        for directive, key in (("proxy_connect_timeout", "connect"), ("proxy_timeout", "idle")):
            if (one := scope.get(directive)) and (time := self._duration(one)):
                times[key] = time
        send = scope.get("proxy_protocol")
        if send and send.args == ["on"]:
            entry = entry | {"send_proxy": 1}
        if pool.targets:
            entry = entry | pool.as_settings(**({"timeouts": times} if times else {}))
            self._draft.tcp(copy.deepcopy(entry), passing.place)


_POLICIES = {
    **{"least_conn": "least_connections", "ip_hash": "ip_hash", "hash": "", "random": ""},
    "least_time": "least_response_time",
}
# What may stand without a value.
_BARE = {
    *("least_conn", "ip_hash", "random", "internal", "stub_status", "health_check", "ntlm", "api"),
    *("break", "flv", "mp4", "empty_gif", "hostnames", "volatile"),
}
_EVERYWHERE = {
    *("keepalive_timeout", "client_header_timeout", "client_max_body_size", "set_real_ip_from"),
    *("real_ip_header", "resolver", "resolver_timeout", "ssl_protocols", "ssl_ciphers", "http2"),
    *("ssl_client_certificate", "ssl_verify_client", "ssl_certificate", "ssl_certificate_key"),
    *("proxy_connect_timeout", "proxy_read_timeout", "proxy_send_timeout", "proxy_next_upstream"),
    *("proxy_next_upstream_tries", "proxy_ssl_verify", "proxy_ssl_trusted_certificate"),
    *("proxy_ssl_certificate", "proxy_ssl_certificate_key"),
}
_OF_SERVERS = {"listen", "server_name", "location", "return", "rewrite", "if", "ssl"}
_OF_LOCATIONS = {
    *("proxy_pass", "return", "rewrite", "location", "fastcgi_pass", "uwsgi_pass", "scgi_pass"),
    *("grpc_pass", "internal"),
}
_OF_STREAMS = {
    *("listen", "proxy_pass", "proxy_timeout", "proxy_connect_timeout", "proxy_protocol"),
    *("ssl_preread", "ssl_certificate", "ssl_certificate_key", "ssl_protocols", "ssl_ciphers"),
    *("set_real_ip_from", "ssl"),
}


def _size(count: int) -> str | int:
    for unit, length in (("GB", 1024**3), ("MB", 1024**2), ("KB", 1024)):
        if count % length == 0:
            return f"{count // length}{unit}"
    return count


def _endings(pattern: str) -> list[str]:
    """Of ``\\.(css|js)$``: .css and .js."""
    match = _ENDINGS.fullmatch(pattern.removeprefix("^.*").removeprefix("^.+").removeprefix(".*"))
    found: list[str] = []
    for one in (match[1] or match[2]).split("|") if match else []:
        if one.count("?") > 1 or one.startswith("?") or not one:
            return []
        before, optional, after = one.partition("?")
        found.append(f".{before}{after}".lower())
        if optional:  # what stands before the mark may be missing
            found.append(f".{before[:-1]}{after}".lower())
    return list(dict.fromkeys(found))


def _flat(scope: Scope) -> Iterator[tuple[Statement, Scope]]:
    """Locations, with those in them."""
    for one in scope.own("location"):
        inner = Scope(one.block or [], scope)
        yield one, inner
        yield from _flat(inner)


def _ours(one: Statement, scope: Scope) -> bool:
    """Whether it says what pyproxy does anyway, or is heeded elsewhere."""
    if str(one) == "allow all":
        return True
    if one.args == ["off"]:
        return not one.name.startswith("proxy_pass_request")
    if one.name == "proxy_set_header":
        name, value = one.args[0].lower(), " ".join(one.args[1:]).lower()
        if name == "x-forwarded-proto" and value in ("http", "https"):
            secure = {"ssl" in listen.args for listen in scope.all("listen")} or {False}
            return secure == {value == "https"}
        return value in _OURS.get(name, ())
    if one.name == "try_files":
        if _fallback(scope):
            return False
        return one.args in (["$uri", "=404"], ["$uri", "$uri/", "=404"])
    if one.name == "add_header":
        files = not scope.own("proxy_pass") and bool(scope.get("root") or scope.own("alias"))
        return files and one.args[0].lower() == "cache-control" and "max-age=" in str(one)
    return False


def _default(servers: list[Server]) -> Server | None:
    """The one for hosts that no other has."""
    for server in servers:
        if any(one.default for one in server.listens):
            return server
    return servers[0] if servers else None


def _fallback(scope: Scope) -> str:
    """The named location for what is no file; "" if there is none."""
    tried = [one for one in scope.own("try_files") if one.args[-1].startswith("@")]
    return tried[-1].args[-1] if tried and not scope.own("proxy_pass") else ""


def _asked(name: str) -> list[str]:
    """The names that a line of a map by names is for; "" for all others."""
    if name in ("hostnames", "volatile"):
        return []
    if name == "default":
        return [""]
    return [name[1:].lower(), f"*{name}".lower()] if name.startswith(".") else [name.lower()]


def _by_server_name(one: Statement) -> bool:
    return len(one.args) == 2 and one.args[0] == "$ssl_preread_server_name"
