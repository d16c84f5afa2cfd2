"""The page itself: one file without a network, its data in a script element that no text of a row can close.

Only the page's own script and styles run (their hashes stand in its Content-Security-Policy), and the script writes
rows as text, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from potstill.records import Json

HERE = Path(__file__).parent
TEMPLATE, STYLES, SCRIPTS = "page.html.j2", "page.css", ("page.js", "views.js")
# None of these can then end the element, begin a comment in it, or end a line of script.
_UNSAFE = {ord(each): f"\\u{ord(each):04x}" for each in "<>&\u2028\u2029"}


def render(title: str, data: Json) -> str:
    """The HTML of the page."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    styles, script = _part(STYLES), "\n".join(map(_part, SCRIPTS))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_part(TEMPLATE)).render(
        title=title,
        styles=Markup(styles),
        script=Markup(script),
        styles_hash=_hash(styles),
        script_hash=_hash(script),
        data=Markup(embedded(data)),
    )


def embedded(value: Any) -> str:
    """JSON that may stand in a script element."""
    return json.dumps(value, separators=(",", ":")).translate(_UNSAFE)


def _part(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    """As a Content-Security-Policy names an inline element (W3C, CSP Level 3, section 2.3.1)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
