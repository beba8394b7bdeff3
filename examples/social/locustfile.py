"""People who sign up, log in, look at each other and make friends, without a pause."""

import random
from typing import Any

from locust import HttpUser, task

PASSWORD = "secret"


class Person(HttpUser):
    known: list[int] = []  # who signed up, of all users of this load
    tokens: dict[int, str] = {}

    def on_start(self) -> None:
        self.sign_up()

    def _about(self, email: str) -> dict[str, str]:
        return {"name": "Ann", "email": email, "bio": "-", "password": PASSWORD}

    def _as(self, person: int) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[person]}"}

    def _ask(self, method: str, path: str, name: str = "", **said: Any) -> Any:
        """What was answered, or None."""
        response = self.client.request(method, f"/api/v1{path}", name=name or None, **said)
        return response.json() if response.ok else None

    @task(3)
    def look_at_all(self) -> None:
        self._ask("GET", "/users/", "users")

    @task(3)
    def look_at_one(self) -> None:
        if self.known:
            self._ask("GET", f"/users/{random.choice(self.known)}", "users/{id}")

    @task
    def sign_up(self) -> None:
        if told := self._ask("POST", "/users", "users", params=self._about("ann@example.com")):
            self.known.append(told["id"])

    @task
    def change(self) -> None:
        if self.known:
            about = self._about("new@example.com")
            self._ask("PUT", f"/users/{random.choice(self.known)}", "users/{id}", params=about)

    @task
    def log_in(self) -> None:
        if self.known:
            person = random.choice(self.known)
            said = {"id_": person, "password": PASSWORD}
            if told := self._ask("POST", "/login", "login", params=said):
                self.tokens[person] = told["data"]["access_token"]

    @task
    def make_a_friend(self) -> None:
        if self.tokens:
            person, friend = random.choice(list(self.tokens)), random.choice(self.known)
            said = {"user_id": person, "friend_id": friend}
            self._ask("POST", "/friends", "friends", params=said, headers=self._as(person))

    @task(2)
    def look_at_friends(self) -> None:
        if self.tokens:
            person = random.choice(list(self.tokens))
            self._ask("GET", f"/friends/{person}", "friends/{id}", headers=self._as(person))
