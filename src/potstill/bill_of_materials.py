"""What an artifact is made of: `bom.json` (CycloneDX 1.6), `NOTICE.txt` and the licence of the base beside the files.

Base, dataset, adapter, every exported file with its sha256, the libraries that wrote it, the settings and the commit.
The same export gives the same bytes: a time would change the artifact's digest and say nothing that the manifest
does not. Nothing here is legal advice; a licence that cannot be found is called unknown, in the file and on the screen.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from potstill import __version__
from potstill.comparing.licence import FILES, UNKNOWN, Licence, licence_of
from potstill.manifest import Manifest, code_state, library_versions, read_manifest, sha256_file, sha256_json
from potstill.manifest import write_atomically as write
from potstill.models import Base
from potstill.progress import say
from potstill.records import Json
from potstill.stage import Upstream

BILL, NOTICE, LICENCE = "bom.json", "NOTICE.txt", "LICENSE.base.txt"
SPACE = uuid.UUID("5a0f6ee6-0d5b-5f0a-9d0c-0a8f6d1c7b52")  # of our serial numbers
SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"


@dataclass(frozen=True, slots=True)
class Terms:
    """What is known of a licence: its title and address, and the sentences that go with what is made of the model."""

    title: str
    link: str
    notice: str = ""


GEMMA = Terms(
    "Gemma Terms of Use",
    "https://ai.google.dev/gemma/terms",
    "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms\n\n"
    "This artifact is a model derivative of Gemma and was modified. Its use is restricted by the Gemma Prohibited Use "
    "Policy (ai.google.dev/gemma/prohibited_use_policy); whoever passes it on passes the restrictions on with it.",
)


def terms_of(licence: str) -> Terms | None:
    """What is known of a licence by the name under which a base gives it; None for an unknown one."""
    word = licence.lower()
    if word.startswith("gemma"):
        return GEMMA
    if "llama" in word:
        return _llama(word)
    if word in ("qwen", "qwen-research", "tongyi-qianwen"):
        return Terms("Qwen License Agreement", "https://huggingface.co/Qwen")
    spdx = _spdx(licence)
    return Terms(spdx, f"https://spdx.org/licenses/{spdx}.html") if spdx else None


def _llama(word: str) -> Terms:
    found = re.search(r"llama[ -]?([234](?:[._][0-9])?)", word)
    if found is None:
        return Terms("Llama Community License", "https://www.llama.com/llama-downloads/", "Built with Llama")
    version = found.group(1).replace("_", ".")
    name = "Meta Llama 3" if version == "3" else f"Llama {version}"
    return Terms(
        f"{name} Community License Agreement",
        f"https://www.llama.com/llama{version.replace('.', '_')}/license/",
        f"Built with {'Meta Llama 3' if version == '3' else 'Llama'}\n\n{name} is licensed under the {name} Community "
        "License, Copyright © Meta Platforms, Inc. All Rights Reserved.\n\nA model that is made with it and passed on "
        "carries `Llama` at the beginning of its name, this notice, and a copy of the agreement.",
    )


def _spdx(licence: str) -> str | None:
    from cyclonedx.spdx import fixup_id

    found: str | None = fixup_id(licence)
    return found


def write_bill(
    out: Path, base: Base, upstream: Upstream, name: str, task: Json, settings: Json, formats: Mapping[str, Json]
) -> Json:
    """Write bill, notice and licence for the files that stand in `out`; returns the short form for the manifest.

    Called last, before the manifest: what is written afterwards is not on the bill.
    """
    licence = licence_of(base, _config(base.path))
    known = terms_of(licence.name)
    if licence.name == UNKNOWN or known is None:
        say(f"licence of {_plain(base.spec)}: {licence}; its terms are not known here, so read them before you ship")
    written = [NOTICE]
    if (text := _licence_text(base.path, known)) is not None:
        write(out / LICENCE, text)
        written.append(LICENCE)
    write(out / NOTICE, _notice(name, base, licence, known, LICENCE in written).encode())
    manifests = {noun: read_manifest(upstream[noun], noun, verify=False) for noun in ("dataset", "adapter")}
    files = {
        path.relative_to(out).as_posix(): sha256_file(path)
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != BILL and not path.name.endswith(".partial")
    }
    facts = {"name": name, "task": task, "settings": sha256_json({"settings": settings, "task": task, "name": name})}
    bill = _bill(facts, base, licence, known, manifests, files, formats)
    write(out / BILL, json.dumps(bill, indent=1, ensure_ascii=False).encode())
    return {
        "file": BILL, "components": len(bill["components"]), "licence": licence.name, "licence_found": licence.source,
        "terms": known.title if known else None, "written": written,
    }  # fmt: skip


def _bill(
    facts: Json, base: Base, licence: Licence, known: Terms | None, manifests: Mapping[str, Manifest],
    files: Mapping[str, str], formats: Mapping[str, Json],
) -> Json:  # fmt: skip
    """The bill as JSON: what the library can say by the library, the model card (which it cannot) put in after it."""
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import ComponentType
    from cyclonedx.model.tool import ToolRepository
    from cyclonedx.output.json import JsonV1Dot6

    code = code_state()
    main = _component(
        "artifact", facts["name"], ComponentType.MACHINE_LEARNING_MODEL, licences=_licences(licence, known),
        properties={"settings_sha256": facts["settings"], "commit": code["commit"], "dirty": code["dirty"],
                    "base": _plain(base.spec)},
    )  # fmt: skip
    base_part = _component(
        "base", _plain(base.spec), ComponentType.MACHINE_LEARNING_MODEL, licences=_licences(licence, known),
        properties={"digest": base.digest, "licence_found": licence.source, "licence_link": licence.link},
    )  # fmt: skip
    parts = [base_part, *_made_from(manifests)]
    parts += [
        _component(f"file:{name}", name, ComponentType.FILE, sha256=digest, properties=_about(name, formats))
        for name, digest in files.items()
    ]
    parts += [
        _component(f"library:{name}", name, ComponentType.PLATFORM if name == "python" else ComponentType.LIBRARY,
                   version=version) for name, version in library_versions().items()
    ]  # fmt: skip
    identity = sha256_json([facts, files, base.digest, {noun: each.digest for noun, each in manifests.items()}])
    bom = Bom(
        serial_number=uuid.uuid5(SPACE, identity), components=parts,
        metadata=BomMetaData(component=main, tools=ToolRepository(components=[
            _component("potstill", "potstill", ComponentType.APPLICATION, version=__version__)])),
    )  # fmt: skip
    by_ref = {each.bom_ref.value: each for each in parts}
    bom.register_dependency(main, [base_part, by_ref["adapter"]])
    bom.register_dependency(by_ref["adapter"], [base_part, by_ref["dataset"]])
    found: Json = json.loads(JsonV1Dot6(bom).output_as_string())
    del found["metadata"]["timestamp"]
    found["metadata"]["component"]["modelCard"] = _model_card(facts["task"], manifests["adapter"])
    return {"$schema": SCHEMA, **found}


def _component(
    ref: str, name: str, kind: Any, *, version: str | None = None, sha256: str | None = None, licences: Any = (),
    properties: Mapping[str, Any] | None = None,
) -> Any:  # fmt: skip
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component

    said = {key: value for key, value in (properties or {}).items() if value is not None}
    return Component(
        name=name,
        type=kind,
        bom_ref=ref,
        version=version,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)] if sha256 else (),
        licenses=licences,
        properties=[Property(name=f"potstill:{key}", value=_text(value)) for key, value in said.items()],
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _licences(licence: Licence, known: Terms | None) -> Any:
    """By its SPDX id where it has one, otherwise by name; none for an unknown licence."""
    from cyclonedx.model import XsUri
    from cyclonedx.model.license import DisjunctiveLicense

    if licence.source == "nowhere":
        return ()
    spdx = _spdx(licence.name)
    if spdx:
        return [DisjunctiveLicense(id=spdx)]
    link = licence.link or (known.link if known else None)
    name = known.title if known else licence.name
    return [DisjunctiveLicense(name=name, url=XsUri(link) if link else None)]


def _made_from(manifests: Mapping[str, Manifest]) -> list[Any]:
    from cyclonedx.model.component import ComponentType

    dataset, adapter = manifests["dataset"], manifests["adapter"]
    sources = [f"{each.role}:{each.digest}" for each in dataset.inputs]
    return [
        _component(
            "dataset", "dataset", ComponentType.DATA,
            properties={"digest": dataset.digest, "rows": dataset.facts.get("rows"), "sources": len(sources),
                        "sources_sha256": sha256_json(sorted(sources))},
        ),
        _component(
            "adapter", "adapter", ComponentType.MACHINE_LEARNING_MODEL,
            properties={"digest": adapter.digest, "rows": adapter.facts.get("rows"), "trained_with": adapter.versions,
                        "commit": adapter.code.get("commit")},
        ),
    ]  # fmt: skip


def _about(name: str, formats: Mapping[str, Json]) -> Json:
    """The format that a file is of, where it is an exported one."""
    return next(({"format": each} for each, entry in formats.items() if entry.get("file") == name), {})


def _model_card(task: Json, adapter: Manifest) -> Json:
    """CycloneDX's own, from version 1.5 on: how it learnt, for what, and from which data."""
    return {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": str(task.get("kind")),
            "datasets": [{"ref": "dataset"}],
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "text"}],
        },
        "properties": [{"name": "potstill:adapter", "value": adapter.digest}],
    }


def _notice(name: str, base: Base, licence: Licence, known: Terms | None, copied: bool) -> str:
    lines = [f"{name} was made by Potstill from {_plain(base.spec)} (digest {base.digest}) and is modified."]
    lines.append(f"Licence of {_plain(base.spec)}: {known.title if known else licence.name} ({licence.found})")
    if link := licence.link or (known.link if known else None):
        lines.append(f"Its text: {link}" + (f", and {LICENCE} in this folder" if copied else ""))
    if known is None:
        lines.append("Potstill knows nothing of these terms. Find out what they are before this artifact is passed on.")
    elif known.notice:
        lines += ["", known.notice]
    beside = next((base.path / each for each in ("NOTICE", "NOTICE.txt", "NOTICE.md") if _is_file(base, each)), None)
    if beside is not None:
        lines += ["", f"The notice that came with {_plain(base.spec)}:", "", beside.read_text(errors="replace").strip()]
    return "\n".join(lines) + "\n"


def _is_file(base: Base, name: str) -> bool:
    return (base.path / name).is_file()


def _licence_text(folder: Path, known: Terms | None) -> bytes | None:
    """The licence as it lies beside the base; of Apache-2.0, which has one text for all, our own copy will do."""
    for name in FILES:
        if (folder / name).is_file():
            return (folder / name).read_bytes()
    if known is None or known.title != "Apache-2.0":
        return None
    ours = [Path(__file__).resolve().parents[2] / "LICENSE"]
    with suppress(metadata.PackageNotFoundError):
        ours += [Path(str(each.locate())) for each in metadata.files("potstill") or () if each.name == "LICENSE"]
    texts = [each.read_bytes() for each in ours if each.is_file()]
    return next((each for each in texts if b"Apache License" in each[:400]), None)


def _plain(spec: str) -> str:
    """A base as it may be named to others: of a path on this machine the last part alone."""
    return spec if spec.startswith("package:") or not Path(spec).is_absolute() else Path(spec).name


def _config(folder: Path) -> Json:
    found: Json = json.loads((folder / "config.json").read_text())
    return found
