"""What a client's `Cache-Control` asks of a cache (RFC 9111, section 5.2.1); other directives are passed over."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Control:
    """`read`: a kept answer will do, no older than `max_age_s`; `write`: this one may be kept."""

    read: bool = True
    write: bool = True
    max_age_s: float = float("inf")


ANYTHING = Control()


def control_of(header: str) -> Control:
    """`no-cache` wants a fresh answer, `no-store` leaves no trace (and reads none), `max-age=0` is `no-cache`."""
    if not header:
        return ANYTHING
    words = [each.strip().lower() for each in header.split(",")]
    age = float("inf")
    for word in words:
        name, _, value = word.partition("=")
        if name == "max-age":
            # A number that is none is read as the strictest one: the client asked for something.
            age = min(age, float(value) if value.isascii() and value.isdigit() else 0.0)
    write = "no-store" not in words
    return Control(write and "no-cache" not in words and age > 0, write, age)
