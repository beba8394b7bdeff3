"""nginx's directives by what becomes of them: passed over, told of with advice, or heeded (which is
done where the package's docstring says)."""

import re

# What pyproxy does anyway, does in another way, or has no need of.
SILENT = re.compile(
    r"""absolute_redirect | access_log | aio\w* | alias | charset\w*
    | client_body_(?!in_file|timeout)\w*
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
ADVICE = {
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
    "client_body_timeout": "timeouts.read is what bounds a silence within a body",
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

# Fields that say what pyproxy says anyway.
OUR_FIELDS = {
    "host": ("$host", "$http_host", "$host:$server_port"),
    "x-real-ip": ("$remote_addr", "$proxy_protocol_addr"),
    "x-forwarded-for": ("$proxy_add_x_forwarded_for", "$remote_addr", "$proxy_protocol_addr"),
    "x-forwarded-proto": ("$scheme",),
    "x-forwarded-host": ("$host", "$http_host"),
    "upgrade": ("$http_upgrade",),
    "connection": ("upgrade", "$connection_upgrade", "close", ""),
    "x-request-id": ("$request_id", "$http_x_request_id"),
}
# What may stand without a value.
BARE = {
    *("least_conn", "ip_hash", "random", "internal", "stub_status", "health_check", "ntlm", "api"),
    *("break", "flv", "mp4", "empty_gif", "hostnames", "volatile"),
}

# What is heeded, by the block in which it may stand.
EVERYWHERE = {
    *("keepalive_timeout", "client_header_timeout", "client_max_body_size", "set_real_ip_from"),
    *("real_ip_header", "resolver", "resolver_timeout", "ssl_protocols", "ssl_ciphers", "http2"),
    *("ssl_client_certificate", "ssl_verify_client", "ssl_certificate", "ssl_certificate_key"),
    *("proxy_connect_timeout", "proxy_read_timeout", "proxy_send_timeout", "proxy_next_upstream"),
    *("proxy_next_upstream_tries", "proxy_ssl_verify", "proxy_ssl_trusted_certificate"),
    *("proxy_ssl_certificate", "proxy_ssl_certificate_key"),
}
OF_SERVERS = {"listen", "server_name", "location", "return", "rewrite", "if", "ssl"}
OF_LOCATIONS = {
    *("proxy_pass", "return", "rewrite", "location", "fastcgi_pass", "uwsgi_pass", "scgi_pass"),
    *("grpc_pass", "internal"),
}
OF_STREAMS = {
    *("listen", "proxy_pass", "proxy_timeout", "proxy_connect_timeout", "proxy_protocol"),
    *("ssl_preread", "ssl_certificate", "ssl_certificate_key", "ssl_protocols", "ssl_ciphers"),
    *("set_real_ip_from", "ssl", "ssl_client_certificate", "ssl_verify_client"),
    "proxy_next_upstream",
}
