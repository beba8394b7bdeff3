"""Load by Locust: locust -f tests/testing_locust.py --host=http://localhost:8000"""

from locust import HttpUser, between, task


# without locust its classes are Any
class Visitor(HttpUser):  # type: ignore[misc, unused-ignore]
    wait_time = between(0.05, 0.15)

    @task  # type: ignore[untyped-decorator, unused-ignore]
    def hello(self) -> None:
        with self.client.get("/", catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
            elif response.text != "Hello, world!":
                response.failure(f"body {response.text[:50]!r}")
