"""Find: the target that people mean, by its id, its URL or host:port."""

from collections.abc import Iterable, Mapping
from typing import Any

from pyproxy.errors import ControlError
from pyproxy.readers import address, few, url_of

Told = Mapping[str, Any]  # a target or a pool, as a status tells it


def targets_in(status: Mapping[str, Any], pool: str = "") -> list[Told]:
    """All of a status, or those of one pool. Raises ``ControlError`` if there is no such pool."""
    pools = [one for one in status["pools"] if not pool or one["name"] == pool]
    if pool and not pools:
        raise ControlError(404, f'no pool is called "{pool}"')
    return [target for one in pools for target in one["targets"]]


def find(targets: Iterable[Told], said: str) -> Told:
    """The one that is meant. Raises ``ControlError``: 404 for none, 409 for several."""
    everyone = list(targets)
    found = [one for one in everyone if one["id"] == said]
    found = found or [one for one in everyone if one["url"] in _urls(said)]
    if not found:
        known = few([*dict.fromkeys(one["url"] for one in everyone)]) or "none"
        raise ControlError(404, f'no target is "{said}"; there is: {known}')
    if len(found) > 1:
        which = few([f"{one['id']} ({one['url']} of {one['pool']})" for one in found])
        raise ControlError(409, f'"{said}" may be one of several, say which: {which}')
    return found[0]


def _urls(said: str) -> list[str]:
    whole = "://" in said
    if said.isdigit():
        said = f"localhost:{said}"
    schemes = (said.partition("://")[0],) if whole else ("http", "https", "tcp")
    try:
        _, host, port = address(said if whole else f"{schemes[0]}://{said}", schemes, "", 80)
    except ValueError:
        return []
    return [url_of(one, host, port) for one in schemes]
