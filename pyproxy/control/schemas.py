"""JSON Schemas: what the admin API takes and answers; and what of a value doesn't fit one."""

from collections.abc import Mapping
from typing import Any

from pyproxy.readers import Json, unknown_setting

Schema = Mapping[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number", "minimum": 0}
FLAG: Schema = {"type": "boolean"}


def listing(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def mapping(of: Schema) -> Schema:
    return {"type": "object", "additionalProperties": of}


def record(optional: Mapping[str, Schema] | None = None, /, **required: Schema) -> Schema:
    """An object with these keys, and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def or_null(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def none_or(name: str) -> Schema:
    return {"anyOf": [ref(name), {"type": "null"}]}


ERROR = record({"problems": listing(TEXT)}, error=TEXT)

WEIGHT: Schema = {"type": "integer", "minimum": 1, "maximum": 256}

RESPONSE_TIME = record(**{key: or_null(NUMBER) for key in ("average", "p50", "p90", "p99")})

TARGET = record(
    {"states": mapping(WHOLE)},  # where several processes don't agree
    id=TEXT,
    url=TEXT,
    pool=TEXT,
    state={"type": "string", "enum": ["live", "evicted", "draining", "maintenance"]},
    wanted={"type": "string", "enum": ["live", "draining", "maintenance"]},
    reason=TEXT,
    since=NUMBER,
    weight=WEIGHT,
    backup=FLAG,
    max_connections=or_null(WHOLE),
    in_flight=WHOLE,
    requests=WHOLE,
    failures=WHOLE,
    failures_by_reason=mapping(WHOLE),
    retries=WHOLE,
    evictions=WHOLE,
    statuses=mapping(WHOLE),
    per_second=NUMBER,
    error_rate=NUMBER,
    response_time=ref("ResponseTime"),
)

EVENT = record(at=NUMBER, pool=TEXT, target=TEXT, what=TEXT, reason=TEXT)

SIGNALS = record(
    targets=WHOLE,
    coming=WHOLE,
    rate=NUMBER,
    response_time=or_null(NUMBER),
    in_flight=NUMBER,
    cpu=or_null(NUMBER),
    others=WHOLE,
)

DECISION = record(**{"at": NUMBER, "from": WHOLE, "to": WHOLE, "reason": TEXT})

PHASES = ("starting", "live", "draining", "ending")

INSTANCE = record(
    name=TEXT,
    url=or_null(TEXT),
    id=or_null(TEXT),
    phase={"type": "string", "enum": [*PHASES]},
    version=TEXT,
    since=NUMBER,
    reason=TEXT,
    handle=or_null(TEXT),
    log=TEXT,
)

ROLLOUT = record(
    **{
        "from": TEXT,
        "to": TEXT,
        "state": {
            "type": "string",
            "enum": ["running", "paused", "returning", "finished", "returned", "replaced"],
        },
        "reason": TEXT,
        "began": NUMBER,
        "ended": or_null(NUMBER),
        "done": WHOLE,
        "of": WHOLE,
    }
)

SCALING = record(
    launcher=TEXT,
    min=WHOLE,
    max=WHOLE,
    auto=FLAG,
    wanted=WHOLE,
    version=TEXT,
    problem=TEXT,
    signals=none_or("Signals"),
    decisions=listing(ref("Decision")),
    instances=listing(ref("Instance")),
    rollout=none_or("Rollout"),
)

POOL = record(
    name=TEXT,
    kind={"type": "string", "enum": ["http", "tcp"]},
    policy=TEXT,
    scaling=none_or("Scaling"),  # of pools whose targets are made
    waiting=WHOLE,
    targets=listing(ref("Target")),
)

STATUS: Schema = {
    # Several processes tell more of themselves than one.
    **record(
        started=NUMBER,
        urls=listing(TEXT),
        connections=record(open=WHOLE, accepted=WHOLE),
        pools=listing(ref("Pool")),
        events=listing(ref("Event")),
        requests=WHOLE,
        own_answers=mapping(WHOLE),
        now=NUMBER,
        window=NUMBER,
    ),
    "additionalProperties": True,
}

CHOICE = record(id=TEXT, url=TEXT, reason=TEXT)

EXPLANATION = record(
    {"reason": TEXT, "pool": TEXT},
    route=TEXT,
    target=none_or("Choice"),
    others=listing(ref("Choice")),
)

READINESS = record({"pools": listing(TEXT)}, ready=FLAG)

NEW_TARGET = record(
    {
        "pool": TEXT,
        "weight": WEIGHT,
        "backup": FLAG,
        "max_connections": or_null({"type": "integer", "minimum": 1}),
        "slow_start": {"type": ["number", "string", "null"]},
    },
    url={"type": ["string", "integer"]},
)

CHANGE: Schema = {
    **record(
        {
            "weight": WEIGHT,
            "state": {"type": "string", "enum": ["ready", "drain", "maintenance"]},
        }
    ),
    "minProperties": 1,
}

MANAGE = record({"pool": TEXT}, action={"type": "string", "enum": ["add", "remove"]}, backend=TEXT)

SCALE = record({"pool": TEXT}, count=WHOLE)

NEW_VERSION: Schema = {
    **record(
        {
            "pool": TEXT,
            "image": TEXT,
            "command": {**listing(TEXT), "minItems": 1},
            "environment": mapping(TEXT),
        }
    ),
    "minProperties": 1,
}

ROLLOUT_CHANGE = record(
    {"pool": TEXT}, action={"type": "string", "enum": ["pause", "resume", "abort"]}
)

# Those that others refer to, by name.
NAMED: Mapping[str, Schema] = {
    "Error": ERROR,
    "Target": TARGET,
    "ResponseTime": RESPONSE_TIME,
    "Event": EVENT,
    "Pool": POOL,
    "Scaling": SCALING,
    "Signals": SIGNALS,
    "Decision": DECISION,
    "Instance": INSTANCE,
    "Rollout": ROLLOUT,
    "Status": STATUS,
    "Choice": CHOICE,
    "Explanation": EXPLANATION,
    "Readiness": READINESS,
    "NewTarget": NEW_TARGET,
    "Change": CHANGE,
    "Manage": MANAGE,
    "Scale": SCALE,
    "NewVersion": NEW_VERSION,
    "RolloutChange": ROLLOUT_CHANGE,
}

_TYPES: Mapping[str, tuple[str, tuple[type, ...]]] = {
    "string": ("a text", (str,)),
    "integer": ("a whole number", (int,)),
    "number": ("a number", (int, float)),
    "boolean": ("true or false", (bool,)),
    "object": ("an object", (dict,)),
    "array": ("a list", (list,)),
    "null": ("null", (type(None),)),
}


def misfits(schema: Schema, value: Json, path: str = "") -> list[str]:
    """What is wrong with what was asked, each with its path. Knows as much of JSON Schema as the
    schemas of requests use."""
    where = f"{path}: " if path else ""
    allowed = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    kinds = [kind for name in allowed for kind in _TYPES[name][1]]
    if type(value) not in kinds:
        return [f"{where}expected {' or '.join(_TYPES[name][0] for name in allowed)}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where}expected {' or '.join(schema['enum'])}"]
    if isinstance(value, int | float):
        least, most = schema.get("minimum"), schema.get("maximum")
        if (least is not None and value < least) or (most is not None and value > most):
            return [f"{where}expected from {least}" + (f" to {most}" if most else " on")]
    if isinstance(value, list):
        if len(value) < schema["minItems"]:
            return [f"{where}expected at least {schema['minItems']}"]
        below = [misfits(schema["items"], one, f"{path}[{at}]") for at, one in enumerate(value)]
        return [one for some in below for one in some]
    if isinstance(value, dict):
        return _misfits_of_object(schema, value, path)
    return []


def _misfits_of_object(schema: Schema, value: dict[str, Json], path: str) -> list[str]:
    if "properties" not in schema:  # a mapping
        below = [
            misfits(schema["additionalProperties"], one, f"{path}.{key}")
            for key, one in value.items()
        ]
        return [one for some in below for one in some]
    known, found = schema["properties"], []
    for key, below in value.items():
        at = f"{path}.{key}" if path else key
        if key in known:
            found += misfits(known[key], below, at)
        else:
            found.append(f"{at}: {unknown_setting(key, list(known))}")
    missing = [key for key in schema["required"] if key not in value]
    found += [f"{path or 'the object'} needs its {key}" for key in missing]
    if not found and len(value) < schema.get("minProperties", 0):
        found.append(f"say at least one of {', '.join(known)}")
    return found
