"""`potstill top`: what a running server does, in the terminal."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from potstill.errors import PotstillError, RecipeError
from potstill.records import Json

if TYPE_CHECKING:
    import httpx
    from rich.console import Group

RECENT = 5  # points that are taken together: ten seconds
BARS = " ▁▂▃▄▅▆▇█"


def top_command(arguments: argparse.Namespace) -> int:
    """Show a running server's numbers until interrupted; with `--once` one time."""
    import httpx

    secret = os.environ.get(arguments.key_env, "") if arguments.key_env else ""
    if arguments.key_env and not secret:
        raise RecipeError([f"--key-env: the variable {arguments.key_env} is not set; export the key in it"])
    headers = {"authorization": f"Bearer {secret}"} if secret else {}
    with httpx.Client(base_url=arguments.url.rstrip("/").removesuffix("/v1"), headers=headers, timeout=10) as http:
        if arguments.once or arguments.json:
            found = summary(_fetch(http))
            if arguments.json:
                print(json.dumps(found))
            else:
                _show_once(found)
            return 0
        _live(http)
    return 0


def _fetch(http: httpx.Client, since: int = 0) -> Json:
    import httpx

    try:
        reply = http.get("/dashboard.json", params={"since": since})
    except httpx.HTTPError as fault:
        raise PotstillError(
            f"{http.base_url}: {fault or type(fault).__name__}; is `potstill serve` running there?"
        ) from fault
    if reply.status_code in (401, 403):
        said = _said(reply) if "authorization" in http.headers else "it asks for a key"
        raise PotstillError(f"{http.base_url}: {said}; name the variable of a key with scope `metrics` with --key-env")
    if reply.status_code != 200:
        raise PotstillError(
            f"{http.base_url}: found status {reply.status_code} at /dashboard.json; is this Potstill's server?"
        )
    found: Json = reply.json()
    return found


def _said(reply: httpx.Response) -> str:
    """The server's own words."""
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {reply.status_code}"


def summary(state: Json) -> Json:
    """What matters of the last ten seconds and of all since the start, in one flat object."""
    points = state["points"][-RECENT:]
    seconds = sum(each["seconds"] for each in points) or 1.0
    answers: dict[str, float] = {}
    for each in points:
        for name, number in each["answers"].items():
            answers[name] = answers.get(name, 0.0) + number
    whole = sum(answers.values())
    errors = sum(sum(each["errors"].values()) for each in points)
    cached = sum(number for name, number in answers.items() if "cache" in name)
    elsewhere = whole - cached - answers.get("engine", 0.0) - answers.get("none", 0.0)
    measured = [each for each in points if each["latency_p50_ms"] is not None]
    last = measured[-1] if measured else {}
    of_all, sums = sum(state["sums"]["answers"].values()), state["sums"]
    return {
        "answers_s": whole / seconds,
        "errors_s": errors / seconds,
        "latency_ms": {name: last.get(f"latency_{name}_ms") for name in ("p50", "p95", "p99")},
        "first_token_ms": {name: last.get(f"first_{name}_ms") for name in ("p50", "p95", "p99")},
        "latency_ms_since_start": state["latency"],
        "prompt_tokens_s": sum(each["prompt_tokens_s"] * each["seconds"] for each in points) / seconds,
        "completion_tokens_s": sum(each["completion_tokens_s"] * each["seconds"] for each in points) / seconds,
        "in_flight": points[-1]["in_flight"] if points else 0,
        "answered_by": answers,
        "cache_share": cached / whole if whole else None,
        "escalated_share": elsewhere / whole if whole else None,
        "answers": of_all,
        "errors": sums["errors"],
        "cost_usd": sum(sums["cost_usd"].values()),
        "saved_usd": sum(sums["saved_usd"].values()),
        "captured": sums["captured"],
        "models": state["models"],
        "draining": state["draining"],
        "capture": state["capture"],
        "up_s": state["up_s"],
        "top_keys": state["top"]["key"],
    }


def _live(http: httpx.Client) -> None:
    from rich.live import Live

    state = _fetch(http)
    points: list[Json] = state["points"]
    with Live(screen=sys.stdout.isatty(), auto_refresh=False) as live:
        while True:
            live.update(screen(summary(state | {"points": points}), points), refresh=True)
            time.sleep(state["every_s"])
            fresh = _fetch(http, points[-1]["number"] if points else 0)
            if fresh["up_s"] < state["up_s"]:  # another server by now
                points = []
            state = fresh
            points = [*points, *fresh["points"]][-600:]


def _show_once(found: Json) -> None:
    from rich.console import Console

    Console().print(screen(found, []))


def screen(found: Json, points: list[Json]) -> Group:
    """The tables of one moment."""
    from rich.console import Group
    from rich.table import Table

    now = Table(box=None, padding=(0, 2), show_header=False)
    for _ in range(4):
        now.add_column(justify="left")
    latency, first = found["latency_ms"], found["first_token_ms"]
    for row in (
        ("answers", f"{found['answers_s']:.1f}/s", "in flight", f"{found['in_flight']:.0f}"),
        ("latency p50 p95 p99", _ms(latency), "first token", _ms(first)),
        ("tokens read", f"{found['prompt_tokens_s']:.0f}/s", "written", f"{found['completion_tokens_s']:.0f}/s"),
        ("from caches", _share(found["cache_share"]), "by the large model", _share(found["escalated_share"])),
        ("saved", f"${found['saved_usd']:,.4f}", "cost", f"${found['cost_usd']:,.4f}"),
        ("errors", f"{found['errors_s']:.2f}/s", "since start", _counts(found["errors"])),
        ("captured", _counts(found["captured"]), "up", f"{found['up_s'] / 60:.0f} min"),
    ):
        now.add_row(*(f"[dim]{each}[/dim]" if at % 2 == 0 else each for at, each in enumerate(row)))
    models = Table(box=None, padding=(0, 2), header_style="dim")
    for name in ("version", "artifact", "format", "engine", "restarts", "held"):
        models.add_column(name)
    for each in found["models"]:
        state = "[green]ready[/green]" if each["ready"] else "[red]away[/red]"
        models.add_row(each["name"], each["artifact"], each["format"], state, str(each["restarts"]), str(each["held"]))
    for each in found["draining"]:
        models.add_row(each["name"], "", "", "[yellow]ends[/yellow]", "", str(each["held"]))
    shown: list[Any] = [now, "", models]
    if len(points) > 1:
        shown += ["", f"[dim]answers/s[/dim]  {spark([each['rate'] for each in points[-60:]])}"]
        shown += [f"[dim]p99      [/dim]  {spark([each['latency_p99_ms'] or 0.0 for each in points[-60:]])}"]
    if found["capture"]["full"]:
        shown += ["", "[red]nothing is captured: the folder is full[/red]"]
    return Group(*shown)


def spark(values: list[float]) -> str:
    """A line of bars, the largest value the highest."""
    most = max(values, default=0.0) or 1.0
    return "".join(BARS[round(max(0.0, each) / most * (len(BARS) - 1))] for each in values)


def _ms(found: Json) -> str:
    return "  ".join("–" if each is None else f"{each:.1f} ms" for each in found.values())


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _counts(found: Json) -> str:
    return ", ".join(f"{name} {number:.0f}" for name, number in sorted(found.items())) or "none"
