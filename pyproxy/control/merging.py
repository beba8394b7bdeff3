"""Merging: what several processes see, as one snapshot."""

from typing import Any

# Of a target that processes see differently, the state that is told.
_GRAVEST = ("evicted", "maintenance", "draining", "live")
_SAME = 10.0  # seconds within which the same event in several processes is told once


def merge(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Of at least one process the snapshot; of several, numbers add up. A target has ``states``
    (how many processes see it in each) where they differ."""
    if not parts:
        return {"connections": {"open": 0, "accepted": 0}, "pools": [], "events": []}
    return {
        "connections": {
            key: sum(part["connections"][key] for part in parts) for key in ("open", "accepted")
        },
        "pools": [
            _pool([pool for part in parts for pool in part["pools"] if pool["name"] == name])
            for name in dict.fromkeys(pool["name"] for part in parts for pool in part["pools"])
        ],
        "events": _events([event for part in parts for event in part["events"]]),
    }


def _pool(parts: list[dict[str, Any]]) -> dict[str, Any]:
    targets: dict[str, list[dict[str, Any]]] = {}
    for part in parts:
        for target in part["targets"]:
            targets.setdefault(target["id"], []).append(target)
    return {
        **parts[0],
        "waiting": sum(part["waiting"] for part in parts),
        "targets": [_target(some) for some in targets.values()],
    }


def _target(parts: list[dict[str, Any]]) -> dict[str, Any]:
    told = min(parts, key=lambda part: _GRAVEST.index(part["state"]))
    found = {**told, "in_flight": sum(part["in_flight"] for part in parts)}
    states = [part["state"] for part in parts]
    if len(set(states)) > 1:
        found["states"] = {state: states.count(state) for state in _GRAVEST if state in states}
    return found


def _events(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    last: dict[tuple[str, ...], float] = {}
    for event in sorted(events, key=lambda event: float(event["at"])):
        what = tuple(event[key] for key in ("pool", "target", "what", "reason"))
        if event["at"] - last.get(what, -_SAME) >= _SAME:
            last[what] = event["at"]
            kept.append(event)
    return kept[-100:]
