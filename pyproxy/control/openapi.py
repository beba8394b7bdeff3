"""OpenAPI: the description of operations that other programs read."""

from collections.abc import Iterable
from typing import Any

from pyproxy.control import schemas
from pyproxy.control.operation import JSON, Operation, Reply

REFUSED = {
    400: "the request is malformed",
    401: "user and password are missing or wrong",
    403: "who asks may not: another site's page, or another name than this machine's",
}
_REFUSED_BODY = {
    411: "the body's length isn't said",
    413: "the body is too long",
    415: "the body isn't JSON",
}


def describe(operations: Iterable[Operation], version: str = "1") -> dict[str, Any]:
    """The whole document. ``version`` is that of what is described."""
    paths: dict[str, Any] = {}
    for one in operations:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one)
    return {
        "openapi": "3.1.0",
        "info": {"title": "pyproxy admin API", "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas.NAMED,
            "securitySchemes": {"basic": {"type": "http", "scheme": "basic"}},
        },
    }


def _operation(one: Operation) -> dict[str, Any]:
    segments = [part[1:-1] for part in one.path.split("/") if part.startswith("{")]
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": schemas.TEXT} for name in segments
    ]
    in_query = [
        {"name": parameter.name, "in": "query", "description": parameter.help}
        | {"schema": parameter.schema}
        for parameter in one.parameters
    ]
    error = schemas.ref("Error")
    refused = REFUSED | (_REFUSED_BODY if one.method != "GET" else {})
    replies = {status: Reply(text, error) for status, text in refused.items()}
    replies[422] = Reply("what is asked for doesn't fit", error)
    replies.update(one.replies)
    found: dict[str, Any] = {
        "summary": one.summary,
        "operationId": one.name,
        # What needs no password takes one too.
        "security": [{}] if one.is_open else [{"basic": []}, {}],
        "responses": {str(status): _reply(reply) for status, reply in sorted(replies.items())},
    }
    if in_path or in_query:
        found["parameters"] = in_path + in_query
    if one.body:
        content = {JSON: {"schema": schemas.ref(one.body)}}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _reply(reply: Reply) -> dict[str, Any]:
    found: dict[str, Any] = {"description": reply.help}
    if reply.schema is not None:
        found["content"] = {reply.media_type: {"schema": reply.schema}}
    if reply.fields:
        found["headers"] = {name: {"schema": schemas.TEXT} for name in reply.fields}
    return found
