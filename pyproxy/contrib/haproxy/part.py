"""What the converter's parts have in common: notes, and what `bind` says."""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pyproxy.contrib.converting import Draft, Place
from pyproxy.contrib.haproxy.reading import Line, Section, address_of_line, options
from pyproxy.contrib.haproxy.words import BIND_OPTIONS, BIND_VALUES


@dataclass
class Files:
    """Where certificates are looked for, and those that were named."""

    crt_base: str
    ca_base: str
    certificates: list[tuple[str, Place]] = field(default_factory=list)


class Part:
    """Of the converter."""

    def __init__(self, draft: Draft, files: Files) -> None:
        self._draft = draft
        self._files = files

    def note(self, one: Line, text: str) -> None:
        said_ = str(one)
        self._draft.note(one.place, f"{said_ if len(said_) < 80 else one.name}: {text}")

    def _binds(self, section: Section) -> Iterator[tuple[Line, str, int]]:
        for line in section.own("bind"):
            if odd := options(line.words[2:], BIND_VALUES).keys() - BIND_OPTIONS:
                self.note(line, f"nothing is like {', '.join(sorted(odd))}")
            for address in line.word(1).split(","):
                host, port = address_of_line(address)
                if address.startswith(("/", "unix@", "abns@", "fd@", "quic")) or port is None:
                    self.note(line, f"{address or 'nothing'} can't be listened on: say host:port")
                else:
                    yield line, "0.0.0.0" if host in ("", "*") else host, port
                    if host == "::" and "v4v6" in line.words:
                        yield line, "0.0.0.0", port

    def _bind_tls(self, line: Line, options: Sequence[str]) -> None:
        for name, value in itertools.pairwise([*options, ""]):
            if name == "crt":
                path = os.path.join(self._files.crt_base, value)
                if os.path.isdir(path):
                    self.note(line, "certificates are files: name each, in tls.certificates")
                else:
                    self._files.certificates.append((path, line.place))
            elif name == "ciphers":
                self._draft.say("tls.ciphers", value, line.place)
            elif name == "ssl-min-ver" and value in ("TLSv1.2", "TLSv1.3"):
                self._draft.say("tls.min_version", value.removeprefix("TLSv"), line.place)
            elif name == "ssl-min-ver":
                self.note(line, "TLS 1.2 is the oldest that is spoken")
            elif name == "ca-file":
                if "required" in options:
                    ca = os.path.join(self._files.ca_base, value)
                    self._draft.say("tls.client_ca", ca, line.place)
            elif name == "verify" and value == "optional":
                self.note(
                    line, "certificates of clients are needed (tls.client_ca) or not asked for"
                )
