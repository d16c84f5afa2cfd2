"""Alarms and decisions sent to an address as JSON, signed, and sent again while it does not take them.

The signature is that of the exact bytes with the moment before them, so that neither can be exchanged:
`x-potstill-signature: t=SECONDS,v1=HEX` with HMAC-SHA256 (RFC 2104) over `SECONDS.BODY`. An event keeps its id through
all attempts: who receives it twice can tell.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import random
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Sequence

from potstill.errors import RecipeError
from potstill.progress import say
from potstill.records import Json
from potstill.watching.settings import WebhookSettings

FIRST_REST_S = 1.0
LONGEST_REST_S = 60.0


def check_secrets(hooks: Sequence[WebhookSettings]) -> None:
    """Raises RecipeError for a secret whose variable is not set."""
    for hook in hooks:
        if hook.secret is not None and not os.environ.get(hook.secret):
            raise RecipeError([f"webhooks.secret: environment variable {hook.secret} is not set; export it"])


def signature(secret: str, moment: int, body: bytes) -> str:
    """The header's value."""
    made = hmac.new(secret.encode(), f"{moment}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={moment},v1={made}"


def send_all(
    hooks: Sequence[WebhookSettings], kind: str, data: Json, rest: Callable[[float], None] = time.sleep
) -> int:
    """Send one event to every address; returns how many took it. What cannot be delivered is said, never raised."""
    event = {"id": uuid.uuid4().hex, "kind": kind, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **data}
    body = json.dumps(event, ensure_ascii=False).encode()
    return sum(_send(hook, body, kind, rest) for hook in hooks)


def _send(hook: WebhookSettings, body: bytes, kind: str, rest: Callable[[float], None]) -> bool:
    wait, fault = FIRST_REST_S, ""
    for attempt in range(hook.attempts):
        if attempt:
            rest(wait * random.uniform(0.5, 1.5))
            wait = min(LONGEST_REST_S, 2 * wait)
        status, fault = _post(hook, body)
        if 200 <= status < 300:
            return True
        if 400 <= status < 500 and status not in (408, 425, 429):
            break  # it will never be taken
    say(f"webhook: {kind} was not taken by {_host(hook.url)}: {fault}")
    return False


def _post(hook: WebhookSettings, body: bytes) -> tuple[int, str]:
    """The status (0: no answer) and what is told of it. A redirect is not followed: it may lead anywhere."""
    headers = {"content-type": "application/json", "user-agent": "potstill"}
    if hook.secret is not None:
        headers["x-potstill-signature"] = signature(os.environ.get(hook.secret, ""), int(time.time()), body)
    request = urllib.request.Request(hook.url, data=body, headers=headers, method="POST")
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=hook.timeout_s) as reply:
            return int(reply.status), f"status {reply.status}"
    except urllib.error.HTTPError as fault:
        return fault.code, f"status {fault.code}"
    except (OSError, ValueError) as fault:
        return 0, f"{type(fault).__name__}: {fault}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


def _host(url: str) -> str:
    """The address without what may be secret in it."""
    return url.partition("://")[2].partition("/")[0].rpartition("@")[2]
