"""Every error that Potstill raises on purpose, each with the exit code of the command that meets it.

    PotstillError (1: a fault)
    ├── RecipeError (2: the recipe or the command line is wrong; carries every fault found)
    ├── GateRefused (3: the evidence does not allow what was asked)
    └── DamagedInput (4: an input is not what it claims to be)
        ├── DamagedLine (one line of a log; collected, not fatal by itself)
        ├── ManifestMismatch (a folder's files disagree with its manifest)
        ├── ParityMismatch (template, tokens, labels or prompt rule differ between training and serving)
        ├── Untrusted (a folder is not signed, or not by the key that is trusted, or not as it stands)
        ├── UnsafeName (a name from outside would lead out of the folder that it belongs to)
        └── SealedSplit (a stage asked for rows that it may not see)
    NothingLearned (PotstillError): no supervised token, a flat or non-finite loss, a student surely worse than its base
    EngineFailure (PotstillError): the inference engine did not start, crashed, or answered nonsense

Messages say what was found, what was expected, and what to do next.
A new class earns its place when somebody catches it apart from its parent.
"""

from __future__ import annotations

from collections.abc import Sequence


class PotstillError(Exception):
    """Root of the family. `exit_code` is what the command line returns."""

    exit_code = 1


class RecipeError(PotstillError):
    """One or more faults in a recipe or its overrides; `faults` holds a printable line for each."""

    exit_code = 2

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


class GateRefused(PotstillError):
    """The evidence does not support the action; `reasons` says why, in full sentences."""

    exit_code = 3

    def __init__(self, what: str, reasons: Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__(f"{what}: " + "; ".join(self.reasons))


class DamagedInput(PotstillError):
    """An input is not what it claims to be."""

    exit_code = 4


class DamagedLine(DamagedInput):
    """One line of a log cannot be read as an exchange; the message is the reason kept beside it."""


class ManifestMismatch(DamagedInput):
    """A folder's files disagree with its manifest, or the manifest is missing."""


class ParityMismatch(DamagedInput):
    """Template, tokens, labels or prompt rule differ between what was trained and what would be served."""


class Untrusted(DamagedInput):
    """A signature is missing where one is asked for, is another key's, or is not of this folder's files."""


class UnsafeName(DamagedInput, ValueError):
    """A name from outside that may not become a path. A ValueError too, so that a recipe's fault has its place."""


class SealedSplit(DamagedInput):
    """A stage asked for rows that it may not see."""


class NothingLearned(PotstillError):
    """Training had nothing to learn from, or the loss says that it learned nothing."""


class EngineFailure(PotstillError):
    """The inference engine did not start, crashed, or broke its protocol."""
