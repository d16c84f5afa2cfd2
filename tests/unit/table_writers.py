"""One generated exchange as Langfuse, MLflow and TensorZero would store it: the other direction of the connectors."""

from __future__ import annotations

import json

from potstill.records import Json, Message

from .traced_writers import choice, dumped, nanoseconds, times
from .traffic_round_trip import Written


def langfuse(exchange: Json, exported: bool) -> Written:
    """An observation of the API, or a row of an export: snake_case, input and output as JSON text."""
    answer, _ = choice(exchange)
    start, end = times(exchange)
    used = exchange["response"]["usage"]
    asked = {key: exchange["request"][key] for key in ("messages", "tools") if key in exchange["request"]}
    named: Json = {
        "traceId": "t-" + exchange["id"],
        "parentObservationId": None,
        "startTime": start,
        "endTime": end,
        "userId": exchange["metadata"]["user"],
        "sessionId": exchange["metadata"]["conversation"],
        "providedModelName": exchange["request"]["model"],
        "modelParameters": {"temperature": exchange["request"]["temperature"]},
        "usageDetails": {
            "input": used["prompt_tokens"],
            "output": used["completion_tokens"],
            "total": used["total_tokens"],
        },
        "totalCost": exchange["cost_usd"],
    }
    made: Json = {"id": exchange["id"], "type": "GENERATION", "name": "chat", "level": "DEFAULT"}
    if not exported:
        return Written([made | named | {"input": asked, "output": answer}])
    snake = {"".join("_" + c.lower() if c.isupper() else c for c in key): each for key, each in named.items()}
    return Written([made | snake | {"input": dumped(asked), "output": dumped(answer)}])


def _anthropic_blocks(message: Message) -> list[Json]:
    content = message.get("content")
    made: list[Json] = [{"type": "text", "text": content}] if isinstance(content, str) else []
    for part in content if isinstance(content, list) else []:
        if part["type"] == "text":
            made.append(part)
            continue
        url = part["image_url"]["url"]
        source = {"type": "url", "url": url}
        if url.startswith("data:"):
            media, _, data = url.removeprefix("data:").partition(";base64,")
            source = {"type": "base64", "media_type": media, "data": data}
        made.append({"type": "image", "source": source})
    for call in message.get("tool_calls") or []:
        function = call["function"]
        arguments = json.loads(function["arguments"])
        made.append({"type": "tool_use", "id": call["id"], "name": function["name"], "input": arguments})
    return made


def _anthropic(exchange: Json) -> tuple[Json, Json]:
    request = exchange["request"]
    said: list[Json] = []
    body: Json = {"model": request["model"], "temperature": request["temperature"], "max_tokens": 64, "messages": said}
    for message in request["messages"]:
        if message["role"] == "system":
            body["system"] = message["content"]
        elif message["role"] == "tool":
            block = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": message["content"]}
            said.append({"role": "user", "content": [block]})
        elif message["role"] == "user" and isinstance(message["content"], str):
            said.append(message)
        else:
            said.append({"role": message["role"], "content": _anthropic_blocks(message)})
    tools = [each["function"] for each in request.get("tools", [])]
    if tools:
        kept = ("name", "description")
        body["tools"] = [{k: each[k] for k in kept} | {"input_schema": each["parameters"]} for each in tools]
    answer, finish = choice(exchange)
    reason = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}[finish]
    used = exchange["response"]["usage"]
    counts = {"input_tokens": used["prompt_tokens"], "output_tokens": used["completion_tokens"]}
    return body, {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": _anthropic_blocks(answer),
        "stop_reason": reason,
        "usage": counts,
    }


def mlflow_trace(exchange: Json, anthropic: bool) -> Written:
    """A trace of one call, made with OpenAI's client or with Anthropic's."""
    asked, answered = _anthropic(exchange) if anthropic else (exchange["request"], exchange["response"])
    start, end = times(exchange)
    used = exchange["response"]["usage"]
    counts = {"input_tokens": used["prompt_tokens"], "output_tokens": used["completion_tokens"]}
    span = {
        "trace_id": "4br0CwYrKlIgm8uwRU0qVQ==",
        "span_id": "ToqMkppd+i4=",
        "parent_span_id": None,
        "name": "Completions",
        "start_time_unix_nano": int(nanoseconds(start)),
        "end_time_unix_nano": int(nanoseconds(end)),
        "status": {"code": "STATUS_CODE_OK", "message": ""},
        "attributes": {
            "mlflow.spanType": '"CHAT_MODEL"',
            "mlflow.spanInputs": dumped(asked),
            "mlflow.spanOutputs": dumped(answered),
            "mlflow.chat.tokenUsage": dumped(counts | {"total_tokens": used["total_tokens"]}),
            "mlflow.llm.cost": dumped({"total_cost": exchange["cost_usd"]}),
        },
    }
    metadata = exchange["metadata"]
    info = {
        "trace_id": "tr-" + exchange["id"],
        "state": "OK",
        "trace_metadata": {
            "mlflow.trace.session": metadata["conversation"],
            "mlflow.trace.user": metadata["user"],
        },
        "tags": {},
    }
    return Written([{"info": info, "data": {"spans": [span]}}])


def _tensorzero_blocks(message: Message) -> list[Json]:
    content = message.get("content")
    made: list[Json] = [{"type": "text", "text": content}] if isinstance(content, str) else []
    for part in content if isinstance(content, list) else []:
        if part["type"] == "text":
            made.append(part)
            continue
        url = part["image_url"]["url"]
        media = url.removeprefix("data:").partition(";")[0] if url.startswith("data:") else "image/png"
        held = {"data": url.partition(";base64,")[2]} if url.startswith("data:") else {"source_url": url}
        made.append({"type": "file", "mime_type": media, **held})
    for call in message.get("tool_calls") or []:
        made.append({"type": "tool_call", "id": call["id"], **call["function"]})
    return made


def tensorzero(exchange: Json) -> Written:
    """A row of ChatInference and its model call."""
    answer, finish = choice(exchange)
    request, used = exchange["request"], exchange["response"]["usage"]
    given: Json = {"messages": []}
    for message in request["messages"]:
        if message["role"] == "system":
            given["system"] = message["content"]
        elif message["role"] == "tool":
            block = {"type": "tool_result", "id": message["tool_call_id"], "name": "x", "result": message["content"]}
            given["messages"].append({"role": "user", "content": [block]})
        else:
            given["messages"].append({"role": message["role"], "content": _tensorzero_blocks(message)})
    tools = [each["function"] | {"strict": False} for each in request.get("tools", [])]
    blocks = [
        {
            **each,
            "raw_name": each["name"],
            "raw_arguments": each["arguments"],
            "arguments": json.loads(each["arguments"]),
        }
        if each["type"] == "tool_call"
        else each
        for each in _tensorzero_blocks(answer)
    ]
    row = {
        "id": exchange["id"],
        "function_name": "chat",
        "variant_name": "big",
        "episode_id": exchange["metadata"]["conversation"],
        "input": dumped(given),
        "output": dumped(blocks),
        "tool_params": dumped({"tools_available": tools, "tool_choice": "auto"}) if tools else "",
        "inference_params": dumped({"chat_completion": {"temperature": request["temperature"]}}),
        "processing_time_ms": exchange["latency_ms"],
        "timestamp": exchange["time"],
        "tags": {"user_id": exchange["metadata"]["user"]},
    }
    call = {
        "inference_id": exchange["id"],
        "model_name": request["model"],
        "input_tokens": used["prompt_tokens"],
        "output_tokens": used["completion_tokens"],
        "cost": exchange["cost_usd"],
        "finish_reason": {"tool_calls": "tool_call"}.get(finish, finish),
    }
    return Written([row], {"model_inferences": [call]})
