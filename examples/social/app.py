"""Users, log-in and friends: a small API, several copies of which share one database.

python examples/social/app.py --port 8001 --database social.db
"""

import argparse
import hashlib
import hmac
import json
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

SCHEMA = """
create table if not exists users (
  id integer primary key, name text, email text, bio text, salt blob, password blob);
create table if not exists tokens (token text primary key, user_id integer);
create table if not exists friends (
  user_id integer, friend_id integer, primary key (user_id, friend_id));
"""
LISTED = 20  # users on a page


class Refused(Exception):
    """Answered with this status and text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def digest(password: str, salt: bytes) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 20_000)


class Api:
    """What is offered: ``ROUTES`` maps to its methods, which get the numbers in the path."""

    def __init__(self, database: sqlite3.Connection, said: dict[str, str], token: str) -> None:
        self._database = database
        self._said = said
        self._token = token

    def _all(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in self._database.execute(statement, values)]

    def _given(self, *names: str) -> list[str]:
        if missing := [name for name in names if name not in self._said]:
            raise Refused(422, f"missing: {', '.join(missing)}")
        return [self._said[name] for name in names]

    def _only_for(self, user: str) -> None:
        """Refuses who hasn't logged in as this user."""
        found = self._all("select user_id from tokens where token = ?", self._token)
        if not found:
            raise Refused(401, "log in first")
        if str(found[0]["user_id"]) != user:
            raise Refused(403, "somebody else's")

    def users(self) -> Any:
        shown = "select id, name, email, bio from users order by id desc limit ?"
        return self._all(shown, LISTED)

    def user(self, user: str) -> Any:
        found = self._all("select id, name, email, bio from users where id = ?", user)
        if not found:
            raise Refused(404, "no such user")
        return found[0]

    def create_user(self) -> Any:
        *fields, password = self._given("name", "email", "bio", "password")
        salt = secrets.token_bytes(16)
        values = (*fields, salt, digest(password, salt))
        insert = "insert into users (name, email, bio, salt, password) values (?, ?, ?, ?, ?)"
        created = self._database.execute(insert, values)
        return {"id": created.lastrowid}

    def update_user(self, user: str) -> Any:
        *fields, password = self._given("name", "email", "bio", "password")
        salt = secrets.token_bytes(16)
        values = (*fields, salt, digest(password, salt), user)
        update = "update users set name=?, email=?, bio=?, salt=?, password=? where id=?"
        if not self._database.execute(update, values).rowcount:
            raise Refused(404, "no such user")
        return {"id": int(user)}

    def login(self) -> Any:
        user, password = self._given("id_", "password")
        found = self._all("select salt, password from users where id = ?", user)
        known = found and digest(password, found[0]["salt"])
        if not found or not hmac.compare_digest(known, found[0]["password"]):
            raise Refused(401, "wrong id or password")
        token = secrets.token_urlsafe(24)
        self._database.execute("insert into tokens values (?, ?)", (token, user))
        return {"data": {"access_token": token}}

    def create_friend(self) -> Any:
        user, friend = self._given("user_id", "friend_id")
        self._only_for(user)
        self.user(friend)
        self._database.execute("insert or ignore into friends values (?, ?)", (user, friend))
        return {"user_id": int(user), "friend_id": int(friend)}

    def friends(self, user: str) -> Any:
        self._only_for(user)
        shown = (
            "select id, name from users join friends on id = friend_id where user_id = ? limit ?"
        )
        return self._all(shown, user, LISTED)


ROUTES: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("GET", r"/api/v1/users/?", Api.users),
    ("POST", r"/api/v1/users/?", Api.create_user),
    ("GET", r"/api/v1/users/(\d+)", Api.user),
    ("PUT", r"/api/v1/users/(\d+)", Api.update_user),
    ("POST", r"/api/v1/login", Api.login),
    ("POST", r"/api/v1/friends/?", Api.create_friend),
    ("GET", r"/api/v1/friends/(\d+)", Api.friends),
)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one segment
    disable_nagle_algorithm = True
    server: "Server"

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        with self.server.room:
            time.sleep(self.server.wait)
            try:
                status, told = 200, self._find()
            except Refused as error:
                status, told = error.status, {"detail": str(error)}
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = answer

    def _find(self) -> Any:
        url = urlsplit(self.path)
        said = {name: values[-1] for name, values in parse_qs(url.query).items()}
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        for method, pattern, does in ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, url.path)):
                with self.server.database() as database:  # a transaction
                    return does(Api(database, said, token), *match.groups())
        raise Refused(404, "no such page")

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, port: int, file: str, wait: float, at_once: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.wait = wait
        self.room = threading.Semaphore(at_once)
        self._file = file
        self._own = threading.local()  # connections to the database
        self.database().executescript(SCHEMA)

    def database(self) -> sqlite3.Connection:
        if not hasattr(self._own, "database"):
            self._own.database = sqlite3.connect(self._file, timeout=30)
            self._own.database.row_factory = sqlite3.Row
            self._own.database.execute("pragma synchronous = off")
        return self._own.database


def main() -> None:
    options = argparse.ArgumentParser(description="Users, log-in and friends.")
    options.add_argument("--port", type=int, default=8001)
    options.add_argument("--database", default="social.db", help="a file that all copies share")
    options.add_argument(
        "--wait", type=float, default=0.0, help="seconds for each request, as for a far database"
    )
    options.add_argument(
        "--at-once", type=int, default=1, help="requests worked on side by side; others wait"
    )
    said = options.parse_args()
    with Server(said.port, said.database, said.wait, said.at_once) as server:
        print(f"listens on http://127.0.0.1:{server.server_port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
