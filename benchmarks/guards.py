"""Guards: what the screens of requests find of attacks, what they take for one wrongly, and what they cost.

    python -m benchmarks.guards [--data FOLDER] [--quick] [--keep] [--json]

--data (or POTSTILL_DATA): a folder with `banking77/*.csv`, `restaurants8k/*.json`, `tau-airline/*.json` as they were
published: real requests to services, none of them an attack. What is absent is not measured, and said so. Where
`bastioncorpus` is installed, its attacks and look-alikes (written by others, seen by no rule here) are measured too.
Shares come with Wilson's interval at 95 %. Rules and threshold were chosen on the development half alone.
Microseconds are processor time of this process, the median of runs.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from benchmarks.guard_texts import LOOK_BAD, LOOK_BAD_HELD_OUT, TOXIC, Attack, attacks
from benchmarks.record import Figure, Record, arguments, columns
from potstill.intervals import wilson
from potstill.redaction import KINDS
from potstill.redaction.rules import find
from potstill.serving.guards.blocklist import Blocklist, of_words
from potstill.serving.guards.decisions import Counters
from potstill.serving.guards.injection import score
from potstill.serving.guards.settings import InjectionScreen, ScreenSettings, ToxicityScreen
from potstill.serving.guards.toxicity import load_toxicity
from potstill.serving.guards.windows import Chain, Listed, Stretches
from potstill.serving.screen import Screen

VARIABLE = "POTSTILL_DATA"
THRESHOLD = InjectionScreen().threshold
TOXIC_AT = ToxicityScreen().threshold
SWEEP = (0.5, 0.6, 0.7, 0.8, 0.9)
TEXT = """the customer asked about an order that has not arrived yet while our agent looked for the parcel and told him
that it would be there by friday please check again whether the refund for it was sent to your account thanks for
waiting we are sorry about this and hope to help you soon with every question on delivery return and payment. """


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get(VARIABLE), help=f"published data ({VARIABLE})")
    parser.add_argument("--show", action="store_true", help="print what was missed and what was taken wrongly")
    args = parser.parse_args()
    packages = ("bastioncorpus", "alt-profanity-check", "google-re2", "scikit-learn", "phonenumberslite")
    record = Record("guards", quick=args.quick, packages=packages)
    rows = [("texts", "number", "share", "95 % interval")]
    traffic = dict(traffics(Path(args.data))) if args.data else {}
    for name in ("banking77", "restaurants8k", "tau-airline"):
        if name not in traffic:
            record.note(f"{name} was not given (--data or {VARIABLE}): over-refusal on it not measured")
    rows += injections(record, traffic, args.quick, args.show)
    rows += toxicity(record, traffic, args.quick, args.show)
    rows += personal(record, traffic, args.quick)
    costs(record, 200 if args.quick else 1_000)
    if not args.json:
        print(columns(rows), end="\n\n")
    raise SystemExit(record.finish(as_json=args.json, keep=args.keep))


# Texts of others


def traffics(folder: Path) -> Iterable[tuple[str, list[str]]]:
    """What customers really wrote, by the data that it stands in; their own words alone."""
    if (folder / "banking77").is_dir():
        yield (
            "banking77",
            [text for name in ("train", "test") for text in _banking(folder / "banking77" / f"{name}.csv")],
        )
    if (folder / "restaurants8k").is_dir():
        files = sorted((folder / "restaurants8k").glob("*.json"))
        yield (
            "restaurants8k",
            [row["userInput"]["text"] for each in files for row in json.loads(each.read_text("utf-8"))],
        )
    if (folder / "tau-airline").is_dir():
        runs = json.loads((folder / "tau-airline" / "gpt-4o-airline.json").read_text("utf-8"))
        said = [each for run in runs for each in run["traj"] if each.get("role") in ("user", "tool")]
        yield "tau-airline", [each["content"] for each in said if isinstance(each.get("content"), str)]


def _banking(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as stream:
        return [row["text"] for row in csv.DictReader(stream)]


def corpus_of_others() -> dict[str, tuple[list[str], list[str]]]:
    """Attacks and look-alikes of bastioncorpus, by half; nothing where it is not installed.

    Its rows with an even place were looked at while the rules were written, the others were not.
    """
    if find_spec("bastioncorpus") is None:
        return {}
    folder = Path(str(import_module("bastioncorpus").__file__)).parent
    rows = [json.loads(line) for line in (folder / "corpus" / "injections.jsonl").read_text("utf-8").splitlines()]
    found = {}
    for half, place in (("by others, looked at", 0), ("by others, held out", 1)):
        labels = ("malicious", "benign")
        hostile, harmless = ([row["text"] for row in rows[place::2] if row["label"] == each] for each in labels)
        found[half] = hostile, harmless
    return found


# What is found


def injections(record: Record, traffic: dict[str, list[str]], quick: bool, show: bool) -> list[tuple[str, ...]]:
    """Shares of attacks found and of harmless texts refused, with the checks."""
    rows: list[tuple[str, ...]] = []
    every = list(attacks())
    scored = [(each, score(each.text).score) for each in every]
    benign = {"development": LOOK_BAD, "held out": LOOK_BAD_HELD_OUT}
    sweep(record, [s for each, s in scored if not each.held_out], [score(each).score for each in benign["development"]])
    for half, held_out in (("development", False), ("held out", True)):
        some = [(each, s) for each, s in scored if each.held_out == held_out]
        found = share(record, f"attacks found, {half}", [s >= THRESHOLD for _, s in some], rows)
        if held_out:
            record.check("attacks found, held out", found, at_least=0.80)
            by_group(record, some, rows)
        if show:
            for each, s in some:
                if s < THRESHOLD and each.disguise == "plain" and not held_out:
                    print(f"missed ({half}, {s:.2f}): {each.family}: {each.text!r}")
    for half, texts in benign.items():
        harmless(record, f"refused, only looks bad, {half}", texts, rows, show and half == "development")
    others = corpus_of_others()
    if not others:
        record.note("bastioncorpus is not installed: attacks written by others not measured")
    for half, (hostile, harmless_ones) in others.items():
        share(record, f"attacks found, {half}", [score(each).score >= THRESHOLD for each in hostile], rows)
        harmless(record, f"refused, look-alikes {half}", harmless_ones, rows, False)
    for name, texts in traffic.items():
        found = harmless(record, f"refused, {name}", texts[:: 10 if quick else 1], rows, show)
        record.check(f"refused, {name}", found, at_most=0.001)
    return rows


def harmless(record: Record, name: str, texts: Sequence[str], rows: list[tuple[str, ...]], show: bool) -> Figure:
    verdicts = [score(each) for each in texts]
    if show:
        for text, verdict in zip(texts, verdicts, strict=True):
            if verdict.score >= THRESHOLD:
                print(f"taken wrongly ({name}, {verdict}): {text[:300]!r}")
    return share(record, name, [each.score >= THRESHOLD for each in verdicts], rows)


def sweep(record: Record, hostile: Sequence[float], harmless: Sequence[float]) -> None:
    """What each threshold would do, on the development half: the setting's default was chosen by it."""
    for threshold in SWEEP:
        record.figure(
            f"found at {threshold:g}, development", sum(each >= threshold for each in hostile) / len(hostile), "share"
        )
        record.figure(
            f"refused at {threshold:g}, development",
            sum(each >= threshold for each in harmless) / len(harmless),
            "share",
        )


def by_group(record: Record, scored: Iterable[tuple[Attack, float]], rows: list[tuple[str, ...]]) -> None:
    """The held-out attacks by family (plain and in a letter) and by disguise."""
    families, disguises = defaultdict[str, list[bool]](list), defaultdict[str, list[bool]](list)
    for each, found in scored:
        disguises[each.disguise].append(found >= THRESHOLD)
        if each.disguise in ("plain", "in a letter"):
            families[each.family].append(found >= THRESHOLD)
    for what, groups in (("family", families), ("disguise", disguises)):
        for name, found_ones in groups.items():
            share(record, f"held out, {what}: {name}", found_ones, rows)


def toxicity(record: Record, traffic: dict[str, list[str]], quick: bool, show: bool) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    if find_spec("profanity_check") is None:
        record.note("alt-profanity-check is not installed: toxicity not measured")
        return rows
    model = load_toxicity()
    share(record, "abuse found", [model.score(each) >= TOXIC_AT for each in TOXIC], rows)
    for name, texts in {"only looks bad": [*LOOK_BAD, *LOOK_BAD_HELD_OUT], **traffic}.items():
        some = texts[:: 10 if quick and len(texts) > 1_000 else 1]
        taken = [model.score(each) >= TOXIC_AT for each in some]
        found = share(record, f"taken for abuse, {name}", taken, rows)
        if name == "banking77":
            record.check("taken for abuse, banking77", found, at_most=0.005)
        if show:
            print(
                *(f"abuse ({name}): {each[:120]!r}" for each, is_taken in zip(some, taken, strict=True) if is_taken),
                sep="\n",
            )
    return rows


def personal(record: Record, traffic: dict[str, list[str]], quick: bool) -> list[tuple[str, ...]]:
    """Banking77 was published without personal data: what is found in it is found wrongly (the rules' own recall is
    measured by benchmarks.redaction)."""
    rows: list[tuple[str, ...]] = []
    for name in ("banking77", "restaurants8k"):
        if name in traffic:
            texts = traffic[name][:: 10 if quick else 1]
            share(record, f"personal data found, {name}", [bool(find(each, KINDS, "US")) for each in texts], rows)
    return rows


def share(record: Record, name: str, found: Sequence[bool], rows: list[tuple[str, ...]]) -> Figure:
    """A share with Wilson's interval, as a figure and as a row of the table."""
    count, of = sum(found), len(found)
    low, high = wilson(count, of)
    figure = record.figures[name] = Figure(count / of, "share", low, high, of)
    rows.append((name, f"{of:,}", f"{count / of:.2%}", f"{low:.2%}..{high:.2%}"))
    return figure


# What it costs


def costs(record: Record, runs: int) -> None:
    """Microseconds for a text of 1,024 characters, plain and with figures in it, each screen alone and all together."""
    plain = (TEXT * 4)[:1024]
    figured = ("Order 4711 of 2026-01-05 for 3 people, +1 415 555 2671, ann.lee@example.org. " + TEXT * 4)[:1024]
    listed = [f"project{chr(97 + at % 26)} {chr(97 + at // 26)}falcon" for at in range(200)]
    words = Blocklist((of_words(listed),))
    sections: dict[str, Any] = {"injection": {}, "personal": {}, "blocklist": {"words": listed}}
    if find_spec("profanity_check") is not None:
        sections["toxicity"] = {}
    screens = {name: screen_of({name: each}) for name, each in sections.items()} | {"all screens": screen_of(sections)}
    for kind, text in (("plain", plain), ("with figures", figured)):
        messages = [{"role": "user", "content": text}]
        for name, screen in screens.items():
            figure = record.figure(f"{name}, 1 KB {kind}", timed(lambda: screen._look(messages, "c"), runs), "us")  # noqa: B023
            if name == "all screens" and kind == "plain":
                record.check("all screens, 1 KB plain", figure, at_most=150, unit="us")
    pieces = [figured[at : at + 4] for at in range(0, 1024, 4)]
    record.figure("filter, a stream of 1 KB in 256 pieces", timed(lambda: streamed(pieces, words), runs // 4), "us")


def screen_of(sections: dict[str, Any]) -> Screen:
    """The step of the server with these sections; everything that it does to a request but its header and counters."""
    screen = Screen(ScreenSettings.model_validate(sections), Counters.of(CollectorRegistry()))
    screen._warm()
    return screen


def streamed(pieces: Sequence[str], words: Blocklist) -> None:
    chain = Chain(
        [
            Stretches(lambda text: find(text, KINDS, "US"), lambda value, kind: "<>"),
            Listed(words, lambda value, kind: ""),
        ],
        lambda cut: None,
    )
    for each in pieces:
        chain.feed(each)
    chain.flush()


def timed(work: Callable[[], Any], runs: int) -> list[float]:
    """Microseconds of processor time a call, of ten groups of calls."""
    work()
    found = []
    for _ in range(10):
        before = time.process_time()
        for _ in range(max(1, runs // 10)):
            work()
        found.append((time.process_time() - before) / max(1, runs // 10) * 1e6)
    return found


if __name__ == "__main__":
    main()
