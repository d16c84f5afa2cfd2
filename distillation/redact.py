"""Personal data on its way into a dataset: what the recipe wants replaced, and who replaces it."""

from __future__ import annotations

from functools import lru_cache

from potstill.recipe import Section
from potstill.redaction import KINDS, PLACEHOLDER, Kind, Names, Redactor, load_names


class Redact(Section):
    """Kinds of personal data to replace; `region` is where national telephone numbers are read as (ISO 3166).

    `names` is a spaCy pipeline (an installed package or a folder) that finds people and places too; it costs some
    milliseconds a text and finds by far not all: `benchmarks.redaction` measures how many.
    """

    kinds: tuple[Kind, ...] = KINDS
    region: str = "US"
    names: str = "off"

    def redactor(self, key: bytes) -> Redactor:
        """A redactor with nothing found yet; the same value has the same placeholder under the same key."""
        return Redactor(self.kinds, self.region, key, _names(self.names))


@lru_cache(maxsize=1)
def _names(model: str) -> Names | None:
    return load_names(model)


def comparable(text: str) -> str:
    """The text with all placeholders of a kind alike: a value's own differs between conversations."""
    return PLACEHOLDER.sub(lambda found: found.group().rpartition("_")[0] + ">", text) if "_" in text else text
