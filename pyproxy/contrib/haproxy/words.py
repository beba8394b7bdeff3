"""HAProxy's keywords by what becomes of them: passed over, told of with advice, or heeded (which is
done where the package's docstring says)."""

import re

SECTIONS = {
    *("global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "userlist"),
    *("mailers", "program", "cache", "ring", "http-errors", "fcgi-app", "log-forward"),
    *("crt-store", "log-profile", "traces", "acme"),
}
# What pyproxy does anyway, does in another way, or has no need of.
SILENT = re.compile(
    r"""bind-process | chroot | clitcpka.* | cpu-map | daemon | description | expose-fd.*
    | fullconn | gid | group | hash-type | id | localpeer | log-format.* | log-tag
    | master-worker | maxconnrate | maxpipes | maxsock | mode | nbproc | nbthread | node
    | numa-cpu-mapping | pidfile | (load-)?server-state.* | set-dumpable | spread-checks
    | ssl-default-server-.* | srvtcpka.* | stats-file | tune\..* | uid
    | ulimit-n | unix-bind | user | zero-warning | unique-id-format | max-keep-alive-queue
    | dynamic-cookie-key | http-reuse""",
    re.VERBOSE,
)
SILENT_OPTIONS = {
    *("abortonclose", "allbackups", "clitcpka", "contstats", "dontlog-normal", "dontlognull"),
    *("forwardfor", "http-buffer-request", "http-ignore-probes", "http-keep-alive"),
    *("http-no-delay", "http-pretend-keepalive", "http-server-close", "http-use-htx", "httplog"),
    *("idle-close-on-response", "log-health-checks", "log-separate-errors", "logasap"),
    *("prefer-last-server", "redispatch", "socket-stats", "splice-auto", "splice-request"),
    *("splice-response", "srvtcpka", "tcp-check", "tcp-smart-accept", "tcp-smart-connect", "tcpka"),
    *("tcplog", "transparent"),
}
ADVICE = {
    "http-request deny": "only hosts, paths and endings can be denied: let the application do it",
    "http-request tarpit": "nobody is turned away: let the application do it",
    "http-request reject": "nobody is turned away: let the application do it",
    "http-request auth": "nobody is asked who they are: let the application do it",
    "http-request track-sc": "nothing is kept of clients, and nothing limits who asks how often",
    "http-request return": "only redirects can be said: let the application answer",
    "http-request redirect": "a pool doesn't redirect: say it of a route, or of the address",
    "redirect": "a pool doesn't redirect: say it of a route, or of the address",
    "log": "say access_log, a file or - for standard output",
    "http-request": "requests are passed on as they are: let the application do it",
    "http-response": "answers are passed on as they are: let the application do it",
    "http-after-response": "answers are passed on as they are: let the application do it",
    "compression": "answers are passed on as they are: compress in the application",
    "errorfile": "unavailable.status and unavailable.body are what is said when no target is left",
    "errorloc": "unavailable.status and unavailable.body are what is said when no target is left",
    "http-error": "unavailable.status and unavailable.body are what is said when no target is left",
    "stick-table": "nothing is kept of clients: say sticky.cookie, or policy ip_hash",
    "stick": "nothing is kept of clients: say sticky.cookie, or policy ip_hash",
    "tcp-request": "all connections are taken: close the port to others by a firewall",
    "tcp-response": "answers are passed on as they are",
    "capture": "the access log has fields of its own",
    "declare": "the access log has fields of its own",
    "monitor": "the admin API has /health: say admin.listen",
    "rate-limit": "nothing limits who asks how often: limits.connections is for all together",
    "filter": "there are no filters",
    "lua": "there is no Lua; a policy may be a Python function",
    "tcp-check": "a check connects, or asks for health.path",
    "use-server": "the policy chooses; a route may have targets of its own",
    "external-check": "a check connects, or asks for health.path",
    "email-alert": "nobody is written to: watch the metrics",
    "block": "nobody is turned away: let the application do it",
    "acl": "routes go by host and path",
    "source": "connections to targets are from the address that the system chooses",
    "ssl-server-verify": "say target_tls.verify false of the pools that are meant, if you must",
    "stats": "the admin API is what stats and its socket are: say admin.listen",
    "backlog": "it is the system's",
    "disabled": "left out",
    "resolvers": "names are looked up as the system does it: see its resolv.conf",
    "peers": "proxies share nothing",
    "userlist": "nobody is asked who they are: let the application do it",
    "mailers": "nobody is written to: watch the metrics",
    "program": "it runs no programs but targets: see scaling",
    "cache": "nothing is cached: put a cache before or behind pyproxy",
}
TIMEOUTS = {
    *("check", "client", "client-fin", "connect", "http-keep-alive", "http-request", "queue"),
    *("server", "server-fin", "tarpit", "tunnel"),
}
HANDLED = {
    *("acl", "balance", "bind", "cookie", "default-server", "default_backend", "disabled"),
    *("enabled", "hash-balance-factor", "maxconn", "redirect", "retries", "retry-on", "server"),
    *("server-template", "stats", "use_backend"),
}
OF_BACKENDS = HANDLED - {"redirect", "stats"}
BIND_VALUES = {
    *("alpn", "backlog", "ca-file", "ciphers", "ciphersuites", "crl-file", "crt", "crt-list"),
    *("curves", "ecdhe", "gid", "group", "id", "interface", "level", "maxconn", "mode", "mss"),
    *("name", "namespace", "nice", "npn", "process", "proto", "shards", "ssl-max-ver"),
    *("ssl-min-ver", "tcp-ut", "thread", "tls-ticket-keys", "uid", "user", "verify"),
}
BIND_OPTIONS = {
    *("accept-proxy", "alpn", "backlog", "ca-file", "ciphers", "crt", "curves", "defer-accept"),
    *("ecdhe", "id", "mss", "name", "nice", "no-sslv3", "no-tls-tickets", "no-tlsv10", "no-tlsv11"),
    *("npn", "prefer-client-ciphers", "process", "shards", "ssl", "ssl-min-ver", "tfo", "thread"),
    *("v4v6", "v6only", "verify"),
}
SERVER_VALUES = {
    *("addr", "alpn", "ca-file", "check-alpn", "check-proto", "check-sni", "ciphers"),
    *("ciphersuites", "cookie", "crt", "downinter", "error-limit", "fall", "fastinter", "id"),
    *("init-addr", "inter", "max-reuse", "maxconn", "maxqueue", "minconn", "namespace", "observe"),
    *("on-error", "on-marked-down", "on-marked-up", "pool-low-conn", "pool-max-conn"),
    *("pool-purge-delay", "port", "proto", "redir", "resolve-opts", "resolve-prefer", "resolvers"),
    *("rise", "slowstart", "sni", "source", "ssl-max-ver", "ssl-min-ver", "tfo", "track", "verify"),
    *("verifyhost", "weight", "ws"),
}
SERVER_OPTIONS = {
    *("alpn", "backup", "ca-file", "check", "check-sni", "check-ssl", "cookie", "crt", "downinter"),
    *("enabled", "error-limit", "fall", "fastinter", "id", "init-addr", "inter", "max-reuse"),
    *("maxconn", "no-backup", "no-check", "no-ssl", "non-stick", "observe", "on-error"),
    *("pool-low-conn", "pool-max-conn", "pool-purge-delay", "proto", "resolve-prefer", "resolvers"),
    *("rise", "send-proxy", "send-proxy-v2", "slowstart", "ssl", "ssl-min-ver", "stick"),
    *("verify", "weight"),
}
# Fields that say what pyproxy says anyway.
OUR_FIELDS = {
    "x-forwarded-proto": ("%[ssl_fc,iif(https,http)]",),
    "x-forwarded-for": ("%[src]", "%ci"),
    "x-real-ip": ("%[src]", "%ci"),
    "x-forwarded-host": ("%[hdr(host)]", "%[req.hdr(host)]"),
}
