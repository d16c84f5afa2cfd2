"""`potstill keys add | list | revoke | rotate`: the keys of a server, which sees every change within a second."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from time import time

from potstill.commands.recipes import read
from potstill.commands.serve import settings_from
from potstill.records import Json
from potstill.serving.key_records import Key, added, new_secret, revoked, rotated, seconds_of, sha256_of
from potstill.serving.key_store import KeyStore, key_store
from potstill.serving.settings import ServeSettings


def add(arguments: argparse.Namespace) -> int:
    """Make a key and show it, this once."""
    secret, now = new_secret(), time()
    fresh = Key(
        name=arguments.name,
        tenant=arguments.tenant or arguments.name,
        hash=sha256_of(secret),
        scopes=frozenset(each.strip() for each in arguments.scopes.split(",") if each.strip()),
        created=now,
        expires=now + seconds_of(arguments.expires, "--expires") if arguments.expires else None,
        requests_per_minute=arguments.rpm,
        tokens_per_minute=arguments.tpm,
        concurrent=arguments.concurrent,
        daily_usd=arguments.daily_usd,
        total_usd=arguments.total_usd,
    )
    keys = _store(arguments).change(lambda keys: added(keys, fresh, now))
    first = "\nthe first key: servers with this state refuse every call without a key from now on"
    return _shown_once(arguments, fresh, secret, now, first if len(keys) == 1 else "")


def list_keys(arguments: argparse.Namespace) -> int:
    """All keys, with what they may do; never the keys themselves."""
    now = time()
    keys = _store(arguments).all()
    if arguments.json:
        print(json.dumps({"keys": [told(each, now) for each in keys]}))
        return 0
    print("no keys" if not keys else "\n".join(line(each, now) for each in keys))
    return 0


def revoke(arguments: argparse.Namespace) -> int:
    """End every key of a name now."""
    now = time()
    keys = _store(arguments).change(lambda keys: revoked(keys, arguments.name, now))
    ended = [told(each, now) for each in keys if each.revoked == now]
    text = f"{arguments.name}: {len(ended)} revoked; running servers refuse within a second"
    print(json.dumps({"revoked": ended}) if arguments.json else text)
    return 0


def rotate(arguments: argparse.Namespace) -> int:
    """A new key in place of the old one, which stays good for the time of grace."""
    secret, now = new_secret(), time()
    grace_s = seconds_of(arguments.grace, "--grace")
    keys = _store(arguments).change(lambda keys: rotated(keys, arguments.name, sha256_of(secret), now, grace_s))
    fresh = next(each for each in keys if each.hash == sha256_of(secret))
    return _shown_once(arguments, fresh, secret, now, f"\nthe old key is good until {_when(now + grace_s)}")


def told(key: Key, now: float) -> Json:
    """A key as JSON, its hash shortened to what names it."""
    found = key.to_json() | {"state": key.state(now), "hash": key.hash[:12]}
    moments = {name: found[name] for name in ("created", "expires", "revoked")}
    return found | {name: None if moment is None else _when(moment) for name, moment in moments.items()}


def line(key: Key, now: float) -> str:
    limits = {
        "requests/min": key.requests_per_minute, "tokens/min": key.tokens_per_minute, "at once": key.concurrent,
        "USD a day": key.daily_usd, "USD in all": key.total_usd,
    }  # fmt: skip
    said = ", ".join(f"{value:g} {name}" for name, value in limits.items() if value is not None) or "defaults"
    until = f" until {_when(key.expires)}" if key.expires is not None else ""
    return (
        f"{key.name:<20} {key.state(now):<8} tenant {key.tenant}, {','.join(sorted(key.scopes))}, {said}; "
        f"since {_when(key.created)}{until}"
    )


def _shown_once(arguments: argparse.Namespace, key: Key, secret: str, now: float, more: str = "") -> int:
    if arguments.json:
        print(json.dumps({"key": secret, **told(key, now)}))
    else:
        print(f"{secret}\n{line(key, now)}\nThis is the only time that the key is shown: only its hash is kept.{more}")
    return 0


def _store(arguments: argparse.Namespace) -> KeyStore:
    """Where the server of the same settings looks."""
    settings, work = _settings(arguments)
    return key_store(settings.state, Path(settings.state.dir) if settings.state.dir else work / "state")


def _settings(arguments: argparse.Namespace) -> tuple[ServeSettings, Path]:
    if not arguments.recipe:
        return settings_from(arguments.overrides), Path("work").resolve()
    recipe, _ = read(arguments.recipe, [f"serve.{each}" for each in arguments.overrides])
    settings = recipe.sections["serve"]
    assert isinstance(settings, ServeSettings)
    return settings, recipe.shared.work_dir.parent


def _when(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
