"""What an approval is: the hash that binds it to its arguments, and the schema of its answer. Pure."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping


def digest_of(tool: str, arguments: Mapping[str, Any]) -> tuple[bytes, str]:
    """The arguments as JSON with sorted keys, and the SHA-256 of the tool's name and that, as 16 hexadecimal digits."""
    payload = msgspec.json.encode(arguments, order="sorted")
    return payload, hashlib.sha256(tool.encode() + b"\0" + payload).hexdigest()[:16]


def answer_schema(digest: str, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """The JSON Schema of a decision on these arguments; what replaces them must fit the tool's own `parameters`."""
    arguments = dict(parameters) if parameters else {"type": "object"}
    text = {"type": "string", "minLength": 1}
    return {
        "type": "object",
        "properties": {
            "decision": {"enum": ["approve", "reject", "edit"]},
            "digest": {"const": digest},
            "reason": text,
            "arguments": arguments,
        },
        "required": ["decision", "digest"],
        "additionalProperties": False,
        "allOf": [
            {
                "if": {"properties": {"decision": {"const": "reject"}}},
                "then": {"required": ["reason"]},
            },
            {
                "if": {"properties": {"decision": {"const": "edit"}}},
                "then": {"required": ["arguments"]},
                "else": {"properties": {"arguments": False}},
            },
        ],
    }
