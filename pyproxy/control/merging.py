"""Merging: what several processes see, as one snapshot."""

from typing import Any

# Of a target that processes see differently, the state that is told.
_GRAVEST = ("evicted", "maintenance", "draining", "live")
_SAME = 10.0  # seconds within which the same event in other processes is told once


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
        "events": _events([part["events"] for part in parts]),
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


def _events(parts: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What the same process tells again has happened again."""
    told = [(number, event) for number, events in enumerate(parts) for event in events]
    kept: list[dict[str, Any]] = []
    last: dict[tuple[str, ...], tuple[float, set[int]]] = {}
    for number, event in sorted(told, key=lambda one: float(one[1]["at"])):
        what = tuple(event[key] for key in ("pool", "target", "what", "reason"))
        at, by = last.get(what, (-_SAME, set()))
        if event["at"] - at >= _SAME or number in by:
            last[what] = (event["at"], {number})
            kept.append(event)
        else:
            by.add(number)
    return kept[-100:]
