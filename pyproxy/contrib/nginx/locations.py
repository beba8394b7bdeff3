"""`location`: routes with a pool, a folder of files, a redirect or a denial."""

import re
from collections.abc import Sequence

from pyproxy.contrib.converting import WHOLE_SEGMENTS, Draft, Place, said, where, whole
from pyproxy.contrib.nginx.part import Part
from pyproxy.contrib.nginx.pools import Pools
from pyproxy.contrib.nginx.reading import Scope, Statement, fallback, flat, seconds
from pyproxy.contrib.nginx.servers import Server, Servers
from pyproxy.contrib.nginx.words import ADVICE, EVERYWHERE, OF_LOCATIONS, OF_SERVERS
from pyproxy.readers import Json

ENDINGS = re.compile(r"\\\.(?:\((?:\?:)?([A-Za-z0-9_|?-]+)\)|([A-Za-z0-9_-]+))\$")
PROGRAMS = {".php", ".php5", ".php7", ".phtml", ".cgi"}
PLAIN_REGEX = re.compile(r"\^(/(?:[A-Za-z0-9_/-]|\\[./-])*)(?:\.\*)?")


class Locations(Part):
    """``secure``: whether some address speaks TLS."""

    def __init__(
        self, draft: Draft, folder: str, servers: Servers, pools: Pools, secure: bool
    ) -> None:
        super().__init__(draft, folder)
        self._servers = servers
        self._pools = pools
        self._secure = secure

    def serve(self, server: Server, hosts: list[str | None], *, redirected: bool = False) -> None:
        """``redirected``: without what is for all paths."""
        scope = server.scope
        self._others(scope, EVERYWHERE | OF_SERVERS)
        status = self._denied(scope) if server.refuses else None
        names: list[str | None] = [host for host in hosts if host]
        for one in scope.own("rewrite", "if", *([] if status and names else ["return"])):
            text = "only redirects can be said" if one.name == "return" else ADVICE[one.name]
            if one.name == "if" and (
                {"$scheme", "$https"} & set(one.args)
                or any("https://" in str(inner) for inner in one.block or [])
            ):
                text = 'to send clients to https, say "redirect": "https" of the plain address'
            self.note(one, text)
        if scope.own("return"):
            if status:
                self._route(server, names, "/", {"deny": status}, server.place)
            if not (status and names) or None in hosts:
                self._draft.note(server.place, "all of it is answered by return: nothing is served")
            return
        paths = []
        locations = list(flat(scope))
        regexes = [found for found in locations if found[0].args[:1] in (["~"], ["~*"])]
        server.runs = next((one for one, inner in regexes if _runs(one, inner)), None)
        named = {one.args[0]: inner for one, inner in locations if inner.named}
        wanted = [fallback(inner) for inner in [scope, *(inner for _, inner in locations)]]
        for one, inner in locations:
            if (one, inner) in regexes or (redirected and one.args == ["/"]):
                continue
            if one.args[0] in named:
                if one.args[0] not in wanted:
                    self.note(one, "nothing leads to a location with a name")
                continue
            path = self._path(one)
            if other := self._instead(inner, named):
                self._others(inner, EVERYWHERE | OF_LOCATIONS)
                inner = other
            if path and self._location(server, inner, hosts, path, one):
                paths.append(path)
        if "/" not in paths and (other := self._instead(scope, named)):
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

    def _instead(self, scope: Scope, named: dict[str, Scope]) -> Scope | None:
        """The location that gets what is no file, if it is served by that: not where clients are
        turned away before, nor where the other one turns away only who asks for no file."""
        other = named.get(fallback(scope))
        if not other or (not scope.own("listen", "server_name") and self._denied(scope)):
            return None
        if (scope.get("root") or scope.own("alias")) and self._denied(other):
            scope.files_only = True
            return None
        return other

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
        plain = PLAIN_REGEX.fullmatch(pattern)
        path = plain[1].replace("\\", "") if plain and plain[1] != "/" else None
        denied = self._denied(scope)
        if denied and not (ends or path):
            self.note(
                one,
                "nobody gets this there, and no route says so: it is answered as the paths around "
                "it are; see that they have nothing to hide",
            )
        elif denied and ends:
            self._route(server, hosts, scope.within, {"deny": denied}, one.place, ends)
        elif ends and scope.own("return"):
            self._sent(server, scope, hosts, ends, one)
        elif _runs(one, scope):
            self._location(server, scope, hosts, "/", one)
        elif ends and not scope.own("proxy_pass") and scope.get("root"):
            self._others(scope, EVERYWHERE | OF_LOCATIONS - {"rewrite"})
            self._files(server, scope, hosts, scope.within, one.place, ends)
        elif ends and (passing := scope.own("proxy_pass")):
            self._others(scope, EVERYWHERE | OF_LOCATIONS - {"rewrite"})
            if pool := self._pools.by_http(passing[0], scope, scope.within):
                self._route(server, hosts, scope.within, pool, one.place, ends)
        elif path:
            self.note(one, "a route is for whole segments of a path")
            if denied and any(one.startswith(f"{path}/") for one in paths):
                self.note(one, "what has a location of its own below it is answered there")
            self._location(server, scope, hosts, path, one)
        else:
            self.note(
                one, "regular expressions aren't known to routes: say a path for each that is meant"
            )

    def _sent(
        self, server: Server, scope: Scope, hosts: list[str | None], ends: list[str], at: Statement
    ) -> None:
        """What ends so is redirected, or noted."""
        self._others(scope, EVERYWHERE | OF_LOCATIONS)
        for one in scope.own("return")[:1]:
            sent = self._servers.redirect_of(server)(one)
            if not sent:
                self.note(one, "only redirects can be said: let the application answer")
            elif self._secure and server.leads_home(sent[1]):
                self.note(at, "all paths of an address are sent to https, or none: left out")
            else:
                what: dict[str, Json] = {"redirect": sent[1]}
                what |= {"redirect_status": sent[0]} if sent[0] != 302 else {}
                self._route(server, hosts, scope.within, what, at.place, ends)

    def _denied(self, scope: Scope) -> int | None:
        """The status, where no client gets anything there."""
        for one in scope.own("return"):
            if (status := whole(one.args[0])) and 400 <= status <= 599:
                if any(
                    str(status) in page.args[:-1] and page.args[-1].startswith("@")
                    for page in scope.all("error_page")
                ):
                    return None  # another location answers
                if status == 444:
                    self.note(one, "clients get an answer, 403, before the connection may end")
                elif len(one.args) > 1:
                    self.note(one, "its status is said, not its text")
                return 403 if status == 444 else status
        access = scope.access()
        if any(str(one) == "deny all" for one in access) and "allow" not in {
            one.name for one in access
        }:
            for one in scope.all("satisfy"):
                self.note(one, "nobody is asked who they are, and all are denied what is closed")
            return 403
        if not scope.own("internal") or scope.named:
            return None
        for one in scope.own("internal"):
            self.note(one, "no answer of an application leads there (X-Accel-Redirect)")
        return 404

    def _location(
        self, server: Server, scope: Scope, hosts: list[str | None], path: str, at: Statement
    ) -> bool:
        """Whether it is served, or sent elsewhere."""
        exact = at.name == "location" and at.args[0].startswith("=")
        sure = exact or at.args[0] == "^~"
        if status := self._denied(scope):
            if exact:
                self.note(at, "a route is for all below its path too")
            elif not path.endswith("/"):
                self.note(at, WHOLE_SEGMENTS)
            self._route(server, hosts, path, {"deny": status}, at.place, sure=sure)
            return True
        self._others(scope, EVERYWHERE | OF_LOCATIONS)
        self._for_all(scope)
        sent = None
        for one in scope.own("return", "rewrite"):
            if sent := sent or self._servers.redirect_of(server)(one):
                break
            if one.name == "return":
                self.note(one, "only redirects can be said: let the application answer")
            else:
                self.note(one, ADVICE["rewrite"])
        if sent and self._secure and server.leads_home(sent[1]):
            self.note(at, "all paths of an address are sent to https, or none: served as it is")
            return False
        what: dict[str, Json] | None = None
        if sent:
            what = {"redirect": sent[1]} | ({"redirect_status": sent[0]} if sent[0] != 302 else {})
        elif scope.own("return"):
            pass  # whoever else is said to serve is never asked
        elif passing := scope.own("proxy_pass"):
            if what := self._pools.by_http(passing[0], scope, path):
                for one in scope.own("expires"):
                    self.note(one, "it is for files only: let the application say how long")
        elif other := scope.own("fastcgi_pass", "uwsgi_pass", "scgi_pass", "grpc_pass"):
            what_ = " ".join(["", *at.args]) if at.args[0][:1] == "~" else path
            self.note(other[0], f"so {where(hosts[0] if hosts else None, what_)} isn't served")
        elif scope.own("rewrite"):
            pass
        elif exact and scope.get("root") and not scope.own("alias"):
            self.note(at, "routes are for folders: the file is answered by who serves the rest")
        elif scope.own("alias") or scope.get("root"):
            return self._files(server, scope, hosts, path, at.place, sure=at.args[0] == "^~")
        elif not scope.own("stub_status", "status", "api", "memcached_pass"):
            self.note(at, "nothing is said of who serves it: left out")
        if what and exact:
            self.note(at, "a route is for all below its path too")
        if what:
            self._route(server, hosts, path, what, at.place, sure=sure)
        return bool(what)

    def _route(
        self,
        server: Server,
        hosts: list[str | None],
        path: str,
        what: dict[str, Json],
        place: Place,
        ends: Sequence[str] = (),
        *,
        sure: bool = False,
    ) -> None:
        """``sure``: endings have no say in it, while routes with endings go before others."""
        if sure:
            server.sure.append((path, what, place))
        for host in hosts:
            self._draft.route(host, path, what, place, ends)
            for below, served, from_ in server.sure if ends else ():
                if f"{below}/".startswith(f"{path.rstrip('/')}/"):
                    self._draft.route(host, below, served, from_, ends)

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
        self._route(server, hosts, path, what, place, ends, sure=sure)
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


def _runs(one: Statement, scope: Scope) -> bool:
    """Whether files are run there; by their endings too, if an include that says so is missing."""
    if scope.own("fastcgi_pass", "uwsgi_pass", "scgi_pass"):
        return True
    refused = any((whole(inner.args[0]) or 0) >= 400 for inner in scope.own("return"))
    known = refused or scope.own("proxy_pass", "deny")
    return bool(PROGRAMS & set(_endings(one.args[-1]))) and not known


def _endings(pattern: str) -> list[str]:
    """Of ``\\.(css|js)$``: .css and .js."""
    match = ENDINGS.fullmatch(pattern.removeprefix("^.*").removeprefix("^.+").removeprefix(".*"))
    found: list[str] = []
    for one in (match[1] or match[2]).split("|") if match else []:
        if one.count("?") > 1 or one.startswith("?") or not one:
            return []
        before, optional, after = one.partition("?")
        found.append(f".{before}{after}".lower())
        if optional:  # what stands before the mark may be missing
            found.append(f".{before[:-1]}{after}".lower())
    return list(dict.fromkeys(found))
