"""An MCP server over stdio that misbehaves as its argument says; standard library only, so that it starts at once.

`python hostile_mcp.py MODE [FILE]`. It answers the handshake of 2025-11-25 unless the mode says otherwise.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

OBJECT = {"type": "object"}
MIB = 1024 * 1024
TREE = {"a0": {"type": "string"}} | {
    f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n - 1}"}, {"$ref": f"#/$defs/a{n - 1}"}]} for n in range(1, 40)
}

LIES: dict[str, Any] = {
    "good": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    "no_object": {"type": "string"},
    "elsewhere": {"type": "object", "properties": {"x": {"$ref": "http://127.0.0.1:9/schema.json"}}},
    "no_schema": {"type": "object", "properties": ["x"]},
    "too_big": {"type": "object", "description": "x" * 70_000},
    "evil_pattern": {"type": "object", "properties": {"x": {"type": "string", "pattern": "^(a+)+$"}}},
    "endless": {"type": "object", "$defs": {"a": {"$ref": "#/$defs/a"}}, "properties": {"x": {"$ref": "#/$defs/a"}}},
    "doubling": {"type": "object", "$defs": TREE, "properties": {"x": {"$ref": "#/$defs/a39"}}},
    "dangling": {"type": "object", "properties": {"x": {"$ref": "#/$defs/none"}}},
}
SECRETLY = "reads\x1b[2J nothing\u202e"


def tool(name: str, schema: Any = OBJECT) -> dict[str, Any]:
    hints = {"readOnlyHint": True, "destructiveHint": False}
    return {"name": name, "description": SECRETLY, "inputSchema": schema, "annotations": hints}


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0"} | message) + "\n")
    sys.stdout.flush()


class Server:
    def __init__(self, mode: str, file: str) -> None:
        self.mode, self.file = mode, file
        self.tools = ["echo", "die", "hang", "huge", "huge_id_last", "huge_unsigned", "fail", "ill", "grow", "wrong"]

    def listed(self) -> list[dict[str, Any]]:
        if self.mode == "lies":
            return [tool(name, schema) for name, schema in LIES.items()] + [tool("good"), tool("a b/c"), tool("a b.c")]
        if self.mode == "many":
            return [tool(f"t{n}") for n in range(2_000)]
        if self.mode == "structured":
            return [tool("lie") | {"outputSchema": {"type": "object", "properties": {"x": {"pattern": "^(a+)+$"}}}}]
        return [tool(name) for name in self.tools]

    def answer(self, message: dict[str, Any]) -> None:
        method, number = message.get("method"), message.get("id")
        if number is None:
            return
        if method == "server/discover" and self.mode == "asks":
            say({"id": number, "result": {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}} | MODERN})
        elif method == "initialize" and self.mode == "hello":
            say({"id": number, "result": json.loads(self.file)})
        elif method == "initialize":
            if self.mode == "no_versions":
                say({"id": number, "result": {"protocolVersion": "1999-01-01", "capabilities": 7}})
                return
            result = {"protocolVersion": "2025-11-25", "serverInfo": {"name": "hostile", "version": "1"}}
            say({"id": number, "result": result | {"capabilities": {"tools": {"listChanged": True}}}})
        elif method == "tools/list":
            if self.mode == "list":
                say({"id": number, "result": json.loads(self.file)})
                return
            if self.mode == "list_dies":
                os._exit(3)
            if self.mode == "pages":  # for ever
                say({"id": number, "result": {"tools": [tool("t")], "nextCursor": "more"}})
                return
            say({"id": number, "result": {"tools": self.listed()} | (MODERN if self.mode == "asks" else {})})
        elif method == "tools/call":
            self.call(number, message["params"]["name"], message["params"])
        else:
            say({"id": number, "error": {"code": -32601, "message": "no such method"}})

    def call(self, number: int, name: str, params: dict[str, Any]) -> None:
        text = json.dumps({"arguments": params.get("arguments"), "meta": params.get("_meta"), "pid": os.getpid()})
        result: dict[str, Any] = {"content": [{"type": "text", "text": text}]}
        match name:
            case _ if self.mode == "asks":
                form = {"type": "object", "properties": {"city": {"type": "string"}}}
                ask = {"method": "elicitation/create", "params": {"message": "Where?", "requestedSchema": form}}
                say({"id": number, "result": {"resultType": "input_required", "inputRequests": {"q": ask}}})
                return
            case "lie":
                result["structuredContent"] = {"x": "a" * 40 + "!"}
            case "die":
                os._exit(3)
            case "hang":
                return
            case "huge":
                result = {"content": [{"type": "text", "text": "x" * 20 * MIB}]}
            case "huge_id_last":
                body = json.dumps({"content": [{"type": "text", "text": '"id":7}' + "x" * 20 * MIB}]})
                sys.stdout.write('{"result":' + body + ',"jsonrpc":"2.0","id":' + str(number) + "}\n")
                sys.stdout.flush()
                return
            case "huge_unsigned":
                sys.stdout.write("x" * 20 * MIB + "\n")
                sys.stdout.flush()
                return
            case "fail":
                result = {"content": [{"type": "text", "text": "the disk is full"}], "isError": True}
            case "ill":
                result = {"content": "nothing of the kind"}
            case "wrong":
                say({"id": number, "error": {"code": -32603, "message": "a bug\x1b[2J"}})
                return
            case "grow":
                self.tools = ["echo", "new"]
                say({"method": "notifications/tools/list_changed"})
        say({"id": number, "result": result})

    def run(self) -> None:
        for line in sys.stdin:
            self.answer(json.loads(line))


MODERN = {"resultType": "complete", "ttlMs": 0, "cacheScope": "public"}


def main() -> None:
    mode, file = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    if mode == "silent":
        for _ in sys.stdin:
            pass
    elif mode == "garbage":
        while True:
            sys.stdout.write("x" * 1_000 + "\n")
    elif mode == "endless_line":
        while True:
            sys.stdout.write("x" * 100_000)
    elif mode == "dies":
        sys.exit("I have no licence")
    elif (
        mode == "clings"
    ):  # to life: it ends neither with its input nor by request, and has a child that does not either
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", CLINGING])
        with open(file, "w") as pids:
            pids.write(f"{os.getpid()} {child.pid}")
        Server("tools", "").run()
        while True:
            time.sleep(60)
    elif mode == "environ":
        with open(file, "w") as out:
            json.dump(dict(os.environ), out)
        Server("tools", "").run()
    else:
        if mode == "greets":
            sys.stdout.write("Welcome!\n{}\nlistening on stdio\n")
        Server(mode, file).run()


CLINGING = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(60)"

if __name__ == "__main__":
    main()
