"""Registered versions that learnt from, or were judged on, rows that were forgotten since: tagged, and told by it."""

from __future__ import annotations

from collections.abc import Mapping

from potstill.errors import GateRefused
from potstill.progress import say
from potstill.tracking import Tracking, client
from potstill.tracking_versions import find_version

TAG, REFUSE = "forgotten", "forgotten_refuse"
NOUNS = ("adapter", "artifact", "report", "dataset")  # the gravest first


def tag_versions(tracking: Tracking, marked: Mapping[str, str], record: str, *, refuse: bool) -> int:
    """Tag every version that names one of these content digests with what is said of it; returns how many.

    A tag that says `refuse` is not taken back by a later request that only warns.
    """
    api, count = client(tracking), 0
    for each in api.search_model_versions():
        found = [marked[digest] for noun in NOUNS if (digest := each.tags.get(f"potstill.{noun}")) in marked]
        if not found:
            continue
        api.set_model_version_tag(each.name, each.version, f"potstill.{TAG}", f"{found[0]} (forgotten/{record})")
        if refuse:
            api.set_model_version_tag(each.name, each.version, f"potstill.{REFUSE}", "true")
        count += 1
    return count


def heed_version(tracking: Tracking, uri: str, what: str) -> None:
    """Say that a version must be made again, where its tag says so; raises GateRefused where it is to be refused."""
    tags = find_version(tracking, uri).tags
    if TAG not in tags:
        return
    if tags.get(REFUSE) == "true":
        raise GateRefused(what, [f"it {tags[TAG]}"])
    say(f"{what}: warning: it {tags[TAG]}")
