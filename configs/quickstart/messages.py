"""The quick start's messages: tweets and Amazon review sentences, each rated by 20 people.

Source: the source package of vaderSentiment 3.3.2 (MIT), which carries the data of C.J. Hutto and E. Gilbert,
"VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014.
Every choice below follows from sha256 of the message's id, so that each machine picks the same rows.

    python configs/quickstart/messages.py          # fetch, check, and print how many there are
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PACKAGE, VERSION = "vaderSentiment", "3.3.2"
SDIST = f"{PACKAGE}-{VERSION}.tar.gz"
SDIST_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = f"{PACKAGE}-{VERSION}/additional_resources/hutto_ICWSM_2014.tar.gz"
FILES = {"tweets": "tweets", "amazon": "amazonReviewSnippets"}
CACHE = Path(__file__).resolve().parents[2] / "work" / "cache"

Source = Literal["tweets", "amazon"]
LABELS = ("positive", "neutral", "negative")
CALLS_PER_SOURCE = 1250
RATERS = 20


@dataclass(frozen=True, slots=True)
class RatedMessage:
    """One message with its single ratings (-4 to 4, in the file's order) and their mean."""

    id: str
    conversation: str
    source: Source
    text: str
    mean: float
    ratings: tuple[int, ...]

    @property
    def gold(self) -> str:
        return gold_label(self.mean)


def gold_label(mean: float) -> str:
    """Above 0.5 positive, below -0.5 negative; a mean of exactly 0.5 or -0.5 is neutral."""
    return "positive" if mean > 0.5 else "negative" if mean < -0.5 else "neutral"


def rating_label(rating: int) -> str:
    """One person's opinion: above 0 positive, below 0 negative, 0 neutral."""
    return "positive" if rating > 0 else "negative" if rating < 0 else "neutral"


def rank(text: str) -> str:
    """The place of an id in the quick start's fixed random order."""
    return hashlib.sha256(f"potstill quick start:{text}".encode()).hexdigest()


def fetch_sdist(cache: Path = CACHE) -> Path:
    """The source package in `cache`, downloaded by pip at first use; raises RuntimeError on a wrong hash."""
    path = cache / SDIST
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        _download(cache)
    if not path.is_file():
        raise RuntimeError(f"pip left no {SDIST} in {cache}; put the source package of {PACKAGE} {VERSION} there")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SDIST_SHA256:
        raise RuntimeError(f"{path}: sha256 {found}, expected {SDIST_SHA256}; delete the file and fetch it again")
    return path


def _download(cache: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.txt"
        # With the hash in the requirement, pip refuses a different file before it runs anything from it.
        wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SDIST_SHA256}\n")
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", ":all:", "--dest", str(cache), "--requirement", str(wanted)]
        if importlib.util.find_spec("setuptools"):
            command.append("--no-build-isolation")  # else pip first builds setuptools from source
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{PACKAGE} {VERSION} could not be fetched by pip:\n{done.stderr.strip()}")


def read_messages(sdist: Path) -> list[RatedMessage]:
    """Every message with exactly 20 ratings whose stated mean is the mean of its ratings, in file order.

    The first 1,000 tweets have some 97 ratings, and 195 of them state a mean that those do not have: left out.
    """
    with tarfile.open(sdist) as outer:
        inner = outer.extractfile(INNER)
        if inner is None:
            raise RuntimeError(f"{sdist}: {INNER} is not a file; fetch the package again")
        data = inner.read()
    found: list[RatedMessage] = []
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for source, stem in FILES.items():
            truth = dict(_rows(archive, f"hutto_ICWSM_2014/{stem}_GroundTruth.txt"))
            rated = dict(_rows(archive, f"hutto_ICWSM_2014/{stem}_anonDataRatings.txt"))
            for key, (mean, text) in truth.items():
                ratings = tuple(json.loads(rated[key][2]))
                if len(ratings) == RATERS and abs(sum(ratings) / RATERS - float(mean)) < 1e-6:
                    found.append(_message(source, key, float(mean), text, ratings))
    return found


def _rows(archive: tarfile.TarFile, name: str) -> Iterable[tuple[str, list[str]]]:
    stream = archive.extractfile(name)
    if stream is None:
        raise RuntimeError(f"{name} is missing from the source package; fetch it again")
    # Only \r\n ends a row, and one file starts with a byte order mark.
    for line in stream.read().decode("utf-8-sig").split("\r\n"):
        if line:
            key, *fields = line.split("\t")
            yield key, fields


def _message(source: str, key: str, mean: float, text: str, ratings: tuple[int, ...]) -> RatedMessage:
    kind: Source = "amazon" if source == "amazon" else "tweets"
    conversation = f"amazon-{key.split('_')[0]}" if kind == "amazon" else f"tweet-{key}"
    identity = f"amazon-{key}" if kind == "amazon" else conversation
    return RatedMessage(identity, conversation, kind, text.strip(), mean, ratings)


def choose_calls(messages: Sequence[RatedMessage]) -> list[RatedMessage]:
    """The messages that the large model is asked: whole conversations of each source up to 1,250 messages."""
    chosen: list[RatedMessage] = []
    for source in FILES:
        conversations: dict[str, list[RatedMessage]] = {}
        for each in messages:
            if each.source == source:
                conversations.setdefault(each.conversation, []).append(each)
        taken = 0
        for name in sorted(conversations, key=rank):
            if taken + len(conversations[name]) <= CALLS_PER_SOURCE:
                chosen += conversations[name]
                taken += len(conversations[name])
    position = {each.id: at for at, each in enumerate(messages)}
    return sorted(chosen, key=lambda each: (rank(each.conversation), position[each.id]))


def choose_examples(messages: Sequence[RatedMessage], calls: Sequence[RatedMessage]) -> list[RatedMessage]:
    """Twelve few-shot messages, four a label and six a source, from conversations that are not asked.

    Short ones on which the raters agree: a prompt's author would pick such.
    """
    asked = {each.conversation for each in calls}
    rows: list[list[RatedMessage]] = []
    for source in FILES:
        for label in LABELS:
            fit = [
                each
                for each in messages
                if each.source == source and each.gold == label and each.conversation not in asked and _clear(each)
            ]
            rows.append(sorted(fit, key=lambda each: rank(each.id))[:2])
    chosen = [each for row in rows for each in row]
    return sorted(chosen, key=lambda each: rank(f"order:{each.id}"))


def _clear(message: RatedMessage) -> bool:
    agreed = abs(message.mean) <= 0.15 if message.gold == "neutral" else abs(message.mean) >= 1.5
    return agreed and 20 <= len(message.text) <= 110


def main() -> int:
    messages = read_messages(fetch_sdist())
    calls = choose_calls(messages)
    for name, rows in (("usable", messages), ("calls", calls), ("examples", choose_examples(messages, calls))):
        labels = dict(Counter(each.gold for each in rows))
        sources = dict(Counter(each.source for each in rows))
        print(
            f"{name}: {len(rows)} messages, {len({each.conversation for each in rows})} conversations", sources, labels
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
