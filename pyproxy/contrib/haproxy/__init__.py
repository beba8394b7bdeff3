"""HAProxy's configuration as settings. Where which keyword is translated:

=============  ==================================================================================
here           `global`
`fronts`       `frontend`, `listen`, `default_backend`, `use_backend`, `redirect`, `stats`,
               `maxconn`, `timeout client`, `timeout http-request`, `timeout http-keep-alive`
`part`         `bind`, with `ssl`, `crt`, `ca-file`, `ciphers`, `ssl-min-ver`
`conditions`   `acl`, `if`, `unless`
`pools`        `backend`, `server`, `default-server`, `server-template`, `balance`, `hash-type`,
               `cookie`, `option httpchk`, `http-check`, `retries`, `retry-on`,
               `timeout connect`, `server`, `tunnel`, `queue`, `check`
`words`        what is passed over, and what is told of what has no equivalent
=============  ==================================================================================

`reading` makes sections and lines of a file.
"""

import os

from pyproxy.contrib.converting import Converted, Draft, Place, note_elsewhere, said, whole
from pyproxy.contrib.haproxy.fronts import Fronts
from pyproxy.contrib.haproxy.part import Files, Part
from pyproxy.contrib.haproxy.pools import Pools
from pyproxy.contrib.haproxy.reading import (
    Line,
    Section,
    chooses,
    has_stats,
    read,
    seconds,
    speaks_tls,
)
from pyproxy.contrib.haproxy.words import (
    ADVICE,
    HANDLED,
    OF_BACKENDS,
    OUR_FIELDS,
    SILENT,
    SILENT_OPTIONS,
    TIMEOUTS,
)
from pyproxy.readers import is_loopback

_PAGES = (["stats", "enable"], ["stats", "uri"])  # of every section, where `defaults` say so


def convert(text: str, file: str) -> Converted:
    """``file`` is the name that notes tell. Raises ``ConvertError``."""
    draft = Draft(Place(file, 1))
    sections = read(text, file)
    _Converter(draft, sections, os.path.dirname(file)).convert()
    return draft.finish()


class _Converter(Part):
    def __init__(self, draft: Draft, sections: list[Section], folder: str) -> None:
        super().__init__(draft, Files(folder, folder))
        self._sections = sections
        self._folder = folder

    def convert(self) -> None:
        for section in self._sections:
            if section.kind == "global":
                self._global(section)
            elif section.kind not in ("defaults", "frontend", "backend", "listen"):
                known = ADVICE.get(section.kind, "pyproxy has nothing like it")
                self._draft.note(section.place, f"{section.kind} {section.name}: {known}")
        for section in self._sections:
            if section.kind in ("defaults", "frontend", "backend", "listen"):
                self._others(section)
        fronts = [one for one in self._sections if one.kind in ("frontend", "listen")]
        pools = Pools(self._draft, self._files, self._sections)
        front = Fronts(self._draft, self._files, pools)
        serving: list[tuple[Place, list[str]]] = []
        secure = any(speaks_tls(line) for one in fronts for line in one.own("bind"))
        # Of two with the same paths the first one stays: none that only this machine reaches.
        for section in sorted(fronts, key=self._local):
            if section.own("disabled"):
                continue
            if has_stats(section):
                front.stats(section)
            serves = section.own("server") or section.own("server-template")
            if not (serves or section.all("default_backend") or chooses(section)):
                if not has_stats(section):
                    self._draft.note(section.place, f"{section.name} leads nowhere: left out")
            elif not section.own("bind"):
                self._draft.note(section.place, f"{section.name} listens nowhere: left out")
            elif section.mode == "tcp":
                front.relay(section)
            elif urls := front.serve(section, secure):
                serving.append((section.place, urls))
        note_elsewhere(self._draft, serving)
        binds = [line for one in fronts for line in one.own("bind") if speaks_tls(line)]
        if asking := [line for line in binds if "required" in line.words]:
            for line in binds:
                if line not in asking:
                    text = "clients need a certificate here, too, as there is one tls.client_ca"
                    self.note(line, text)
        pools.note_unused()
        self._say_certificates()

    def _local(self, section: Section) -> bool:
        """Whether it has paths that only this machine reaches."""
        if section.mode == "tcp":
            return False
        hosts = [host for _, host, _ in self._binds(section)]
        return bool(hosts) and all(map(is_loopback, hosts))

    def _say_certificates(self) -> None:
        files = list(dict(self._files.certificates).items())
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
                    self._files.crt_base = os.path.join(self._folder, folder)
                case ["ca-base", folder]:
                    self._files.ca_base = os.path.join(self._folder, folder)
                case ["ssl-default-bind-ciphers", ciphers]:
                    self._draft.say("tls.ciphers", ciphers, line.place)
                case ["ssl-default-bind-options", *options]:
                    self._bind_tls(line, options)
                case _:
                    self._unknown(line)

    def _unknown(self, line: Line) -> None:
        if SILENT.fullmatch(line.name):
            return
        known = [name for name in ADVICE if str(line).startswith(name)]
        self.note(line, ADVICE[known[0]] if known else "pyproxy has nothing like it")

    def _others(self, section: Section) -> None:
        """Notes what nothing is made of."""
        for line in section.lines:
            if section.kind == "defaults" and line.words[:2] in _PAGES:
                self.note(line, ADVICE["stats"])
            handled = HANDLED if section.kind in ("frontend", "listen") else OF_BACKENDS
            if line.name in handled or line.name == "no" or line.words == ["log", "global"]:
                continue
            if line.name == "option":
                if line.word(1) == "forwardfor" and {"except", "header"} & set(line.words):
                    self.note(line, "X-Forwarded-For is always said, and by that name")
                elif line.word(1) not in SILENT_OPTIONS | {"httpchk"}:
                    self.note(line, "pyproxy has nothing like it")
            elif line.name == "timeout":
                if line.word(1) not in TIMEOUTS:
                    self.note(line, "there is no such time-out")
                elif said(seconds(line.word(2)) or 0) is None:
                    self.note(line, "this is no duration that pyproxy can have")
            elif not _is_heeded(line, section):
                self._unknown(line)


def _is_heeded(line: Line, section: Section) -> bool:
    """Whether something is made of it elsewhere, or it says what pyproxy says anyway."""
    what = (line.name, line.word(1))
    if what in (("http-request", "set-header"), ("http-request", "add-header")):
        name, value, *condition = [one.lower() for one in [*line.words[2:], "", ""]]
        if name == "x-forwarded-proto" and value in ("http", "https"):
            binds = section.own("bind")
            always = {speaks_tls(one) for one in binds} == {value == "https"}
            return always or bool({"{ssl_fc}", "!{ssl_fc}"} & {"".join(condition[1:])})
        return value in OUR_FIELDS.get(name, ())
    if what in (("http-request", "redirect"), ("http-request", "deny")):
        return section.kind in ("frontend", "listen")
    if what == ("tcp-request", "content"):
        return "ssl_hello_type" in str(line) and line.word(2) == "accept"
    return what in (
        *(("http-check", "expect"), ("http-check", "send"), ("tcp-request", "inspect-delay")),
    )
