"""Requests that nobody should send, drawn by a seed: shapes, sizes, numbers, schemas, patterns, bytes, frames."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from potstill.records import Json

PATHS = ("/v1/chat/completions",) * 12 + (
    "/v1/completions", "/v1/completions", "/v1/embeddings", "/v1/feedback", "/v1/files", "/v1/batches",
    "/v1/models/x", "/v1/files/x/content", "/v1/batches/../x", "/", "/v1/nothing", "/v1/models",
)  # fmt: skip
TYPES = (b"application/json",) * 8 + (b"text/plain", b"multipart/form-data; boundary=x", b"", b"\xff\xfe", b"a" * 3000)
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, -0.0, 5e-324, "", " ", "0", "null",
    "x" * 5000, "\x00", "\u202e\ufeff", "\U0010ffff", [], {}, [[]], {"": None}, [None], {"a": {"b": {"c": [1]}}}, 1.5,
    "NaN", ["text"], {"type": "text"}, "<|im_end|>", "../../etc/passwd", "${jndi:x}", "' OR 1=1 --", "\n\r\n",
)  # fmt: skip
PATTERNS = (
    "(a+)+$", "(a|aa)+$", "(a{1,1000}){1,1000}", "((((a*)*)*)*)*", "(" * 400, ")" * 400, "[" * 400, "a{99999999999}",
    "^(([a-z])+.)+[A-Z]([a-z])+$", "(?=(?=(?=a)))", "\\1\\2", "[z-a]", "(?P<x>a)(?P=x)", "a" * 9000, "(.*)*" * 50, "*",
    "\\", "[\\", "(?<=a+)b", "\\p{L}+", "a{2,1}", "(?i" * 90, "|" * 400, "a?" * 200 + "a" * 200,
)  # fmt: skip
RAW = (
    b"", b"{", b"}", b"null", b"true", b"[]", b"0", b'""', b"NaN", b"Infinity", b'{"model":NaN}', b'{"n":1e999}',
    b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":NaN}', b"\xef\xbb\xbf{}", b"{}{}", b"\x00",
    b'{"model":"\xff\xfe"}', b'{"model":"\\ud800"}', b'{"a":1,"a":2,"a":3}', "{\"model\":\"m\"}".encode("utf-16"),
    b'{"model":"m","model":3,"messages":[]}', b"[" * 100_000, b'{"a":' * 50_000, b"[" * 900 + b"]" * 900, b"'x'",
    b'{"model":"m","messages":[{"role":"user","content":"x"}],"seed":' + b"9" * 4000 + b"}", b"\x1f\x8b\x08\x00",
    b"--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n", b"--x--", b"--x\r\n\r\n--x",
)  # fmt: skip
HEADERS = (
    (b"authorization", b"Bearer \xff"), (b"content-length", b"-1"), (b"content-length", b"9" * 40),
    (b"content-encoding", b"gzip"), (b"expect", b"100-continue"), (b"x", b"y" * 9000), (b"accept", b"\x80"),
    (b"transfer-encoding", b"gzip, chunked"), (b"range", b"bytes=0-"), (b"cookie", b"a=b; " * 300),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bad:
    """One request; `kind` says what is wrong with it, where anything is."""

    kind: str
    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes


def bad_request(draw: random.Random) -> Bad:
    kind, make = draw.choice(KINDS)
    body = make(draw)
    method = draw.choice(("POST",) * 14 + ("GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"))
    headers = [(b"content-type", draw.choice(TYPES))]
    if draw.random() < 0.1:
        headers.append(draw.choice(HEADERS))
    return Bad(kind, method, draw.choice(PATHS), headers, body)


def usual(draw: random.Random) -> Json:
    """A lawful request with most of what a request may have."""
    body: Json = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    more: Json = {
        "temperature": 0.5, "top_p": 0.9, "n": 2, "stop": ["a"], "seed": 1, "max_tokens": 4, "logprobs": True,
        "top_logprobs": 2, "stream": True, "stream_options": {"include_usage": True}, "user": "u",
        "metadata": {"a": "b"}, "logit_bias": {"5": 1}, "tools": [tool({"type": "object"})], "tool_choice": "auto",
        "response_format": {"type": "json_object"}, "presence_penalty": 1, "prompt": "p", "input": "i",
        "endpoint": "/v1/chat/completions", "input_file_id": "file-x", "kind": "thumbs", "value": True, "id": "x",
    }  # fmt: skip
    return body | {key: more[key] for key in draw.sample(sorted(more), draw.randint(0, 5))}


def tool(parameters: Any) -> Json:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


def dumped(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")


def mutated(draw: random.Random) -> bytes:
    """Odd values in odd places."""
    body = usual(draw)
    for _ in range(draw.randint(1, 3)):
        place: Any = body
        while True:
            keys: Any = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw.choice(keys)
            if isinstance(place[key], dict | list) and place[key] and draw.random() < 0.6:
                place = place[key]
                continue
            place[key] = deepcopy(draw.choice(ODD))
            break
        if draw.random() < 0.2 and isinstance(place, dict):
            place[draw.choice(("x", "grammar", "", "__proto__", "n_probs"))] = deepcopy(draw.choice(ODD))
    return dumped(body)


def schema_of(draw: random.Random, depth: int = 0) -> Any:
    """A schema that means harm."""
    pick = draw.randint(0, 11)
    if pick == 0:
        return {"type": "string", "pattern": draw.choice(PATTERNS)}
    if pick == 1:
        low, high = draw.choice((("minItems", "maxItems"), ("minLength", "maxLength"), ("minimum", "maximum")))
        kind = {"minItems": "array", "minLength": "string", "minimum": "integer"}[low]
        least, most = draw.choice((5, -1, 10**9, 1.5, "a", None)), draw.choice((2, 10**9, -5, 1e300))
        return {"type": kind, low: least, high: most}
    if pick == 2:
        return {"$ref": draw.choice(("#", "#/$defs/a", "http://x/y", "#/a/b", "file:///etc/passwd", 3, "#a"))}
    if pick == 3:
        laughs = {f"a{at}": {"allOf": [{"$ref": f"#/$defs/a{at + 1}"}] * 9} for at in range(12)}
        return {"$defs": laughs | {"a12": {"type": "string"}}, "$ref": "#/$defs/a0"}
    if pick == 4:
        return {"enum": draw.choice(([], ["x"] * 3000, [str(at) for at in range(3000)], "abc", [None], [{}]))}
    if pick == 5:
        return {"type": draw.choice(("foo", 3, None, [], ["string", "string"], {"a": 1}))}
    if pick == 6:
        return {"type": "object", "properties": {f"p{at}": {"type": "integer"} for at in range(draw.choice((1, 500)))}}
    if pick == 7:
        return {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    if pick == 8:
        return deepcopy(draw.choice(ODD))
    if pick == 9:
        schema: Any = {"type": "string"}
        for _ in range(draw.choice((3, 40, 300))):
            schema = {draw.choice(("items", "not", "additionalProperties")): schema}
        return schema
    if depth > 3:
        return {}
    inner = [schema_of(draw, depth + 1) for _ in range(draw.randint(1, 2))]
    many = inner * (12 if depth == 0 else 1)  # times itself at every level would be gigabytes of our own making
    return draw.choice(({"anyOf": inner}, {"type": "object", "properties": {"a": inner[0]}}, {"oneOf": many}))


def hostile(draw: random.Random) -> bytes:
    schema, body = schema_of(draw), usual(draw)
    if draw.random() < 0.5:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    else:
        body["tools"] = [tool(schema)] * (draw.choice((1, 1, 3, 200)) if len(dumped(schema)) < 9_000 else 1)
    return dumped(body)


def deep(draw: random.Random) -> bytes:
    """Nested deeper than anybody reads, in a place where any object may stand."""
    levels = draw.choice((30, 70, 250, 1020, 1030, 20_000))
    inner = b'{"a":' * levels + b"1" + b"}" * levels if draw.random() < 0.5 else b"[" * levels + b"]" * levels
    body = dumped(usual(draw))
    return body[:-1] + b',"' + draw.choice((b"metadata", b"tools", b"response_format", b"x")) + b'":' + inner + b"}"


def huge(draw: random.Random) -> bytes:
    size = draw.choice((100_000, 999_000, 1_100_000))
    what = draw.randint(0, 4)
    body = usual(draw)
    if what == 0:
        body["messages"][0]["content"] = "x" * size
    elif what == 1:
        body["messages"] = body["messages"] * (size // 40)
    elif what == 2:
        body["stop"] = ["s"] * (size // 5)
    elif what == 3:
        body["logit_bias"] = {str(at): 1 for at in range(size // 12)}
    else:
        body["messages"][0]["content"] = [{"type": "text", "text": "a"}] * (size // 30)
    return dumped(body)


def raw(draw: random.Random) -> bytes:
    return draw.choice(RAW)


def broken(draw: random.Random) -> bytes:
    """A lawful body with bytes cut, doubled, or changed."""
    body = bytearray(dumped(usual(draw)))
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(body))
        pick = draw.randint(0, 3)
        if pick == 0:
            del body[at:]
            body += b"{"
        elif pick == 1:
            body[at] = draw.randrange(256)
        elif pick == 2:
            body[at:at] = body[: draw.randint(1, 20)]
        else:
            body[at:at] = draw.choice((b"\xed\xa0\x80", b"\xc0\xaf", b"\\u0000", b"\\ud83d", b"\x00", b"1e9999"))
    return bytes(body)


def noise(draw: random.Random) -> bytes:
    return draw.randbytes(draw.randint(0, 2000))


KINDS: tuple[tuple[str, Callable[[random.Random], bytes]], ...] = (
    *(("mutated", mutated),) * 8, *(("hostile schema", hostile),) * 6, *(("broken", broken),) * 5,
    *(("raw", raw),) * 4, *(("deep", deep),) * 3, *(("noise", noise),) * 2, ("huge", huge),
)  # fmt: skip


POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n"
FRAMES = (
    b"GET / HTTP/1.1\r\n\r\n", b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: abc\r\n\r\n",
    CHUNKED + b"\r\nZZ\r\n{}\r\n0\r\n\r\n",
    CHUNKED + b"\r\n5\r\n{}\r\n0\r\n\r\n",
    CHUNKED + b"\r\nffffffffffffffffff\r\n",
    CHUNKED + b"content-length: 3\r\n\r\n0\r\n\r\n",
    POST + b"content-length: 2\r\ncontent-length: 9\r\n\r\n{}",
    b"\x00\x01\x02\x03\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"HELO x\r\n\r\n", b"\r\n\r\n\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", b"GET /%ff%00%zz HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET / HTTP/9.9\r\nhost: x\r\n\r\n", b"GET / HTTP/1.1\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
    b"GET \xc3\xa9 HTTP/1.1\r\nhost: x\r\n\r\n", b"GET / HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=\r\ncontent-length: 1\r\n\r\nx",
    b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" * 50, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)  # fmt: skip


def frame(draw: random.Random) -> bytes:
    """Bytes for a socket: a bad frame, or a bad request whole."""
    if draw.random() < 0.4:
        return draw.choice(FRAMES)
    bad = bad_request(draw)
    lines = [b"%s %s HTTP/1.1" % (bad.method.encode(), bad.path.encode()), b"host: x", b"connection: close"]
    lines += [name + b": " + value for name, value in bad.headers if b"\xff" not in value]
    if draw.random() < 0.3:
        pieces = [bad.body[at : at + 700] for at in range(0, len(bad.body), 700)][:200]
        body = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in pieces if each) + b"0\r\n\r\n"
        lines.append(b"transfer-encoding: chunked")
    else:
        body = bad.body
        lines.append(b"content-length: %d" % (len(body) + draw.choice((0, 0, 0, 0, 0, 0, 0, -3, 5))))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
