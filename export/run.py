"""Export: an adapter becomes GGUF files that a service can load, each verified against the adapter.

    reads   adapter/ (LoRA, tokenizer, contract), dataset/ (validation rows only), the base that both came from
    writes  model-q8_0.gguf, model-q4_k_m.gguf, ... (as asked), contract.json, profile.json (what the training rows
            look like, as counts, for `serve.drift`), verification.json
    run     potstill export RECIPE [export.formats=[gguf-q8_0,gguf-q4_k_m]]

The files hold the merged weights and the very chat template of training. A file whose template or tokens differ, or
that answers otherwise than the adapter more often than allowed, is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from potstill import models
from potstill.bill_of_materials import write_bill
from potstill.contract import Contract
from potstill.dataset import read_examples
from potstill.errors import ManifestMismatch
from potstill.manifest import Input, read_manifest
from potstill.recipe import Section
from potstill.records import Example, Json
from potstill.signing import SignSettings
from potstill.stage import Noun, Shared, Upstream
from potstill.watching.profile import write_profile

from .formats import FormatName

NOUN: Noun = "artifact"
NEEDS: tuple[Noun, ...] = ("dataset", "adapter")
MISMATCH_SHARE = 0.05
MISMATCH_SHARE_FREE_TEXT = 0.5


class Settings(Section):
    """`verify_rows` validation rows are answered by the adapter and by each file.

    `max_mismatch_share`: the share of differing answers above which a file is refused; judged at the lower end of
    its interval, so that few rows cannot trip it by chance. Left out, it is 0.05, and 0.5 for free text, where one
    rounded token changes all that follow.

    `importance_rows` training rows weigh the columns of gguf-q6_k, gguf-q5_k_m and gguf-q4_k_m; 0 leaves them
    unweighed. It is off by default: measured, it did not help, and on a base that was quantised before it can undo the
    training (docs/export.md).
    """

    formats: Annotated[tuple[FormatName, ...], Field(min_length=1)] = ("gguf-q8_0",)
    verify_rows: Annotated[int, Field(ge=1)] = 64
    max_mismatch_share: Annotated[float | None, Field(ge=0, le=1)] = None
    importance_rows: Annotated[int, Field(ge=0)] = 0
    # signing changes nothing in the folder, so that the key is no reason to export again
    sign: Annotated[SignSettings | None, Field(exclude=True, description="sign the artifact with this key")] = None


def inputs(settings: Settings, shared: Shared) -> list[Input]:
    """The base that the adapter is merged into."""
    return [models.base_input(shared.base_model)]


def main(settings: Settings, shared: Shared, upstream: Upstream, out: Path) -> Json:
    """Merge, write each format, verify and measure it; returns sizes, types, agreement and where the base's GGUF is."""
    from .folder_verify import measure
    from .measure import add_to_verification
    from .verify import verify_files
    from .write import base_gguf, source_of, write_formats

    base = trained_base(shared, upstream["adapter"])
    contract = Contract.read(upstream["adapter"])
    source = source_of(base, upstream, contract, shared.name, settings.importance_rows)
    formats = write_formats(settings.formats, source, out)
    contract.write(out)
    profile = write_profile(upstream["dataset"], shared.task(), out)
    rows = verification_rows(upstream["dataset"], settings.verify_rows)
    limit = mismatch_limit(settings, shared)
    files = {name: out / entry["file"] for name, entry in formats.items()}
    verification = verify_files(files, base.path, upstream["adapter"], contract, rows, limit, out)
    verification = add_to_verification(verification, measure(files, source, rows, out), out)
    used = settings.model_dump(mode="json")
    bill = write_bill(out, base, upstream, shared.name, shared.task_definition, used, formats)
    return {
        "base": {"spec": base.spec, "digest": base.digest},
        "formats": formats,
        "verification": verification,
        "bill": bill,
        "profile": profile,
        "base_gguf": str(base_gguf(base, shared.cache_dir)),
    }


def trained_base(shared: Shared, adapter: Path) -> models.Base:
    """The base of the recipe; raises ManifestMismatch when the adapter was trained on another."""
    base = models.resolve_base(shared.base_model, shared.cache_dir)
    trained_on = read_manifest(adapter, "adapter", verify=False).facts["base"]
    if trained_on["digest"] != base.digest:
        raise ManifestMismatch(
            f"{adapter}: trained on {trained_on['spec']} ({trained_on['digest'][:12]}), but base_model "
            f"{base.spec} is {base.digest[:12]} now; train again"
        )
    return base


def verification_rows(dataset: Path, most: int) -> list[Example]:
    """Up to `most` validation rows (training rows where there are none), evenly spread over the stored order."""
    rows = read_examples(dataset, "validation") or read_examples(dataset, "train")
    if len(rows) <= most:
        return rows
    return [rows[at * len(rows) // most] for at in range(most)]


def mismatch_limit(settings: Settings, shared: Shared) -> float:
    """The share of differing answers that is allowed."""
    if settings.max_mismatch_share is not None:
        return settings.max_mismatch_share
    return MISMATCH_SHARE_FREE_TEXT if shared.task().kind == "generation" else MISMATCH_SHARE
