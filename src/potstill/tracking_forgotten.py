"""Registered versions that learnt from, or were judged on, rows that were forgotten since: tagged, and told by it."""

from __future__ import annotations

from collections.abc import Mapping

from potstill.errors import GateRefused
from potstill.progress import say
from potstill.tracking import Tracking, client
from potstill.tracking_versions import find_version, version_folder

TAG = "potstill.forgotten"
NOUNS = ("adapter", "artifact", "report", "dataset")


def tag_versions(tracking: Tracking, marked: Mapping[str, str], record: str) -> int:
    """Tag every version that names one of these content digests with what was said of it; returns how many."""
    api, count = client(tracking), 0
    for each in api.search_model_versions():
        found = [marked[digest] for noun in NOUNS if (digest := each.tags.get(f"potstill.{noun}")) in marked]
        if found:
            api.set_model_version_tag(each.name, each.version, TAG, f"{found[0]} (forgotten/{record})")
            count += 1
    return count


def heed_version(tracking: Tracking, uri: str, what: str) -> None:
    """Say that a version must be made again, where its tag says so; raises GateRefused where its folders refuse."""
    from potstill.forgetting.tombstone import heed

    version = find_version(tracking, uri)
    words = version.tags.get(TAG.removeprefix("potstill."))
    if words is None:
        return
    root = version_folder(tracking, version)
    for noun in ("adapter", "artifact", "report"):
        try:
            heed(root / noun, f"{what} {noun}")
        except GateRefused as refused:
            raise GateRefused(what, refused.reasons) from refused
    say(f"{what}: warning: {words}")
