"""What the converter's parts have in common: notes, and what may stand in any block and is said
once, like time-outs of clients and TLS."""

import os
import re

from pyproxy.contrib.converting import Draft, said
from pyproxy.contrib.nginx.reading import Scope, Statement, fallback, seconds, size
from pyproxy.contrib.nginx.words import ADVICE, OUR_FIELDS, SILENT

OLD_TLS = {"SSLv2", "SSLv3", "TLSv1", "TLSv1.1"}


class Part:
    """Of the converter; files are named from ``folder``."""

    def __init__(self, draft: Draft, folder: str) -> None:
        self._draft = draft
        self._folder = folder

    def note(self, one: Statement, text: str) -> None:
        self._draft.note(
            one.place, f"{one}: {text}" if len(str(one)) < 80 else f"{one.name}: {text}"
        )

    def _others(self, scope: Scope, handled: set[str]) -> None:
        """Notes what nothing is made of."""
        for one in scope.statements:
            if not (one.name in handled or SILENT.fullmatch(one.name) or _ours(one, scope)):
                known = [name for name in ADVICE if one.name.startswith(name)]
                if one.name == "try_files" and fallback(scope):
                    if not scope.files_only:
                        text = "files aren't looked for first: give them a route of their own"
                        self.note(one, text)
                    continue
                self.note(one, ADVICE[known[0]] if known else "pyproxy has nothing like it")

    def _file(self, name: str) -> str:
        return name if os.path.isabs(name) else os.path.join(self._folder, name)

    def _duration(self, one: Statement) -> str | None:
        time = seconds(one.args[0]) if one.args else None
        found = said(time or 0)
        if found is None:
            self.note(one, "this is no duration that pyproxy can have: its default holds")
        return found

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
            elif one.name == "access_log" and value == "off":
                if (before := scope.around("access_log")) and before.args[:1] != ["off"]:
                    self.note(one, "requests are logged for all or for none: these are, too")
            elif one.name == "access_log" and value:
                if value.startswith("syslog:") or "$" in value:
                    self.note(one, "access_log is a file, or - for standard output")
                else:
                    out = "-" if value == "/dev/stdout" else value
                    self._draft.say("access_log", out, one.place)
                    if any(arg.startswith("if=") for arg in one.args):
                        self.note(one, "all requests are logged, or none: all are")
                    format_ = next((arg for arg in one.args[1:] if "=" not in arg), "combined")
                    if format_ not in ("combined", "gzip"):
                        text = f"lines are combined ones, not {format_}: say access_log.format"
                        self.note(one, text)
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
            new = [arg for arg in one.args if arg not in OLD_TLS]
            if old := [arg for arg in one.args if arg in OLD_TLS]:
                self.note(one, f"{' and '.join(old)} are not spoken, 1.2 is the oldest TLS that is")
            if new == ["TLSv1.2"]:
                self.note(one, "TLS 1.3 is spoken too")
            if new:
                oldest = "1.2" if "TLSv1.2" in new else "1.3"
                self._draft.say("tls.min_version", oldest, one.place)
        for one in scope.own("ssl_ciphers"):
            self._draft.say("tls.ciphers", ":".join(one.args), one.place)
        if scope.own("ssl_client_certificate", "ssl_verify_client") and (ca := client_ca(scope)):
            self._draft.say("tls.client_ca", self._file(ca.args[0]), ca.place)
        for one in scope.own("ssl_verify_client"):
            if one.args not in (["on"], ["off"]):
                self.note(
                    one, "certificates of clients are needed (tls.client_ca) or not asked for"
                )


def client_ca(scope: Scope) -> Statement | None:
    """Who signs the certificates that clients need there, wherever each half of it is said."""
    verify = scope.get("ssl_verify_client")
    return scope.get("ssl_client_certificate") if verify and verify.args == ["on"] else None


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
        return value in OUR_FIELDS.get(name, ())
    if one.name == "try_files":
        if fallback(scope):
            return False
        return one.args in (["$uri", "=404"], ["$uri", "$uri/", "=404"])
    if one.name == "add_header":
        files = not scope.own("proxy_pass") and bool(scope.get("root") or scope.own("alias"))
        value = " ".join(one.args[1:]).removesuffix(" always")
        plain = re.fullmatch(r"(public, ?)?max-age=[1-9][0-9]{0,11}(, ?public)?", value)
        return files and one.args[0].lower() == "cache-control" and bool(plain)
    return False


def _size(count: int) -> str | int:
    for unit, length in (("GB", 1024**3), ("MB", 1024**2), ("KB", 1024)):
        if count % length == 0:
            return f"{count // length}{unit}"
    return count
