"""A primary on 5432 and two replicas on 5433 and 5434, or as POSTGRESQL_PORTS says."""

import os
from typing import Any

SECRET_KEY = "only for this example"
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
INSTALLED_APPS = ["notes"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
ROOT_URLCONF = "notes.urls"
USE_TZ = True


def database(port: str) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": "127.0.0.1",
        "PORT": port,
        "NAME": "postgres",
        "USER": "postgres",
        "CONN_MAX_AGE": 60,
        "OPTIONS": {"connect_timeout": 3},
    }


PRIMARY, *REPLICAS = os.environ.get("POSTGRESQL_PORTS", "5432,5433,5434").split(",")

DATABASES = {"default": database(PRIMARY)}
for number, port in enumerate(REPLICAS, 1):
    DATABASES[f"replica{number}"] = database(port) | {"TEST": {"MIRROR": "default"}}

DATABASE_ROUTERS = ["pyproxy.contrib.django.ReplicaRouter"]
PYPROXY_ROUTER = {"SLEEPING": 1}

# The router tells in the log who is evicted and who is back.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(levelname)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "loggers": {"pyproxy": {"handlers": ["console"], "level": "WARNING"}},
}
