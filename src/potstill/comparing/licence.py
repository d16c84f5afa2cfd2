"""What a base says of its licence, and where it says so. Nothing here is legal advice; "unknown" means: look.

Looked for in the order of how much each says of these very weights: the model card beside them, the metadata of the
GGUF, the card on the hub (its local copy, or fetched where the weights came from there), a licence file, the installed
package that brought the file, and last what is known of the family by `model_type`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from potstill.models import Base, read_gguf_field
from potstill.records import Json

UNKNOWN = "unknown: look before you ship"
Source = Literal["model card", "GGUF metadata", "hub card", "licence file", "package", "family", "nowhere"]

# Families all of whose published weights carry one licence. `llama` and `mistral` are not among them: the
# architecture is used under many licences, so the type says nothing.
FAMILIES = {
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3": "gemma",
    "gemma3_text": "gemma",
    "qwen3": "apache-2.0",
    "qwen3_moe": "apache-2.0",
    "phi3": "mit",
    "smollm3": "apache-2.0",
    "olmo2": "apache-2.0",
    "granite": "apache-2.0",
}
TITLES = (
    (r"apache license\s+version 2\.0", "apache-2.0"),
    (r"\bmit license\b", "mit"),
    (r"llama [\d.]+ community license", "llama community"),
    (r"gemma terms of use", "gemma"),
    (r"tongyi qianwen|qwen (research )?license", "qwen"),
    (r"\bbsd 3-clause\b", "bsd-3-clause"),
)
FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "license.txt", "COPYING")
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Licence:
    """Its name as found, where it was found, and a link where the source gives one."""

    name: str
    source: Source
    link: str | None = None

    def __str__(self) -> str:
        if self.source == "nowhere":
            return self.name
        return f"{self.name} ({self.found})"

    @property
    def found(self) -> str:
        """Where it stands, and the doubt that goes with it."""
        vague = self.source in ("family", "package")
        return f"of the {self.source}: check these weights" if vague else self.source


def licence_of(base: Base, config: Json) -> Licence:
    """The first licence that is stated; `Licence(UNKNOWN, "nowhere")` when none is."""
    found = (
        _from_card(base.path / "README.md", "model card")
        or _from_gguf(base.gguf)
        or _from_hub(base)
        or _from_file(base.path)
        or _from_package(base.spec)
    )
    if found is not None:
        return found
    family = FAMILIES.get(str(config.get("model_type")))
    return Licence(family, "family") if family else Licence(UNKNOWN, "nowhere")


def _from_card(path: Path, source: Source) -> Licence | None:
    """`license` of a model card's front matter; `other` with a name goes by its name."""
    if not path.is_file():
        return None
    import yaml

    front = _FRONT_MATTER.match(path.read_text(encoding="utf-8", errors="replace"))
    try:
        data = yaml.safe_load(front.group(1)) if front else None
    except yaml.YAMLError:
        return None
    if not isinstance(data, dict):
        return None
    return _named(data.get("license"), data.get("license_name"), data.get("license_link"), source)


def _named(licence: Any, name: Any, link: Any, source: Source) -> Licence | None:
    if isinstance(licence, list):
        licence = " or ".join(map(str, licence))
    word = name if name and (not licence or licence == "other") else licence
    return Licence(str(word), source, str(link) if link else None) if word else None


def _from_gguf(path: Path | None) -> Licence | None:
    if path is None:
        return None
    licence, name, link = (read_gguf_field(path, f"general.license{part}") for part in ("", ".name", ".link"))
    return _named(licence, name, link, "GGUF metadata")


def _from_hub(base: Base) -> Licence | None:
    """The hub's card for a base that came from there; a missing one, or no network, is no fault."""
    if "snapshots" not in base.path.parts:
        return None
    from huggingface_hub import hf_hub_download

    try:
        return _from_card(Path(hf_hub_download(base.spec, "README.md")), "hub card")
    except Exception:  # many kinds of refusal, all of which mean: no card to be had
        return None


def _from_file(folder: Path) -> Licence | None:
    for name in FILES:
        path = folder / name
        if path.is_file():
            beginning = " ".join(path.read_text(encoding="utf-8", errors="replace")[:2000].lower().split())
            known = next((word for title, word in TITLES if re.search(title, beginning)), None)
            return Licence(known or f"see {name}", "licence file")
    return None


def _from_package(spec: str) -> Licence | None:
    if not spec.startswith("package:"):
        return None
    module = spec.removeprefix("package:").partition("/")[0]
    for name in metadata.packages_distributions().get(module, []):
        about: Any = metadata.metadata(name)  # its `get` is not in the types
        said = about.get("License-Expression") or about.get("License")
        if said and "\n" not in said:
            return Licence(said.lower(), "package")
    return None
