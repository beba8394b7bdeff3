"""`pyproxy convert`: the files of nginx and HAProxy, and how they behave here and there."""

import base64
import contextlib
import json
import os
import re
import shutil
import socket
import ssl
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pyproxy import Proxy
from pyproxy.cli import main
from pyproxy.contrib import haproxy, nginx
from pyproxy.contrib.convert import convert
from pyproxy.contrib.converting import Converted, ConvertError
from pyproxy.settings import load, parse
from tests.programs import ROOT, command, run
from tests.support import (
    DEADLINE,
    Message,
    RawTarget,
    Wire,
    answer,
    ask,
    closed_port,
    eventually,
    get,
    letters,
    replying,
)

crossplane = pytest.importorskip("crossplane", reason="reads nginx's files (extra convert)")

FILES = Path(__file__).parent / "convert"
PATH = f"{os.environ['PATH']}:/usr/sbin"
READ = 2  # seconds; more than a busy machine takes to answer


def written(folder: Path, name: str, **swapped: str) -> Path:
    """A file of ours with other ports: ``p80=…``, or any text."""
    text = (FILES / name).read_text()
    for key, value in swapped.items():
        pattern = rf"(?<=[ :]){key[1:]}\b" if re.fullmatch(r"p\d+", key) else re.escape(key)
        text, count = re.subn(pattern, value, text)
        assert count
    path = folder / name
    path.write_text(text)
    return path


def ports(targets: list[RawTarget], **listens: int) -> dict[str, str]:
    own = {f"p{8000 + at}": str(target.port) for at, target in enumerate(targets)}
    return own | {key: str(port) for key, port in listens.items()}


def of_nginx(folder: Path, text: str) -> Converted:
    (folder / "nginx.conf").write_text(text)
    return convert(folder / "nginx.conf", "nginx")


# Directives, one by one


def http(text: str) -> str:
    """From line 2 on, as in those below."""
    return f"http {{ upstream u {{ server a:1; }}\n{text}\n}}"


def upstream(text: str) -> str:
    """From line 1 on."""
    served = "server { listen 81; location / { proxy_pass http://x; } }"
    return f"http {{ upstream x {{ {text} }} {served} }}"


def server(text: str) -> str:
    return f"http {{ upstream u {{ server a:1; }} server {{\n{text}\n}} }}"


def location(text: str) -> str:
    return server(f"location / {{ proxy_pass http://u; {text} }}")


ROUND = {"policy": "round_robin"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server a;", {"targets": ["http://a:80"], **ROUND}),
        ("server a:1; server [::1]:2;", {"targets": ["http://a:1", "http://[::1]:2"]}),
        ("server a weight=3; server b;", {"policy": "weighted_round_robin"}),
        ("server a weight=3;", {"targets": [{"url": "http://a:80", "weight": 3}]}),
        (
            "server a backup; server b;",
            {"targets": [{"url": "http://a:80", "backup": True}, "http://b:80"]},
        ),
        ("server a max_conns=9;", {"targets": [{"url": "http://a:80", "max_connections": 9}]}),
        ("server a slow_start=30s;", {"targets": [{"url": "http://a:80", "slow_start": "30s"}]}),
        ("server a down; server b;", {"targets": ["http://b:80"]}),
        ("zone z 1m; server a resolve;", {"targets": ["dns://a:80"]}),
        ("server a max_fails=3 fail_timeout=1m30s;", {"max_fails": 3, "sleeping": "90s"}),
        ("server a max_fails=0;", {"max_evicted": 0}),
        ("server a fail_timeout=0;", {"max_evicted": 0}),
        ("least_conn; server a;", {"policy": "least_connections"}),
        ("least_conn; server a weight=2;", {"policy": "weighted_least_connections"}),
        ("ip_hash; server a;", {"policy": "ip_hash"}),
        ("random; server a;", {"policy": "random"}),
        ("random two least_conn; server a;", {"policy": "power_of_two_choices"}),
        ("least_time header; server a;", {"policy": "least_response_time"}),
        (
            "hash $request_uri consistent; server a;",
            {"policy": {"name": "consistent_hash", "key": "uri"}},
        ),
        ("hash $remote_addr; server a;", {"policy": {"name": "rendezvous_hash"}}),
        (
            "hash $http_x_user; server a;",
            {"policy": {"name": "rendezvous_hash", "key": "header:X-User"}},
        ),
        ("hash $cookie_id; server a;", {"policy": {"name": "rendezvous_hash", "key": "cookie:id"}}),
        ("hash $arg_q; server a;", {"policy": {"name": "rendezvous_hash", "key": "query:q"}}),
        (
            "server a; sticky cookie S expires=1h secure;",
            {"sticky": {"cookie": "S", "max_age": "1h", "secure": True}},
        ),
        ("server a; queue 10 timeout=5s;", {"queue": {"size": 10, "timeout": "5s"}}),
        ("server a; keepalive 32;", ROUND),
        ("server a; server b; server c; server d; server e; server f;", {"retry": {"attempts": 6}}),
    ],
)
def test_upstreams_become_pools(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    found = of_nginx(tmp_path, upstream(text))
    assert expected.items() <= found.settings.items()
    assert [str(one) for one in found.notes if "down" not in str(one)] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (location("proxy_read_timeout 5s;"), {"timeouts": {"read": "5s"}}),
        (
            location("proxy_connect_timeout 75; proxy_send_timeout 1m;"),
            {"timeouts": {"connect": "75s", "send": "1m"}},
        ),
        (
            location("proxy_next_upstream error timeout http_500 http_502;"),
            {"retry": {"statuses": [500, 502]}},
        ),
        (location("proxy_next_upstream off;"), {"retry": {"attempts": 1}}),
        (
            location("proxy_next_upstream error timeout non_idempotent;"),
            {"retry": {"non_idempotent": True}},
        ),
        (location("proxy_next_upstream_tries 2;"), {"retry": {"attempts": 2}}),
        (location("client_max_body_size 10m;"), {"limits": {"body": "10MB"}}),
        (location("") + "worker_processes auto;", {"workers": "auto"}),
        (location("") + "worker_processes 4;", {"workers": 4}),
        (
            server(
                "listen 8080; location / { proxy_pass http://b.c:9; proxy_set_header Host $host; }"
            ),
            {"targets": ["http://b.c:9"], "listen": ["http://0.0.0.0:8080"]},
        ),
        (
            server("location / { proxy_pass https://1.2.3.4; }"),
            {"targets": ["https://1.2.3.4:443"], "target_tls": {"verify": False}},
        ),
        (
            server(
                "listen 127.0.0.1:81 default_server; listen [::]:81; "
                "location / { proxy_pass http://u; }"
            ),
            {"listen": ["http://127.0.0.1:81", "http://[::]:81"]},
        ),
        (
            server("listen [::]:81 ipv6only=off; location / { proxy_pass http://u; }"),
            {"listen": ["http://[::]:81", "http://0.0.0.0:81"]},
        ),
        (
            server(
                "listen 81 proxy_protocol; set_real_ip_from 10.0.0.0/8; "
                "location / { proxy_pass http://u; }"
            ),
            {
                "listen": [{"url": "http://0.0.0.0:81", "proxy_protocol": True}],
                "trusted_proxies": ["10.0.0.0/8"],
            },
        ),
        (
            server(
                "keepalive_timeout 65; client_header_timeout 5s; "
                "location / { proxy_pass http://u; }"
            ),
            {"timeouts": {"keep_alive": "65s", "header": "5s"}},
        ),
        (
            server("location / { return 301 https://new.example$request_uri; }"),
            {
                "routes": [
                    {"path": "/", "redirect": "https://new.example{uri}", "redirect_status": 301}
                ]
            },
        ),
        (
            server("rewrite ^(.*)$ http://new.example$1 permanent;"),
            {
                "routes": [
                    {"path": "/", "redirect": "http://new.example{uri}", "redirect_status": 301}
                ]
            },
        ),
        (
            server("location = /old { return 302 /new; } location / { proxy_pass http://u; }"),
            {"routes": [{"path": "/old", "redirect": "/new"}]},
        ),
        (
            server("ssl_protocols TLSv1.3; ssl_ciphers HIGH; location / { proxy_pass http://u; }"),
            {"tls": {"min_version": "1.3", "ciphers": "HIGH"}},
        ),
        (
            server("access_log /dev/stdout main; location / { proxy_pass http://u; }"),
            {"access_log": "-"},
        ),
        (
            "upstream u { server a:1; } server { location / { proxy_pass http://u; } }",
            {"targets": ["http://a:1"]},
        ),
    ],
)
def test_directives_become_settings(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    assert expected.items() <= of_nginx(tmp_path, text).settings.items()


@pytest.mark.parametrize(
    "text",
    [
        'proxy_set_header Connection "Upgrade";',
        "proxy_redirect off; proxy_cache off; auth_basic off; allow all;",
    ],
)
def test_what_pyproxy_does_anyway_needs_no_note(tmp_path: Path, text: str) -> None:
    assert of_nginx(tmp_path, location(text)).notes == []


def test_what_targets_are_told_of_tls_has_to_be_so(tmp_path: Path) -> None:
    said = "location / { proxy_pass http://u; proxy_set_header X-Forwarded-Proto https; }"
    assert [one.place.line for one in of_nginx(tmp_path, server(f"listen 80;\n{said}")).notes] == [
        3
    ]
    text = AT_HTTPS.replace("location / { proxy_pass http://u; }", said)
    secure = of_nginx(tmp_path, http(text.replace(TLS, "")))
    assert [one for one in secure.notes if "X-Forwarded-Proto" in one.text] == []


REST = "location / { proxy_pass http://u; }"


SQL = {"path": "/", "endings": [".sql", ".bak"]}


@pytest.mark.parametrize(
    ("text", "route", "noted"),
    [
        ("location /x/ { internal; root .; }", {"path": "/x/", "deny": 404}, True),
        ("location /x { deny all; root .; }", {"path": "/x", "deny": 403}, True),
        ("location = /x { deny all; root .; }", {"path": "/x", "deny": 403}, True),
        ("location ^~ /x/ { return 410; }", {"path": "/x/", "deny": 410}, False),
        ("location /x/ { return 404 gone; }", {"path": "/x/", "deny": 404}, True),
        ("location /x/ { return 444; }", {"path": "/x/", "deny": 403}, True),
        ("location /x/ { return 403; proxy_pass http://u; }", {"path": "/x/", "deny": 403}, False),
        ("location ~ ^/x { return 404; proxy_pass http://u; }", {"path": "/x", "deny": 404}, True),
        ("location ~ \\.(sql|bak)$ { deny all; }", SQL | {"deny": 403}, False),
        ("location ~ \\.(sql|bak)$ { return 404; }", SQL | {"deny": 404}, False),
        (
            "location ~ \\.(sql|bak)$ { return 404; proxy_pass http://u; }",
            SQL | {"deny": 404},
            False,
        ),
    ],
)
def test_what_nobody_gets_there_nobody_gets_here(
    tmp_path: Path, text: str, route: dict[str, Any], noted: bool
) -> None:
    found = of_nginx(tmp_path, server(f"root .; {REST}\n{text}"))
    assert (found.settings["routes"], found.settings["targets"]) == ([route], ["http://a:1"])
    assert {one.place.line for one in found.notes} == ({3} if noted else set())


@pytest.mark.parametrize(
    "text",
    [
        "location /x { return 204; proxy_pass http://u; }",
        "location ~ /x { deny all; }",
        "location ~ \\.(sql|bak)$ { return 200 ok; }",
        "location /x { rewrite ^/x/(.*)$ /y/$1 permanent; }",
        "location = /x.html { }",
        "location ~ \\.php$ { fastcgi_pass a:1; }",
    ],
)
def test_what_routes_cannot_say_becomes_no_route(tmp_path: Path, text: str) -> None:
    for name in ("x", "x.html"):
        (tmp_path / name).mkdir()
    found = of_nginx(tmp_path, server(f"root .; {REST}\n{text}"))
    assert ("routes" in found.settings, found.settings["targets"]) == (False, ["http://a:1"])
    assert [one for one in found.notes if one.place.line == 3]


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("location /x { deny all;\nlocation /x/in { proxy_pass http://u; } }", ["/x", "/x/in"]),
        ("location /x { deny all;\nlocation ~ ^/x/in { proxy_pass http://u; } }", ["/x", "/x/in"]),
        ("location /y { deny all; }\ndeny all;", ["/y"]),
        ("location ^~ /y/ { deny all; }\nlocation ~ \\.css$ { root .; }", ["/y/", "/", "/y/"]),
    ],
)
def test_what_is_denied_is_denied_in_the_locations_within(
    tmp_path: Path, text: str, paths: list[str]
) -> None:
    found = of_nginx(tmp_path, server(f"location / {{ allow all; proxy_pass http://u; }}\n{text}"))
    assert found.settings["targets"] == ["http://a:1"]
    assert [one["path"] for one in found.settings["routes"]] == paths
    denied = [one for one in found.settings["routes"] if "files" not in one]
    assert {one["deny"] for one in denied} == {403}


@pytest.mark.parametrize(
    "text",
    [
        "location / { try_files $uri @no; }\nlocation @no { return 404; }",
        "location ~ \\.php$ { return 404; }",
    ],
)
def test_files_are_served_where_others_get_nothing(tmp_path: Path, text: str) -> None:
    found = of_nginx(tmp_path, server(f"root {tmp_path};\n{text}"))
    routes = [one for one in found.settings["routes"] if "endings" not in one]
    assert routes == [{"path": "/", "files": str(tmp_path)}]
    assert [one for one in found.notes if one.place.line > 2] == []


def test_a_location_with_a_name_is_internal_anyway(tmp_path: Path) -> None:
    text = "location / { try_files $uri @u; }\nlocation @u { internal; proxy_pass http://u; }"
    found = of_nginx(tmp_path, server(text)).settings
    assert (found["targets"], "routes" in found) == (["http://a:1"], False)


def test_what_is_denied_before_files_are_tried_stays_closed(tmp_path: Path) -> None:
    closed = "location /x/ { deny all; try_files $uri @u; }\nlocation @u { proxy_pass http://u; }"
    found = of_nginx(tmp_path, server(f"root .; {REST}\n{closed}"))
    assert found.settings["routes"] == [{"path": "/x/", "deny": 403}]


def test_what_ends_so_is_redirected_and_nothing_else_is(tmp_path: Path) -> None:
    for ending in ("css", "php"):
        moved = f"location ~ \\.{ending}$ {{ return 301 https://new.b$request_uri; }}"
        found = of_nginx(tmp_path, server(f"root .; {REST}\n{moved}"))
        assert found.settings["routes"] == [
            {
                **{"path": "/", "endings": [f".{ending}"]},
                **{"redirect": "https://new.b{uri}", "redirect_status": 301},
            },
        ]
        assert (found.settings["targets"], found.notes) == (["http://a:1"], [])


@pytest.mark.parametrize("runs", ["fastcgi_pass unix:/run/php.sock;", "include missing.conf;"])
def test_files_that_are_run_there_can_t_be_read_here(tmp_path: Path, runs: str) -> None:
    found = of_nginx(
        tmp_path,
        server(
            "root .; index index.php; location /api { proxy_pass http://u; }\n"
            "location / { try_files $uri $uri/ /index.php?$args; }\n"
            f"location ~ \\.php$ {{ {runs} }}\n"
            "location ~ \\.css$ { expires 1h; }\n"
            "location ^~ /open { alias .; }"
        ),
    )
    seen = {one["path"]: one for one in found.settings["routes"]}
    assert set(seen) == {"/api", "/", "/open"}
    assert seen["/"]["endings"] == [".css"]
    assert [one for one in found.notes if one.place.line == 3 and "line 4 runs some" in one.text]


@pytest.mark.parametrize(
    "text", ["location / { try_files $uri @app; }", "try_files $uri/index.html $uri @app;"]
)
def test_what_is_no_file_goes_to_the_location_with_a_name(tmp_path: Path, text: str) -> None:
    rest = "location @app { proxy_pass http://u; proxy_read_timeout 5s; }"
    found = of_nginx(tmp_path, server(f"root .;\n{text}\n{rest}"))
    assert (found.settings["targets"], found.settings["timeouts"]) == (
        ["http://a:1"],
        {"read": "5s"},
    )
    assert [(one.place.line, one.text.split(": ")[1]) for one in found.notes] == [
        (3, "files aren't looked for first")
    ]


def test_a_redirect_may_be_for_all_hosts_that_are_not_known(tmp_path: Path) -> None:
    found = of_nginx(
        tmp_path,
        http(
            f"server {{ server_name a.b; {REST} }}"
            "server { listen 80 default_server; return 301 http://a.b$request_uri; }"
        ),
    )
    a, rest = found.settings["routes"]
    assert (a["host"], a["path"], "targets" in a) == ("a.b", "/", True)
    assert rest == {"path": "/", "redirect": "http://a.b{uri}", "redirect_status": 301}


def test_a_server_that_returns_at_once_serves_none_of_its_locations(tmp_path: Path) -> None:
    text = f"server {{ {REST} }}\nserver {{ server_name b; return 403; {REST} }}"
    found = of_nginx(tmp_path, http(text))
    assert found.settings["routes"] == [{"host": "b", "path": "/", "deny": 403}]
    assert (found.settings["targets"], found.notes) == (["http://a:1"], [])


def test_the_default_is_who_serves_at_an_address_of_its_own(tmp_path: Path) -> None:
    """Where another address refuses strangers; at the same one they are refused."""
    refusing = "server { listen 80 default_server; return 444; }"
    found = of_nginx(tmp_path, http(f"{refusing}\nserver {{ listen 81; {REST} }}"))
    assert found.settings["targets"] == ["http://a:1"]
    assert {one.place.line for one in found.notes} == {2}
    with pytest.raises(ConvertError):
        of_nginx(tmp_path, http(f"{refusing}\nserver {{ {REST} }}"))


@pytest.mark.parametrize(
    ("text", "denied", "line", "said"),
    [
        ("location / { error_page 418 = @u; return 418; }", [], 3, "only redirects can be said"),
        ("satisfy any;\nlocation /x/ { deny all; }", ["/x/"], 3, "nobody is asked who they are"),
        (
            "location /x/y/ { proxy_pass http://u; }\nlocation ~ ^/x { deny all; }",
            ["/x"],
            4,
            "answered there",
        ),
    ],
)
def test_what_a_denial_leaves_open_or_closes_too_much_is_told(
    tmp_path: Path, text: str, denied: list[str], line: int, said: str
) -> None:
    open_ = "location /open { proxy_pass http://u; } location @u { proxy_pass http://u; }"
    found = of_nginx(tmp_path, server(f"{open_}\n{text}"))
    assert [one["path"] for one in found.settings["routes"] if "deny" in one] == denied
    assert [one for one in found.notes if one.place.line == line and said in one.text]


def test_a_server_that_refuses_doesn_t_close_what_another_address_serves(tmp_path: Path) -> None:
    text = f"server {{ {REST} }}\nserver {{ listen 81; server_name b; return 403; }}\n"
    found = of_nginx(tmp_path, http(f"{text}server {{ listen 82; server_name b; {REST} }}"))
    assert [one for one in found.settings["routes"] if "deny" in one] == []
    assert 3 in {one.place.line for one in found.notes}


def test_who_gets_to_be_served_at_other_ports_is_told(tmp_path: Path) -> None:
    found = of_nginx(
        tmp_path,
        http(
            f"server {{ listen 80; listen [::]:80; server_name a; {REST} }}\n"
            f"server {{ listen 127.0.0.1:81; server_name b; {REST} }}"
        ),
    )
    assert [(one.place.line, one.text.split(" too")[0]) for one in found.notes] == [
        (2, "it is served at port 81"),
        (3, "it is served at port 80"),
    ]


@pytest.mark.parametrize("local", ["127.0.0.1", "[::1]", "localhost"])
def test_what_only_this_machine_reaches_is_not_for_everybody(tmp_path: Path, local: str) -> None:
    inner = (
        f"server {{ listen {local}:81 default_server; location / {{ proxy_pass http://in:1; }} }}"
    )
    outer = "server { listen 80; location / { proxy_pass http://out:1; } }"
    for text in (f"{inner} {outer}", f"{outer} {inner}"):
        found = of_nginx(tmp_path, f"http {{ {text} }}")
        assert (found.settings["targets"], "routes" in found.settings) == (["http://out:1"], False)
        assert any("give it a name" in one.text for one in found.notes)
    assert of_nginx(tmp_path, f"http {{ {inner} }}").settings["targets"] == ["http://in:1"]
    inner = f"listen in\n mode http\n bind {local}:81\n server s in:1\n"
    outer = "listen out\n mode http\n bind :80\n server s out:1\n"
    for text in (inner + outer, outer + inner):
        found = of_haproxy(text)
        assert (found.settings["targets"], "routes" in found.settings) == (["http://out:1"], False)
        assert any("serve this one by another proxy" in one.text for one in found.notes)


def test_endings_within_a_location_are_for_its_paths_only(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    within = "location ~ \\.pdf$ { root .; } location ~ \\.php$ { proxy_pass http://c:1; }"
    found = of_nginx(
        tmp_path, server(f"{REST} location /docs {{ proxy_pass http://b:1; {within} }}")
    )
    seen = {(one["path"], *one.get("endings", ())) for one in found.settings["routes"]}
    assert seen == {("/",), ("/docs",), ("/docs", ".pdf"), ("/docs", ".php")}


def test_no_ending_leads_away_from_where_no_regular_expression_counts(tmp_path: Path) -> None:
    """A folder would else be read past the application that guards what is below /mine."""
    (tmp_path / "a.png").write_text("everybody's")
    with letters("ab") as (guarding, other):
        said = (
            "location ^~ /mine/ { proxy_pass http://b; } location = /x.png { proxy_pass http://b; }"
        )
        text = (
            f"http {{ upstream b {{ server 127.0.0.1:{guarding.port}; }} server {{ {said}"
            f" location / {{ proxy_pass http://127.0.0.1:{other.port}; }}"
            f" root {tmp_path}; location ~ \\.png$ {{ expires 1h; }} }} }}"
        )
        given = of_nginx(tmp_path, text).settings | {"listen": "http://127.0.0.1:0"}
        with Proxy(parse(given)) as proxy:
            paths = ("/mine/a.png", "/mine/a", "/x.png", "/a.png", "/a")
            bodies = [get(proxy.url, path).body.decode() for path in paths]
    assert bodies == ["a", "a", "a", "everybody's", "b"]


def test_servers_with_names_become_routes_with_hosts(tmp_path: Path) -> None:
    found = of_nginx(
        tmp_path,
        """
        http {
            server { server_name a.example; location / { proxy_pass http://1.1.1.1; } }
            server {
                server_name .b.example;
                proxy_read_timeout 5s;
                location /x/ { proxy_pass http://2.2.2.2; }
                location ^~ /y { proxy_pass http://3.3.3.3; proxy_read_timeout 7s; }
                location / { return 404; }
            }
        }
        """,
    )
    seen = {
        one.get("host", "") + one["path"]: one.get("deny")
        or (one["targets"][0], one.get("timeouts"))
        for one in found.settings["routes"]
    }
    x, y = ("http://2.2.2.2:80", {"read": "5s"}), ("http://3.3.3.3:80", {"read": "7s"})
    assert seen == {
        "/": ("http://1.1.1.1:80", None),
        "a.example/": ("http://1.1.1.1:80", None),
        **{"b.example/x/": x, "*.b.example/x/": x, "b.example/y": y, "*.b.example/y": y},
        **{"b.example/": 404, "*.b.example/": 404},
    }


def test_locations_for_endings_may_have_targets_too(tmp_path: Path) -> None:
    text = "location ~ \\.php$ { proxy_pass http://1.1.1.1; } location / { proxy_pass http://u; }"
    rest, php = of_nginx(tmp_path, server(text)).settings["routes"]
    assert (php["endings"], php["targets"]) == ([".php"], ["http://1.1.1.1:80"])
    assert rest["targets"] == ["http://a:1"]


TLS = "ssl_certificate c.pem; ssl_certificate_key k.pem;"
AT_HTTPS = (
    f"server {{ listen 443 ssl; server_name a.b; {TLS} location / {{ proxy_pass http://u; }} }}"
)
TO_HTTPS = {"url": "http://0.0.0.0:80", "redirect": "https", "redirect_status": 301}


@pytest.mark.parametrize(
    "text",
    [
        "return 301 https://$host$request_uri;",
        "return 301 https://a.b$request_uri;",
        "location / { return 301 https://$server_name$request_uri; }",
        "rewrite ^ https://$host$request_uri? permanent;",
        "if ($host = a.b) { return 301 https://$host$request_uri; } return 404;",
    ],
)
def test_servers_that_send_all_to_https_become_a_redirect_of_the_address(
    tmp_path: Path, text: str
) -> None:
    for blocks in ((AT_HTTPS, "\n"), ("\n", AT_HTTPS)):
        between = f"server {{ listen 80; server_name a.b; {text} }}".join(blocks)
        found = of_nginx(tmp_path, http(between))
        assert found.notes == []
        assert sorted(found.settings["listen"], key=str) == ["https://0.0.0.0:443", TO_HTTPS]
        assert "routes" not in found.settings


@pytest.mark.parametrize(
    "text",
    [
        "return 301 https://a.b/;",
        "location /.well-known/ { root .; } location / { return 301 https://$host$request_uri; }",
        "location /in { return 301 https://$host$uri; } location / { proxy_pass http://u; }",
        "server_name a.b www.a.b; return 301 https://a.b$request_uri;",
    ],
)
def test_no_redirect_to_https_leads_in_circles(tmp_path: Path, text: str) -> None:
    """Routes are for all addresses, that of https too."""
    for blocks in ((AT_HTTPS, "\n"), ("\n", AT_HTTPS)):
        between = f"server {{ listen 80; server_name a.b; {text} }}".join(blocks)
        found = of_nginx(tmp_path, http(between))
        assert found.notes
        assert found.settings.get("targets") or found.settings["routes"][0]["targets"]
        assert [one for one in found.settings.get("routes", []) if "redirect" in one] == []


def test_who_is_refused_does_not_keep_others_from_https(tmp_path: Path) -> None:
    """A server for hosts that nobody knows stands at the same address."""
    refused = "server { listen 80 default_server; server_name _; return 444; }"
    sent = "server { listen 80; server_name a.b; return 301 https://$host$request_uri; }"
    found = of_nginx(tmp_path, http(f"{refused}\n{sent} {AT_HTTPS}"))
    assert sorted(found.settings["listen"], key=str) == ["https://0.0.0.0:443", TO_HTTPS]
    assert {one.place.line for one in found.notes} == {2}


@pytest.mark.parametrize("condition", ["= b.b", "= a.b", "!= a.b", "~ b"])
def test_a_redirect_of_one_host_is_not_for_the_others(tmp_path: Path, condition: str) -> None:
    sent = f"if ($host {condition}) {{ return 301 http://a.b$request_uri; }}"
    names = "listen 80; server_name a.b b.b; root .;"
    found = of_nginx(tmp_path, f"http {{ server {{ {names}\n{sent} }} }}")
    assert found.settings["routes"] == [{"path": "/", "files": f"{tmp_path}/."}]
    assert {one.place.line for one in found.notes} == {2}


@pytest.mark.parametrize(
    ("around", "within"),
    [
        ("ssl_client_certificate ca.pem;", "ssl_verify_client on;"),
        ("ssl_verify_client on;", "ssl_client_certificate ca.pem;"),
        ("", "ssl_client_certificate ca.pem; ssl_verify_client on;"),
        ("ssl_client_certificate ca.pem; ssl_verify_client on;", ""),
    ],
)
def test_clients_need_certificates_wherever_that_is_said(
    tmp_path: Path, around: str, within: str
) -> None:
    at_https = AT_HTTPS.replace(TLS, f"{TLS} {within}")
    for text in (
        http(f"{around} {at_https}"),
        f"stream {{ {around} server {{ listen 1 ssl; proxy_pass a:1; {TLS} {within} }} }}",
    ):
        found = of_nginx(tmp_path, text)
        assert found.settings["tls"]["client_ca"] == f"{tmp_path}/ca.pem"
        assert found.notes == []


def test_whose_clients_come_to_need_certificates_is_told(tmp_path: Path) -> None:
    asking = AT_HTTPS.replace(TLS, f"{TLS} ssl_client_certificate ca.pem; ssl_verify_client on;")
    found = of_nginx(tmp_path, http(f"{asking}\n{AT_HTTPS.replace('a.b', 'c.d')}"))
    assert [(one.place.line, "clients need" in one.text) for one in found.notes] == [(3, True)]


def test_a_stream_asks_one_server_only_if_it_says_so_and_has_no_log(tmp_path: Path) -> None:
    for text, retry in (("off", {"retry": {"attempts": 1}}), ("on", {})):
        found = of_nginx(
            tmp_path,
            f"stream {{ proxy_next_upstream {text};\nserver {{ listen 1; proxy_pass a:1;\n"
            "access_log a.log; } }",
        )
        assert found.settings["tcp"] == [
            {"listen": "0.0.0.0:1", "targets": ["tcp://a:1"], **retry},
        ]
        assert [(one.place.line, "not of what" in one.text) for one in found.notes] == [(3, True)]


def test_a_stream_trusts_the_proxies_before_it(tmp_path: Path) -> None:
    trust = "set_real_ip_from 10.0.0.0/8;"
    for around, within in ((trust, ""), ("", trust)):
        relay = f"server {{ listen 1 proxy_protocol; proxy_pass a:1; {within} }}"
        found = of_nginx(tmp_path, f"stream {{ {around} {relay} }}")
        assert found.settings["trusted_proxies"] == ["10.0.0.0/8"]
        assert found.notes == []


def test_a_redirect_to_https_elsewhere_is_a_route(tmp_path: Path) -> None:
    found = of_nginx(tmp_path, server("return 301 https://$host$request_uri;"))
    assert found.settings["routes"] == [
        {"path": "/", "redirect": "https://{host}{uri}", "redirect_status": 301}
    ]


def test_files_have_their_folder_and_life(tmp_path: Path) -> None:
    for name in ("static/css", "pictures"):
        (tmp_path / name).mkdir(parents=True)
    found = of_nginx(
        tmp_path,
        "server {"
        """
            location /css/ { root static; expires max; }
            location /p { alias pictures; index a.html; add_header Cache-Control "max-age=60"; }
            location ~* \\.(png|jpe?g)$ { root static; expires 1h; }
            location / { root static; }
        }
        """,
    )
    assert found.notes == []
    static = str(tmp_path / "static")
    assert found.settings["routes"] == [
        {"path": "/css/", "files": f"{static}/css", "expires": "3650d"},
        {"path": "/p", "files": str(tmp_path / "pictures"), "index": "a.html", "expires": "1m"},
        {"path": "/", "files": static},
        {"path": "/", "endings": [".png", ".jpeg", ".jpg"], "files": static, "expires": "1h"},
    ]


def test_a_stream_becomes_tcp_entries(tmp_path: Path) -> None:
    found = of_nginx(
        tmp_path,
        """
        stream {
            upstream db { least_conn; server 10.0.0.1:5432; server 10.0.0.2:5432 backup; }
            map $ssl_preread_server_name $to {
                hostnames; a.example db; .b.example db; ~^c db; default 10.0.0.9:443;
            }
            server { listen 5432; proxy_pass db; proxy_timeout 1h; proxy_protocol on; }
            server { listen 443; proxy_pass $to; ssl_preread on; }
            server { listen 53 udp; proxy_pass db; }
            server { listen 6000-6009; proxy_pass db; }
        }
        """,
    )
    db, named, *below, rest = found.settings["tcp"]
    assert db == {
        "listen": "0.0.0.0:5432",
        "send_proxy": 1,
        "targets": ["tcp://10.0.0.1:5432", {"url": "tcp://10.0.0.2:5432", "backup": True}],
        "policy": "least_connections",
        "timeouts": {"idle": "1h"},
    }
    assert (named["server_name"], named["listen"]) == ("a.example", rest["listen"])
    assert "server_name" not in rest
    assert [str(one).partition(": ")[2] for one in found.notes] == [
        "~^c db: servers' names are names, or *. and a name",
        "listen 53 udp: UDP isn't relayed",
        "listen 6000-6009: ports are listened on one by one: say each",
    ]
    assert [one["server_name"] for one in below] == ["b.example", "*.b.example"]


def test_includes_are_followed_and_tell_their_own_lines(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "site.conf").write_text(
        "server {\n  gzip on;\n  location / { proxy_pass http://u; }\n}\n"
    )
    found = of_nginx(
        tmp_path,
        "http {\n upstream u { server a:1; }\n include conf.d/*.conf;\n brotli on;\n"
        " include missing.conf;\n}\n",
    )
    assert found.settings["targets"] == ["http://a:1"]
    told = [str(one).removeprefix(f"{tmp_path}/") for one in found.notes]
    assert [one.split(": ")[0] for one in told] == [
        "conf.d/site.conf:2",
        "nginx.conf:4",
        "nginx.conf:5",
    ]
    assert "No such file" in told[2]


def test_an_include_of_itself_is_no_loop(tmp_path: Path) -> None:
    text = location("") + "\ninclude nginx.conf;"
    assert of_nginx(tmp_path, text).settings["targets"] == ["http://a:1"]


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        (server("gzip on;\nlocation / { proxy_pass http://u; }"), 2, "compress in the application"),
        (server("location / { proxy_pass http://u/sub/; }"), 2, "targets get the path as it came"),
        (
            server(
                "location / { proxy_pass http://u; }\nlocation ~ ^/(a|b) { proxy_pass http://u; }"
            ),
            3,
            "regular expressions",
        ),
        (
            server("location / { proxy_pass http://u; }\nlocation /f { fastcgi_pass a:1; }"),
            3,
            "isn't served",
        ),
        (
            server(
                "server_name a;\nlocation / { proxy_pass http://u; }\n"
                "location ~ \\.php$ { fastcgi_pass p:1; }"
            ),
            4,
            "so * ~ \\.php$ isn't served",
        ),
        (
            server("location / { proxy_pass http://u; }\nlocation /f { return 204; }"),
            3,
            "only redirects can be said",
        ),
        (location("proxy_set_header X-A b;"), 2, "fields can't be set"),
        (location("limit_except GET { deny all; }"), 2, "for all methods"),
        (
            server(
                "if ($scheme = http) { return 301 https://$host; }\n"
                "location / { proxy_pass http://u; }"
            ),
            2,
            "of the plain address",
        ),
        (location("client_body_timeout 5s;"), 2, "timeouts.read is what bounds"),
        (location("access_log a.log combined if=$x;"), 2, "all requests are logged"),
        (
            server('location / { root .;\nadd_header Cache-Control "private, max-age=60"; }'),
            3,
            "let the application do it",
        ),
        (
            server(
                "location / { root .; }\nlocation ~ \\.js$ { rewrite ^/v1(.*)$ $1 break; }\nroot .;"
            ),
            3,
            "targets get the path as it came",
        ),
        (
            server(
                "listen 443 ssl; location / { proxy_pass http://u; }\n"
                "ssl_certificate a; ssl_certificate_key a;\n"
                "ssl_certificate b; ssl_certificate_key b;"
            ),
            3,
            "one certificate",
        ),
        (location("break;"), 2, "break: targets get the path as it came"),
        (
            location("client_max_body_size 1m;") + "server { client_max_body_size 0; }",
            3,
            "one limits.body for all",
        ),
        (location("limit_req zone=a;"), 2, "nothing limits who asks how often"),
        (location("deny 10.0.0.1;"), 2, "everybody may ask"),
        (location("auth_basic x;"), 2, "let the application do it"),
        (location("") + "ssl_conf_command Ciphersuites A;", 3, "nothing like it"),
        (location("access_log a.log main;"), 2, "combined ones, not main: say access_log.format"),
        (
            server("location / { proxy_pass http://u; access_log off; }\naccess_log a.log;"),
            2,
            "logged for all or for none",
        ),
        (location("some_module on;"), 2, "pyproxy has nothing like it"),
        (location("add_header X-Frame-Options DENY;"), 2, "fields can't be added to answers"),
        (
            server("ssl_protocols TLSv1 TLSv1.2;\nlocation / { proxy_pass http://u; }"),
            2,
            "TLSv1 are not spoken",
        ),
        (server("listen 443 ssl;\nlocation / { proxy_pass http://u; }"), 2, "pyproxy certificate"),
        (server("listen unix:/a;\nlocation / { proxy_pass http://u; }"), 2, "aren't listened on"),
        (upstream("server a;\nserver b max_fails=2;"), 1, "max_fails is one for all"),
        (upstream("server a;\nserver unix:/b;"), 2, "by TCP only"),
        (upstream("server a;\nserver b down;"), 2, "`pyproxy add`"),
        (upstream("server a;\nserver a;"), 2, "stands in line 1 already"),
        (upstream("server a weight=1000;\nserver b;"), 1, "weights go up to 256"),
        (upstream("hash $host;\nserver b;"), 1, "there is no such key"),
        (
            server("location / { root nowhere; }\nlocation /a { proxy_pass http://u; }"),
            2,
            "is not a folder",
        ),
        (
            server("location / { proxy_pass http://$x; }\nlocation /a { proxy_pass http://u; }"),
            2,
            "without variables",
        ),
        (
            http(
                "server { location / { proxy_pass http://u; } }\n"
                "server { server_name b; location / { proxy_pass http://u; } }\n"
                "server { server_name b; location / { proxy_pass http://c; } }"
            ),
            4,
            "is what line 3 serves",
        ),
    ],
)
def test_what_has_no_equivalent_is_told_with_its_line(
    tmp_path: Path, text: str, line: int, part: str
) -> None:
    notes = [str(one) for one in of_nginx(tmp_path, text).notes]
    assert [one for one in notes if one.startswith(f"{tmp_path}/nginx.conf:{line}: ")], notes
    assert [one for one in notes if part in one], notes


# HAProxy's


def of_haproxy(text: str) -> Converted:
    return haproxy.convert(textwrap.dedent(text), "haproxy.cfg")


def backend(text: str, mode: str = "http") -> str:
    lines = "\n".join(f"  {one}" for one in text.split("; "))
    return f"listen x\n  bind :80\n  mode {mode}\n{lines}\n"


TWICE = {"header": "5s", "keep_alive": "5s"}
CHECKED = {"interval": "2s", "timeout": "2s", "rise": 2, "fall": 3, "tcp": True}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server a a:1", {"targets": ["http://a:1"], **ROUND, "listen": ["http://0.0.0.0:80"]}),
        (
            "server a a:1 weight 3 backup maxconn 9 slowstart 30s",
            {
                "targets": [
                    {
                        "url": "http://a:1",
                        "weight": 3,
                        "backup": True,
                        "max_connections": 9,
                        "slow_start": "30s",
                    }
                ]
            },
        ),
        ("server a a:1 check", {"health": CHECKED, "sleeping": "2s"}),
        (
            "server a a:1 check inter 5s rise 1 fall 4 downinter 1s",
            {
                "health": {"interval": "5s", "timeout": "5s", "rise": 1, "fall": 4, "tcp": True},
                "sleeping": "1s",
            },
        ),
        ("default-server check inter 9s; server a a:1", {"sleeping": "9s"}),
        (
            "server a a:1 ssl verify none",
            {"targets": ["https://a:1"], "target_tls": {"verify": False}},
        ),
        ("server a a:1 send-proxy-v2", {"send_proxy": 2}),
        ("server-template a 3 a.example:1", {"targets": ["dns://a.example:1"]}),
        ("server a a:1 disabled; server b b:1", {"targets": ["http://b:1"]}),
        ("server a 2001:db8::1:80", {"targets": ["http://[2001:db8::1]:80"]}),
        ("balance leastconn; server a a:1", {"policy": "least_connections"}),
        ("balance source; server a a:1", {"policy": "ip_hash"}),
        ("balance static-rr; server a a:1 weight 2", {"policy": "weighted_round_robin"}),
        (
            "balance uri; hash-type consistent; hash-balance-factor 150; server a a:1",
            {"policy": {"name": "consistent_hash", "key": "uri", "bounded_load": 1.5}},
        ),
        (
            "balance hdr(X-User); server a a:1",
            {"policy": {"name": "rendezvous_hash", "key": "header:X-User"}},
        ),
        (
            "balance url_param id; server a a:1",
            {"policy": {"name": "rendezvous_hash", "key": "query:id"}},
        ),
        ("balance random; server a a:1", {"policy": "power_of_two_choices"}),
        ("balance random(1); server a a:1", {"policy": "random"}),
        ("balance first; server a a:1 maxconn 2", {"policy": "first"}),
        (
            "retry-on all-retryable-errors; server a a:1",
            {"retry": {"statuses": [500, 502, 503, 504]}},
        ),
        ("timeout http-request 5s; timeout client 9s; server a a:1", {"timeouts": TWICE}),
        ("http-request set-header X-Forwarded-For %[src]; http-reuse safe; server a a:1", ROUND),
        (
            "cookie S insert indirect secure maxlife 1h; server a a:1 cookie a",
            {"sticky": {"cookie": "S", "secure": True, "max_age": "1h"}},
        ),
        (
            "retries 2; option redispatch; retry-on conn-failure 503; server a a:1",
            {"retry": {"attempts": 3, "statuses": [503]}},
        ),
        (
            "timeout connect 3000; timeout server 1m; timeout tunnel 1h; timeout http-request 5s; "
            "timeout http-keep-alive 2s; server a a:1",
            {
                "timeouts": {
                    "connect": "3s",
                    "idle": "1h",
                    "read": "1m",
                    "send": "1m",
                    "header": "5s",
                    "keep_alive": "2s",
                }
            },
        ),
        (
            "timeout queue 5s; timeout check 1s; server a a:1 check",
            {"queue": {"timeout": "5s"}, "health": {**CHECKED, "timeout": "1s"}},
        ),
    ],
)
def test_what_haproxy_says_becomes_settings(text: str, expected: dict[str, Any]) -> None:
    found = of_haproxy(backend(text))
    assert expected.items() <= found.settings.items()
    assert [one for one in map(str, found.notes) if "disabled" not in one] == []


@pytest.mark.parametrize(
    ("text", "health"),
    [
        ("option httpchk GET /h; http-check expect status 200", {"path": "/h", "status": [200]}),
        (
            "option httpchk; http-check send meth GET uri /h; http-check expect status 200-202",
            {"path": "/h", "status": [200, 201, 202]},
        ),
        ("option httpchk GET /; http-check expect string fine", {"path": "/", "body": "fine"}),
    ],
)
def test_checks_by_http_become_health(text: str, health: dict[str, Any]) -> None:
    found = of_haproxy(backend(f"{text}; server a a:1 check"))
    assert health.items() <= found.settings["health"].items()
    assert "tcp" not in found.settings["health"]


def test_frontends_lead_to_backends_by_host_and_path() -> None:
    found = of_haproxy(
        """
        defaults
            mode http
        frontend web
            bind :80
            bind :443 ssl crt site.pem ssl-min-ver TLSv1.3
            http-request redirect scheme https code 301 unless { ssl_fc }
            acl api path_beg /api /v1
            acl here hdr(host) -i a.example
            use_backend one if api here
            use_backend two if { hdr_end(host) -i .b.example } || { path_beg /two }
            use_backend two if { src 10.0.0.0/8 }
            redirect prefix https://new.example code 301 if { hdr(host) old.example }
            default_backend three
        backend one
            server a 10.0.0.1:1
        backend two
            server a 10.0.0.2:1
        backend three
            server a 10.0.0.3:1
        """
    )
    assert found.settings["listen"] == [
        {"url": "http://0.0.0.0:80", "redirect": "https", "redirect_status": 301},
        "https://0.0.0.0:443",
    ]
    assert found.settings["tls"] == {"certificate": "site.pem", "min_version": "1.3"}
    seen = {
        (one.get("host"), one["path"]): one.get("redirect") or one["targets"][0]
        for one in found.settings["routes"]
    }
    assert seen == {
        ("a.example", "/api"): "http://10.0.0.1:1",
        ("a.example", "/v1"): "http://10.0.0.1:1",
        ("*.b.example", "/"): "http://10.0.0.2:1",
        (None, "/two"): "http://10.0.0.2:1",
        ("old.example", "/"): "https://new.example{uri}",
        (None, "/"): "http://10.0.0.3:1",
    }
    assert [str(one) for one in found.notes] == [
        "haproxy.cfg:12: use_backend two if { src 10.0.0.0/8 }: routes go by host, path and ending "
        "only: say these by another proxy"
    ]


def test_a_frontend_may_go_by_the_ending_of_the_path() -> None:
    found = of_haproxy(
        """
        frontend web
            mode http
            bind :80
            acl picture path_end -i .png .JPG
            use_backend api if { path_beg /api }
            use_backend pictures if picture { hdr(host) a.example }
            use_backend pictures if { path_end .gif }
            use_backend pictures if { path_end .png } { path_end .gif }
            use_backend pictures if { path_end /index }
            use_backend later if { path_beg /gifs } { path_end .gif }
            default_backend api
        backend api
            mode http
            server a a:1
        backend pictures
            mode http
            server p p:1
        backend later
            mode http
            server l l:1
        """
    )
    seen = [
        (one.get("host"), one["path"], one.get("endings"), one["targets"][0])
        for one in found.settings["routes"]
    ]
    assert seen == [
        (None, "/api", None, "http://a:1"),
        ("a.example", "/", [".png", ".jpg"], "http://p:1"),
        (None, "/", [".gif"], "http://p:1"),
        (None, "/", None, "http://a:1"),
    ]
    told = {(one.place.line, one.text.partition(": ")[2]) for one in found.notes}
    assert told >= {
        (7, "a route for this host goes before those for any host"),
        (8, "a route for endings goes before those for paths"),
        (9, "no request is for all of that: left out"),
        (10, "routes go by host, path and ending only: say these by another proxy"),
        (11, "a line above matches all that: left out"),
    }


def front(text: str) -> str:
    """From line 5 on, in a frontend."""
    lines = "\n".join(f" {one}" for one in text.split("; "))
    said = f"{lines}\n mode http\n bind :80\n default_backend b\n"
    return f"backend b\n mode http\n server b b:1\nfrontend f\n{said}"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("http-request set-header X-Forwarded-For %[hdr(CF-IP)]", 5, "passed on as they are"),
        ("http-request set-header X-Forwarded-Proto https", 5, "passed on as they are"),
        ("http-request deny if { src 1.1.1.1 }", 5, "only hosts, paths and endings can be denied"),
        ("http-request deny if { path / }", 5, "only hosts, paths and endings can be denied"),
        ("redirect location /app/ if { path / }", 5, "redirects go by host, path and ending only"),
        ("http-request deny unless { path /a }", 5, "only hosts, paths and endings can be denied"),
        ("use_backend b if { path_beg /a } { path_beg /b }", 5, "no request is for all of that"),
        ("use_backend b if { req.ssl_sni a.b }", 5, "routes go by host, path and ending only"),
        ("redirect location /a if { req.ssl_sni a.b }", 5, "redirects go by host, path and ending"),
        ("acl a path_beg -i /a", 5, "heed the case"),
        ("unique-id-header X-Id", 5, "nothing like it"),
        ("bind :81 ssl crt-list /a strict-sni", 5, "nothing is like crt-list, strict-sni"),
    ],
)
def test_what_a_frontend_says_isn_t_dropped(text: str, line: int, said: str) -> None:
    found = of_haproxy(front(text))
    assert found.settings["targets"] == ["http://b:1"]
    assert {one.place.line for one in found.notes} == {line}
    assert [one for one in found.notes if said in one.text], found.notes


@pytest.mark.parametrize(
    ("text", "denied", "noted"),
    [
        ("http-request deny if { path_beg /x/ }", [("", "/x/", 403)], []),
        ("acl a path /x; http-request deny deny_status 404 if a", [("", "/x", 404)], [5, 6]),
        (
            "http-request deny if { path_beg /api/x/ }",
            [("", "/api/x/", 403), ("h", "/api/x/", 403)],
            [],
        ),
        ("http-request deny if { hdr(host) g }", [("g", "/", 403)], []),
        ("http-request deny if { path_beg / }", [("", "/", 403), ("h", "/api", 403)], [6]),
    ],
)
def test_what_a_frontend_denies_no_narrower_route_opens(
    text: str, denied: list[tuple[str, str, int]], noted: list[int]
) -> None:
    found = of_haproxy(front(f"{text}; use_backend b if {{ hdr(host) h }} {{ path_beg /api }}"))
    routes = found.settings["routes"]
    told = [(one.get("host", ""), one["path"], one["deny"]) for one in routes if "deny" in one]
    assert set(told) == set(denied)
    assert [one.place.line for one in found.notes if one.place.line < 7] == noted


@pytest.mark.parametrize("who", ["src 10.0.0.0/8", "path_beg /public/", "path_beg /admin/in/"])
def test_what_some_are_allowed_before_is_denied_to_nobody(who: str) -> None:
    found = of_haproxy(
        front(f"http-request allow if {{ {who} }}; http-request deny if {{ path_beg /admin/ }}")
    )
    if "public" in who:  # which has nothing to do with it
        assert found.settings["routes"] == [{"path": "/admin/", "deny": 403}]
    else:
        assert "routes" not in found.settings
        assert [one for one in found.notes if "a line above allows some of it" in one.text]
    found = of_haproxy(front(f"http-request allow if {{ {who} }}; http-request deny"))
    assert ("routes" in found.settings, found.settings["targets"]) == (False, ["http://b:1"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("redirect scheme https if !{ ssl_fc }", "a pool doesn't redirect"),
        ("http-request redirect location /a if { path /b }", "a pool doesn't redirect"),
        ("stats enable", "say admin.listen"),
        ("option httpchk GET / HTTP/1.1\\r\\nHost:\\ a", "header fields of their own"),
        ("option httpchk; http-check send meth GET uri / hdr Host a", "header fields of their own"),
        ("server t t:1 proto h2 check", "asked by HTTP/1.1"),
        ("server t t:1 check send-proxy", "PROXY headers go to all targets or to none"),
        ("server-template t 2 _http._tcp.t", "SRV records"),
        ("server t t:1 check ssl sni str(a)", "nothing is like sni"),
        ("server t t:1 ssl ssl-min-ver TLSv1.3", "TLS 1.2 or newer"),
        ("server t t:1 check fastinter 1s", "no more often than others"),
        ("balance hdr(host) use_domain_only", "without use_domain_only"),
        ("balance url_param id check_post", "without check_post"),
    ],
)
def test_what_a_backend_says_isn_t_dropped(text: str, said: str) -> None:
    lines = "\n".join(f" {one}" for one in text.split("; "))
    found = of_haproxy(
        "frontend f\n mode http\n bind :80\n default_backend b\n"
        f"backend b\n mode http\n server b b:1 check\n{lines}\n"
    )
    assert [one.place.line for one in found.notes if said in one.text], found.notes


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 1, 3)])
def test_one_target_without_verification_is_none_for_the_others(order: tuple[int, ...]) -> None:
    lines = [f"server s{at} s:{at} ssl verify required ca-file {at}.pem" for at in order]
    lines[order.index(2)] = "server s2 s:2 ssl verify none"
    found = of_haproxy(backend("; ".join(lines)))
    first = next(at for at in order if at != 2)
    assert found.settings["target_tls"] == {"verify": True, "ca": f"{first}.pem"}
    told = " ".join(one.text for one in found.notes)
    assert "or of none: of all here" in told
    assert "one ca-file for all targets" in told
    found = of_haproxy(f"global\n ssl-server-verify none\n{backend('server s s:1 ssl')}")
    assert found.settings["target_tls"] == {"verify": True}
    assert {one.place.line for one in found.notes} == {2}


def stats(text: str) -> Converted:
    """Lines from 6 on."""
    lines = "\n".join(f" {one}" for one in text.split("; "))
    serves = "listen x\n mode http\n bind :80\n server x x:1\n"
    return of_haproxy(f"{serves}listen stats\n mode http\n stats enable\n{lines}\n")


def test_the_dashboard_lets_nobody_in_by_more_than_statistics_did() -> None:
    """Its API can change what a page of statistics can only show, and it has no TLS."""
    login = "stats auth a:b; stats admin if TRUE"
    found = stats(f"bind :81; {login}")
    assert found.settings["admin"]["listen"] == "http://0.0.0.0:81"
    assert len(found.notes) == 1
    found = stats(f"bind :81 ssl crt a.pem; {login}")
    assert found.settings["admin"]["listen"] == "http://127.0.0.1:81"
    assert any("doesn't speak TLS" in one.text for one in found.notes)
    for text in ("stats hide-version", "stats admin if LOCALHOST"):
        found = stats(f"bind :81; stats auth a:b; {text}")
        assert any("may change targets" in one.text for one in found.notes)
    found = stats(f"bind :81; {login}; stats http-request deny if {{ src 1.1.1.1 }}")
    assert any("may see and change all" in one.text for one in found.notes)
    for text in ("enable", "uri /a"):
        found = of_haproxy(f"defaults\n stats {text}\n{backend('server x x:1')}")
        assert {one.place.line for one in found.notes} == {2}


def test_all_are_sent_to_https_even_if_that_is_elsewhere() -> None:
    found = of_haproxy(front("http-request redirect scheme https code 301 unless { ssl_fc }"))
    assert found.settings["routes"] == [
        {"path": "/", "redirect": "https://{host}{uri}", "redirect_status": 301}
    ]
    assert "nothing else of it is here" in found.notes[-1].text


def test_conditions_are_for_what_all_of_them_match() -> None:
    found = of_haproxy(
        front(
            "acl api path_beg /api; use_backend b if api { path_beg /api/v1 }; "
            "use_backend b if { hdr_end(host) .a.b } { hdr(host) c.a.b }"
        )
    )
    seen = [(one.get("host"), one["path"]) for one in found.settings["routes"]]
    assert seen[:2] == [(None, "/api/v1"), ("c.a.b", "/")]


@pytest.mark.parametrize("text", ["cookie S prefix nocache", "cookie S rewrite", "cookie S"])
def test_the_application_s_cookie_stays_its_own(text: str) -> None:
    """The proxy takes its cookie out of requests."""
    found = of_haproxy(backend(f"{text}; server a a:1 cookie a"))
    assert found.settings["sticky"] == {"cookie": "S_target"}
    assert [one.place.line for one in found.notes] == [4]


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("listen x 0.0.0.0:81\n mode http\n server a a:1", "http://0.0.0.0:81"),
        ("listen x\n mode http\n bind :::81\n server a a:1", "http://[::]:81"),
        ("listen x\n mode http\n bind ::1:81\n server a a:1", "http://[::1]:81"),
        (
            "listen x\n mode http\n bind :::81 v4v6\n server a a:1",
            "http://[::]:81 http://0.0.0.0:81",
        ),
    ],
)
def test_addresses_are_said_in_more_ways_than_one(text: str, listen: str) -> None:
    assert of_haproxy(text).settings["listen"] == listen.split()


def test_a_disabled_backend_serves_nobody() -> None:
    found = of_haproxy(
        front("use_backend x if { path /x }") + "backend x\n disabled\n server x x:1"
    )
    assert found.settings["targets"] == ["http://b:1"]
    assert "routes" not in found.settings
    assert [one.place.line for one in found.notes if "is disabled" in one.text] == [5]


def test_a_frontend_that_listens_nowhere_is_left_out() -> None:
    found = of_haproxy(front("acl a path /") + "frontend g\n mode http\n default_backend b\n")
    assert "g listens nowhere: left out" in [one.text for one in found.notes]


def test_at_which_address_clients_come_to_need_certificates_is_told() -> None:
    found = of_haproxy(
        "listen x\n mode http\n server a a:1\n"
        " bind :1 ssl crt a ca-file b verify required\n bind :2 ssl crt a\n bind :3\n"
    )
    assert [(one.place.line, "clients need" in one.text) for one in found.notes] == [(5, True)]


def test_a_smaller_limit_and_another_login_are_told() -> None:
    found = of_haproxy(
        "global\n maxconn 9\n"
        "listen x\n mode http\n bind :80\n maxconn 5\n server a a:1\n"
        "listen s\n mode http\n bind :81\n stats enable\n stats auth a:b\n stats auth c:d\n"
    )
    assert found.settings["limits"] == {"connections": 9}
    assert {6, 12} <= {one.place.line for one in found.notes}


def test_tcp_mode_becomes_tcp_entries() -> None:
    found = of_haproxy(
        """
        defaults
            mode tcp
            timeout client 1m
            timeout server 2m
        listen db
            bind 127.0.0.1:5432
            balance leastconn
            server a 10.0.0.1:5432 check
            server b 10.0.0.2:5432 check backup
        frontend names
            bind :443
            tcp-request inspect-delay 5s
            tcp-request content accept if { req.ssl_hello_type 1 }
            use_backend named if { req.ssl_sni -i a.example }
            use_backend named if { req.ssl_sni -m end .b.example }
            use_backend named if { req.ssl_sni -m beg c }
        backend named
            server a 10.0.0.3:443
        listen several
            bind :6000
            server-template a 2 a.example:6000
        """
    )
    assert [(one.place.line, one.text.split(": ")[1]) for one in found.notes] == [
        (17, "connections go by the name in TLS only")
    ]
    db, named, below, several = found.settings["tcp"]
    assert below["server_name"] == "*.b.example"
    assert several["targets"] == ["dns://a.example:6000"]
    assert db == {
        "listen": "127.0.0.1:5432",
        "targets": ["tcp://10.0.0.1:5432", {"url": "tcp://10.0.0.2:5432", "backup": True}],
        "health": {"interval": "2s", "timeout": "2s", "rise": 2, "fall": 3},
        "sleeping": "2s",
        "timeouts": {"idle": "2m"},
        "policy": "least_connections",
    }
    assert (named["listen"], named["server_name"]) == ("0.0.0.0:443", "a.example")


def test_servers_said_twice_are_joined() -> None:
    """As the article shows them: once with weights, once more with cookies."""
    found = of_haproxy(
        backend("server a a:1 check weight 3; cookie S insert; server a a:1 check cookie a")
    )
    assert found.settings["targets"] == [{"url": "http://a:1", "weight": 3}]
    assert [str(one).split(": ")[0] for one in found.notes] == ["haproxy.cfg:6"]


def test_haproxy_lines_without_equivalent_are_told() -> None:
    found = of_haproxy(
        "global\n  log /dev/log local0\n"
        + backend(
            "stick-table type ip size 1m; http-request deny if { src 1.1.1.1 }; wonder on; "
            "server a a:1 track b/c"
        )
    )
    assert of_haproxy(f"global\n ssl-default-bind-ciphersuites A\n{backend('server a a:1')}").notes
    lines = dict(str(one).removeprefix("haproxy.cfg:").split(": ", 1) for one in found.notes)
    assert set(lines) == {"2", "6", "7", "8", "9"}
    assert lines["8"] == "wonder on: pyproxy has nothing like it"
    assert lines["9"].endswith("nothing is like track")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("server a a:1\n", 'haproxy.cfg:1: "server" stands before any section'),
        ('listen "x\n', "haproxy.cfg:1: no closing quotation"),
        ("listen x from y\n", 'haproxy.cfg:1: there is no section "defaults y"'),
        ("global\n daemon\n", "haproxy.cfg: nothing in it that pyproxy could serve"),
    ],
)
def test_broken_files_of_haproxy_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConvertError, match=re.escape(said)):
        of_haproxy(text)


# For who reads the converters


@pytest.mark.parametrize("package", [haproxy, nginx])
def test_directives_are_translated_where_the_package_says(package: ModuleType) -> None:
    folder = Path(package.__file__ or "").parent
    rows = re.findall(r"(?m)^(here|`(\w+)`) +(.*(?:\n {10}.*)*)", package.__doc__ or "")
    assert {name for _, name, _ in rows} >= {"pools", "part", "words"}
    for _, name, told in rows:
        text = (folder / f"{name or '__init__'}.py").read_text()
        for word in re.findall("`([^`]+)`", told):
            missing = [part for part in word.split() if part not in text]
            assert not missing, f"{name} has no {word}"


# Whatever is in a file

_NAMES = sorted(crossplane.analyzer.DIRECTIVES)
_SOME = r"""
/ /a = ~ ~* ^~ \.(css|js)$ 80 443 ssl 0 -1 on off a:1 [::1]:2 unix:/x http://a http://u/x u two ^
https://a:70000 $host ${x} 10s 1m30s 99999999999999999999 10m weight=0 weight=300 weight=x 301 *.a
https://$host$request_uri http_500 max_fails=x cookie least_conn permanent TLSv1.2 max-age=5 .a é
"""
_VALUES = st.sampled_from([*_SOME.split(), "", "a b", "x" * 300, "\x01", "{", ";"])
_COMMON = ["server", "location", "listen", "proxy_pass", "root", "alias", "expires", "return", "if"]
_COMMON += ["upstream", "server_name", "hash", "sticky", "rewrite", "ssl_certificate", "add_header"]
_BLOCKS = ["http", "server", "location", "upstream", "stream", "if", "map", "types", "events"]


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[^\s{};\"'#\\\x01]+", word) else json.dumps(word)


def _statement(name: str, values: list[str], block: str | None) -> str:
    head = " ".join([name, *map(_quoted, values)])
    return f"{head};\n" if block is None else f"{head} {{\n{block}}}\n"


_NAMES_OF_ANY = st.sampled_from(_COMMON) | st.sampled_from(_NAMES)
_SIMPLE = st.builds(_statement, _NAMES_OF_ANY, st.lists(_VALUES, max_size=4), st.none())
_TREES = st.recursive(
    _SIMPLE,
    lambda inner: st.builds(
        _statement,
        st.sampled_from(_BLOCKS),
        st.lists(_VALUES, max_size=2),
        st.lists(inner, max_size=6).map("".join),
    ),
    max_leaves=25,
)
_SERVERS = st.lists(_TREES, max_size=4).map("".join)


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(_SERVERS, _SERVERS, _SERVERS)
def test_no_file_that_crossplane_reads_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, top: str, inside: str, below: str
) -> None:
    text = f"{top}http {{ {inside}\nserver {{ {below} }} }}"
    with contextlib.suppress(ConvertError):
        parse(of_nginx(tmp_path_factory.mktemp("any"), text).settings)


_LINES = """
listen x|backend b|frontend f|defaults|global|bind :80|bind *:443 ssl crt a|mode tcp|mode http|# x
server|server a|server a b:1 check weight x|acl|acl a|acl a path_beg|acl a hdr(host) -m end b|bind
use_backend b if a !c|use_backend b|use_backend b if { path_beg /x|default_backend b|maxconn -1
redirect|redirect scheme https|http-request|http-request redirect location /a|cookie|balance
cookie S insert maxlife|balance url_param|timeout|timeout connect 5|retries x|option|option httpchk
http-check|http-check expect status 2|stats enable|stats auth a|server-template a 1 b|é \x01
default-server inter
"""
_WORDS = st.sampled_from(re.split("[|\n]", _LINES))


@hypothesis_settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(_WORDS, max_size=25))
def test_no_file_of_haproxy_ends_in_a_traceback(lines: list[str]) -> None:
    with contextlib.suppress(ConvertError):
        parse(haproxy.convert("listen y\n bind :1\n" + "\n".join(lines), "x.cfg").settings)


# The command


def test_the_command_writes_settings_and_tells_the_rest(tmp_path: Path) -> None:
    (tmp_path / "nginx.conf").write_text(location("\ngzip on;"))
    done = run("convert", "nginx.conf", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines() == [
        "nginx.conf:3: gzip on: answers are passed on as they are: compress in the application",
        "nginx.conf -> appsettings.json: 1 note",
    ]
    assert json.loads((tmp_path / "appsettings.json").read_text())["targets"] == ["http://a:1"]
    assert load(tmp_path / "appsettings.json", {}).targets[0].url == "http://a:1"


def test_a_certificate_that_is_not_here_is_told(tmp_path: Path) -> None:
    text = f"events {{}} http {{ server {{ listen 443 ssl; {TLS} root /srv; }} }}"
    (tmp_path / "nginx.conf").write_text(text)
    (tmp_path / "k.pem").touch()
    with contextlib.chdir(tmp_path):
        done = CliRunner().invoke(main, ["convert", "nginx.conf"])
    assert re.findall(r"(\w+)\.pem isn't here: nothing starts without it", done.stderr) == ["c"]


def test_a_file_that_exists_is_written_over_only_by_force(tmp_path: Path) -> None:
    (tmp_path / "haproxy.cfg").write_text((FILES / "article.cfg").read_text())
    out = tmp_path / "settings.json"
    words = ["convert", str(tmp_path / "haproxy.cfg"), "-o", str(out)]
    assert CliRunner().invoke(main, words).exit_code == 0
    assert out.stat().st_mode & 0o077 == 0, "there is a password in it"
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 1
    assert "settings.json exists: --force writes over it" in again.output
    assert CliRunner().invoke(main, [*words, "--force"]).exit_code == 0
    shown = CliRunner().invoke(main, [*words[:-1], "-", "--from", "haproxy"])
    assert json.loads(shown.stdout) == json.loads(out.read_text())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http {", 'unexpected end of file, expecting "}" in x.conf:1'),
        ("gzip on\n", "unexpected end of file in x.conf"),
        ("http { gzip on; }", "x.conf: nothing in it that pyproxy could serve"),
        ("", "x.conf: nothing in it that pyproxy could serve"),
    ],
)
def test_a_broken_or_useless_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.conf").write_text(text)
    with contextlib.chdir(tmp_path), pytest.raises(ConvertError, match=re.escape(said)):
        convert(Path("x.conf"))


def test_without_crossplane_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "crossplane", None)
    with pytest.raises(ConvertError, match=r"pip install 'pyproxy-lb\[convert\]'"):
        of_nginx(tmp_path, location(""))


def test_the_format_is_guessed_by_what_the_file_looks_like(tmp_path: Path) -> None:
    for name in ("seminar.conf", "lesson.conf", "article.conf", "article.cfg"):
        shutil.copy(FILES / name, tmp_path / "any")
        found = convert(tmp_path / "any")
        assert ("admin" in found.settings) is (name == "article.cfg")


def test_the_page_shows_what_the_command_does(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "migrating.md").read_text()
    config, session, settings = re.findall(r"```(?:nginx|console|json)\n(.*?)```", page, re.S)[:3]
    (tmp_path / "nginx.conf").write_text(config)
    (tmp_path / "static").mkdir()
    command_line, *told = session.splitlines()
    assert command_line == "$ python -m pyproxy convert nginx.conf"
    done = run("convert", "nginx.conf", cwd=tmp_path)
    assert done.stderr.splitlines() == told
    assert json.loads((tmp_path / "appsettings.json").read_text()) == json.loads(settings)
    with contextlib.chdir(tmp_path):
        load(tmp_path / "appsettings.json", {})


# The set-ups of the sources, at work


@contextlib.contextmanager
def served(path: Path) -> Iterator[Proxy]:
    """By what comes of a file."""
    with Proxy(parse(convert(path).settings)) as proxy:
        yield proxy


def counted(url: str, count: int, *lines: str) -> Counter[str]:
    return Counter(get(url, "/", *lines).body.decode() for _ in range(count))


def silent(target: RawTarget, wire: Wire) -> None:
    target.requests.append(wire.read_message())
    wire.at_end()


def test_the_lesson_serves_in_turn(tmp_path: Path) -> None:
    with letters("abc") as targets:
        path = written(tmp_path, "lesson.conf", **ports(targets, p80=closed_port()))
        with served(path) as proxy:
            url = proxy.url.replace("0.0.0.0", "127.0.0.1")
            assert counted(url, 9) == {"a": 3, "b": 3, "c": 3}
            targets[1].stop()
            assert set(counted(url, 6)) == {"a", "c"}


@contextlib.contextmanager
def secured(folder: Path) -> Iterator[ssl.SSLContext]:
    """Within a folder with a certificate, a context that trusts it."""
    pytest.importorskip("cryptography", reason="makes the certificate (extra tls-tools)")
    from pyproxy.lab.certificate import make_certificate

    names = ["seminar.localhost", "www.seminar.localhost"]
    make_certificate(names, folder / "cert.pem", folder / "key.pem")
    yield ssl.create_default_context(cafile=str(folder / "cert.pem"))


def ask_plain(port: int, name: str = "seminar.localhost") -> Message:
    return ask(f"http://127.0.0.1:{port}", f"GET /a?b HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())


def ask_secure(port: int, context: ssl.SSLContext, name: str = "seminar.localhost") -> Message:
    with context.wrap_socket(
        socket.create_connection(("127.0.0.1", port), DEADLINE), server_hostname=name
    ) as sock:
        wire = Wire(sock)
        wire.send(f"GET /a?b HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        return wire.read_message()


def test_the_seminar_has_a_backup_tls_and_a_redirect(tmp_path: Path) -> None:
    plain, secure = closed_port(), closed_port()
    with secured(tmp_path) as context, letters("abcd") as targets:
        swapped = ports(targets, p80=plain, p443=secure)
        swapped["p8001"] += " fail_timeout=500ms"  # how often it is looked for
        path = written(tmp_path, "seminar.conf", **swapped)
        with served(path):
            for name in ("seminar.localhost", "www.seminar.localhost"):
                sent = ask_plain(plain, name)
                assert (sent.status, sent.get("Location")) == (302, f"https://{name}:{secure}/a?b")
            answers = Counter(ask_secure(secure, context).body for _ in range(6))
            assert answers == {b"a": 2, b"b": 2, b"c": 2}
            for target in targets[:3]:
                target.stop()
            assert ask_secure(secure, context).body == b"d"
            targets[1].start()
            eventually(lambda: ask_secure(secure, context).body == b"b")
            pytest.importorskip("h2", reason="HTTP/2 needs it (extra http2)")
            context.set_alpn_protocols(["h2", "http/1.1"])
            with context.wrap_socket(
                socket.create_connection(("127.0.0.1", secure), DEADLINE),
                server_hostname="seminar.localhost",
            ) as sock:
                assert sock.selected_alpn_protocol() == "h2"


def test_the_seminar_gives_a_silent_server_its_time_and_asks_another(tmp_path: Path) -> None:
    with (
        secured(tmp_path) as context,
        RawTarget(silent) as mute,
        letters("bcd") as (b, c, d),
    ):
        secure = closed_port()
        swapped = ports([mute, b, c, d], p80=closed_port(), p443=secure)
        path = written(tmp_path, "seminar.conf", **swapped, **{"5s": f"{READ}s"})
        with served(path) as proxy:
            got = [ask_secure(secure, context) for _ in range(3)]
            assert {one.status for one in got} == {200}
            assert len(mute.requests) == 1
            assert "evicted" in {one.state for one in proxy.pool.targets}


def test_the_article_has_weights_fields_and_files_by_ending(tmp_path: Path) -> None:
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "style.css").write_text("style")
    with letters("abcd") as targets:
        path = written(tmp_path, "article.conf", **ports(targets, p80=closed_port()))
        with served(path) as proxy:
            url = proxy.url.replace("0.0.0.0", "127.0.0.1")
            assert counted(url, 10) == {"a": 6, "b": 2, "c": 2}
            asked = targets[0].requests[0]
            assert asked.get("Host") == "test"
            assert asked.get("X-Real-IP") == asked.get("X-Forwarded-For") == "127.0.0.1"
            assert asked.get("X-Forwarded-Proto") == "http"
            style = get(url, "/style.css")
            assert (style.body, style.get("Cache-Control")) == (b"style", "max-age=2592000")
            assert style.get("Expires")
            assert get(url, "/else.css").status == 404
            for target in targets[:3]:
                target.stop()
            assert set(counted(url, 3)) == {"d"}


class Shop:
    """Targets of HAProxy's set-up; ``ill`` is one whose /health tells so."""

    def __init__(self) -> None:
        self.ill = ""

    def target(self, letter: str) -> RawTarget:
        def respond(request: Message) -> bytes:
            if request.start.startswith(b"GET /health") and letter == self.ill:
                return answer("ill", status="500 Internal Server Error")
            return answer(letter)

        return RawTarget(replying(respond))


@contextlib.contextmanager
def shop() -> Iterator[tuple[Shop, list[RawTarget]]]:
    made = Shop()
    with contextlib.ExitStack() as stack:
        yield made, [stack.enter_context(made.target(letter)) for letter in "abc"]


def cookie_of(message: Message) -> str:
    (found,) = message.all("Set-Cookie")
    return found.partition(";")[0]


def test_the_article_on_haproxy_has_weights_checks_cookies_and_statistics(tmp_path: Path) -> None:
    with shop() as (made, targets):
        plain, stats = closed_port(), closed_port()
        swapped = ports(targets, p80=plain, p8404=stats)
        faster = {"mode    http": "mode http\n    default-server inter 100ms"}
        path = written(tmp_path, "article.cfg", **swapped, **faster)
        with served(path):
            url = f"http://127.0.0.1:{plain}"
            assert counted(url, 10) == {"a": 6, "b": 2, "c": 2}
            first = get(url)
            bound = counted(url, 5, f"Cookie: {cookie_of(first)}")
            assert bound == {first.body.decode(): 5}
            assert cookie_of(first).startswith("SERVERID=")

            made.ill = first.body.decode()
            eventually(lambda: made.ill not in counted(url, 5))
            moved = get(url, "/", f"Cookie: {cookie_of(first)}")
            assert moved.body.decode() != made.ill
            assert cookie_of(moved) != cookie_of(first)
            made.ill = ""
            eventually(lambda: len(counted(url, 10)) == 3)

            admin = f"http://127.0.0.1:{stats}"
            assert get(admin).status == 401
            login = base64.b64encode(b"admin:password").decode()
            page = get(admin, "/", f"Authorization: Basic {login}")
            assert (page.status, b"<html" in page.body.lower()) == (200, True)


# The same file, there and here


def binary(name: str) -> str:
    found = shutil.which(name, path=PATH)
    if not found:
        if "CI" in os.environ:
            pytest.fail(f"{name} is missing")
        pytest.skip(f"needs {name}, to compare with")
    return found


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), DEADLINE):
        return True
    return False


@contextlib.contextmanager
def there(path: Path, port: int) -> Iterator[None]:
    """The file in the hands of whom it was written for."""
    if path.suffix == ".cfg":
        words = [binary("haproxy"), "-db", "-f", str(path)]
    else:
        temporary = "".join(
            f"{name}_temp_path {path.parent}/{name}; "
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        text = path.read_text().replace("http {", f"http {{ access_log off; {temporary}", 1)
        ours = path.with_name("there.conf")
        ours.write_text(text)
        said = "daemon off; master_process off; error_log stderr error; pid nginx.pid;"
        words = [binary("nginx"), "-p", str(path.parent), "-c", str(ours), "-g", said]
    with command(*words, cwd=path.parent) as running:
        eventually(lambda: listens(port) or running.process.poll() is not None)
        assert running.process.poll() is None, running.text
        yield


def both(tmp_path: Path, name: str, targets: list[RawTarget], *extra: str) -> Iterator[int]:
    """The port on which the file is served: there, then here."""
    for number in range(2):
        listening = {key: closed_port() for key in ("p80", *extra)}
        path = written(tmp_path, name, **ports(targets, **listening))
        if path.suffix == ".cfg":  # who it runs as, and logs to, is the system's
            text = re.sub(r"(?m)^ +(user|group|log +/dev).*\n", "", path.read_text())
            path.write_text(text)
        with there(path, listening["p80"]) if number == 0 else served(path):
            yield listening["p80"]


def outcome(message: Message, *names: str) -> tuple[Any, ...]:
    return (message.status, *(message.get(name) for name in names))


def test_the_lesson_is_served_as_nginx_does(tmp_path: Path) -> None:
    with letters("abc") as targets:
        seen = []
        for port in both(tmp_path, "lesson.conf", targets):
            url = f"http://127.0.0.1:{port}"
            turns = counted(url, 9)
            targets[0].stop()
            seen.append((turns, set(counted(url, 6))))
            assert ("nginx" in (get(url).get("Server") or "")) is (len(seen) == 1)
            targets[0].start()
    assert seen[0] == seen[1] == ({"a": 3, "b": 3, "c": 3}, {"b", "c"})


def test_the_article_is_served_as_nginx_does(tmp_path: Path) -> None:
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "x.css").write_text("style")
    with letters("abcd") as targets:
        seen = []
        for port in both(tmp_path, "article.conf", targets):
            url = f"http://127.0.0.1:{port}"
            turns = counted(url, 10)
            fields = ("X-Real-IP", "X-Forwarded-For", "X-Forwarded-Proto", "Host")
            asked = [targets[0].requests[-1].get(name) for name in fields]
            styled = [
                outcome(get(url, path), "Cache-Control", "Content-Type")
                for path in ("/x.css", "/X.CSS", "/y.css", "/x.css?v=1")
            ]
            styled[1] = styled[2] = ()  # the error page is its own
            missing = get(url, "/y.css").status
            for target in targets[:3]:
                target.stop()
            seen.append((turns, asked, [one[:2] for one in styled], missing, set(counted(url, 3))))
            for target in targets[:3]:
                target.start()
    assert seen[0] == seen[1]


def test_the_seminar_is_served_as_nginx_does(tmp_path: Path) -> None:
    with secured(tmp_path) as context, letters("abcd") as targets:
        seen = []
        for number in range(2):
            plain, secure = closed_port(), closed_port()
            path = written(tmp_path, "seminar.conf", **ports(targets, p80=plain, p443=secure))
            with there(path, plain) if number == 0 else served(path):
                sent = ask_plain(plain)
                to = re.sub(r":\d+", "", sent.get("Location") or "")
                answers = Counter(ask_secure(secure, context).body for _ in range(6))
                seen.append((sent.status, to, answers))
    assert seen[0] == seen[1]
    assert seen[0][:2] == (302, "https://seminar.localhost/a?b")


def test_the_article_is_served_as_haproxy_does(tmp_path: Path) -> None:
    with shop() as (_, targets):
        seen = []
        for port in both(tmp_path, "article.cfg", targets, "p8404"):
            url = f"http://127.0.0.1:{port}"
            assert get(url).status == 200
            shares = counted(url, 10)
            first = get(url)
            bound = counted(url, 5, f"Cookie: {cookie_of(first)}")
            told = get(url, "/", f"Cookie: {cookie_of(first)}").all("Set-Cookie")
            name = cookie_of(first).partition("=")[0]
            seen.append((shares, name, bound == {first.body.decode(): 5}, told))
    assert seen[0] == seen[1]
