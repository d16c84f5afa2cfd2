"""Where something comes from, and what was made of it: manifests followed by digest, back to the traffic log's hash.

Manifests name their inputs by content, so the way back needs no database: a folder, a file, any hash that a manifest
holds, the id of a served answer, of a logged exchange or of a row will do. A version (`models:/...`) brings its digests
and its own copies of the manifests along, so that it can be followed even where the working folder is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from potstill.errors import ManifestMismatch, RecipeError
from potstill.manifest import MANIFEST, Input, Manifest, read_manifest, sha256_file
from potstill.records import Json

SHORTEST_PREFIX = 6
HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Node:
    """One thing with its content digest; `made_from` leads to its origins, `made_into` to what was made of it."""

    kind: str
    digest: str
    path: str
    made_from: tuple[Node, ...] = ()
    made_into: tuple[Node, ...] = ()

    def to_json(self) -> Json:
        return {
            "kind": self.kind,
            "digest": self.digest,
            "path": self.path,
            "made_from": [each.to_json() for each in self.made_from],
            "made_into": [each.to_json() for each in self.made_into],
        }

    def to_text(self) -> str:
        """The tree towards the origins, then the one towards what was made of it; each thing is opened once."""
        lines = [_label(self)]
        _draw(lines, self.made_from, "", "made_from", {(self.kind, self.digest)})
        if self.made_into:
            lines.append("made into:")
            _draw(lines, self.made_into, "", "made_into", {(self.kind, self.digest)})
        return "\n".join(lines)

    def origins(self) -> list[Node]:
        """The things that nothing here was made from: traffic, gold answers, feedback."""
        if not self.made_from:
            return [self]
        found = {each.digest: each for child in self.made_from for each in child.origins()}
        return list(found.values())


NAMED = ("answer", "exchange", "conversation", "feedback")  # by an id of their own, not by a hash of their content


def short_name(node: Node) -> str:
    """The first digits of its hash, or the id that it is called by."""
    return node.digest if node.kind in NAMED else node.digest[:12]


def _label(node: Node) -> str:
    return f"{node.kind} {short_name(node)}  {node.path}".rstrip()


def _draw(lines: list[str], nodes: Sequence[Node], indent: str, way: str, opened: set[tuple[str, str]]) -> None:
    for at, node in enumerate(nodes):
        last = at == len(nodes) - 1
        below: tuple[Node, ...] = getattr(node, way)
        again = bool(below) and (node.kind, node.digest) in opened
        lines.append(f"{indent}{'└─ ' if last else '├─ '}{_label(node)}{'  (see above)' if again else ''}")
        if not again:
            opened.add((node.kind, node.digest))
            _draw(lines, below, indent + ("   " if last else "│  "), way, opened)


@dataclass(frozen=True, slots=True)
class Known:
    """Every manifest found, folder and manifest."""

    folders: tuple[tuple[Path, Manifest], ...]

    def find(self, digest: str, path: str = "") -> tuple[Path, Manifest] | None:
        """The folder with this content; of several (other settings, same files) the one at `path`, else the first."""
        same = [(folder, found) for folder, found in self.folders if found.digest == digest]
        return next((each for each in same if str(each[0]) == path), same[0] if same else None)


def lineage(thing: str, work_dir: Path, tracking_uri: str | None = None) -> Node:
    """The tree of `thing`: `models:/NAME@ALIAS`, a folder, a file, the first six or more digits of a hash, or the id of
    an answer, a logged exchange, a row or a conversation.

    Raises RecipeError when nothing is known under that name, or more than one thing is.
    """
    known = Known(tuple(_manifests(work_dir)))
    if thing.startswith("models:/"):
        return _of_version(thing, known, tracking_uri)
    path = Path(thing)
    if (path / MANIFEST).is_file():
        manifest = read_manifest(path, verify=False)
        return of_folder(path, manifest, Known(((path, manifest), *known.folders)))
    if path.is_file():
        return _of_digest(sha256_file(path), thing, known)
    from potstill.lineage.rows import of_id

    try:
        return _of_digest(thing.lower(), thing, known)
    except RecipeError:
        found = of_id(thing, known, work_dir)
        if found is None:
            raise
        return found


def _manifests(work_dir: Path) -> Iterable[tuple[Path, Manifest]]:
    """Finished folders of all recipes under a working folder (given with or without the recipe's name).

    The deepest are those of a comparison of bases, which holds a sliced dataset and an adapter a base.
    """
    for pattern in (MANIFEST, f"*/{MANIFEST}", f"*/*/{MANIFEST}", f"*/*/*/{MANIFEST}"):
        for path in sorted(work_dir.glob(pattern)):
            try:
                yield path.parent, read_manifest(path.parent, verify=False)
            except ManifestMismatch:
                continue  # another program's manifest.json


def _of_version(uri: str, known: Known, tracking_uri: str | None) -> Node:
    from potstill.tracking import open_tracking
    from potstill.tracking_versions import find_version, version_folder

    if tracking_uri is None:
        raise RecipeError([f"{uri}: found no tracking address, which a version needs; give the recipe"])
    tracking = open_tracking(tracking_uri)
    version = find_version(tracking, uri)
    root = version_folder(tracking, version)
    copies = [(path.parent, read_manifest(path.parent, verify=False)) for path in sorted(root.glob(f"*/{MANIFEST}"))]
    known = Known((*copies, *known.folders))  # its own first: equal content can have another origin
    made_from = []
    for noun in ("report", "artifact"):
        if digest := version.tags.get(noun):
            made_from.append(origin(Input(noun, "", digest), known))
    alias = f" ({', '.join(version.aliases)})" if version.aliases else ""
    return Node("version", version.tags.get("artifact", ""), f"{version.uri}{alias}", tuple(made_from))


def of_folder(path: Path, manifest: Manifest, known: Known, forward: bool = True) -> Node:
    """A finished folder with its origins and, `forward`, what was made of it."""
    return Node(
        manifest.kind,
        manifest.digest,
        str(path),
        tuple(origin(each, known, (manifest.digest,)) for each in manifest.inputs),
        made_of(manifest.digest, known) if forward else (),
    )


def origin(source: Input, known: Known, below: tuple[str, ...] = ()) -> Node:
    """The node of an input, opened as far as manifests are known; `below` guards against a circle."""
    found = known.find(source.digest, source.path)
    if found is None or source.digest in below:
        return Node(source.role, source.digest, source.path)
    path, manifest = found
    inputs = tuple(origin(each, known, (*below, source.digest)) for each in manifest.inputs)
    return Node(manifest.kind, manifest.digest, str(path), inputs)


def made_of(digest: str, known: Known, above: tuple[str, ...] = ()) -> tuple[Node, ...]:
    """What was made of the thing with this digest, each with what was made of it in turn."""
    if digest in above:
        return ()
    made: dict[tuple[str, ...], Node] = {}
    for path, manifest in known.folders:
        sources = [each.digest for each in manifest.inputs]
        identity = (manifest.digest, *sources)  # equal files made from other inputs are another thing
        if digest in sources and identity not in made:
            into = made_of(manifest.digest, known, (*above, digest))
            made[identity] = Node(manifest.kind, manifest.digest, str(path), made_into=into)
    return tuple(made.values())


def _of_digest(prefix: str, thing: str, known: Known) -> Node:
    if len(prefix) < SHORTEST_PREFIX or not set(prefix) <= HEX:
        raise RecipeError(
            [f"{thing!r}: found no such folder, file, answer or row; expected models:/NAME@ALIAS, a path, an id, or at "
             f"least {SHORTEST_PREFIX} digits of a sha256"]
        )  # fmt: skip
    found: dict[str, Node] = {}
    for path, manifest in known.folders:
        if manifest.digest.startswith(prefix):
            found.setdefault(manifest.digest, of_folder(path, manifest, known))
        for each in manifest.inputs:
            if each.digest.startswith(prefix) and known.find(each.digest) is None:
                found.setdefault(each.digest, Node(each.role, each.digest, each.path, (), made_of(each.digest, known)))
        for name, entry in manifest.files.items():
            digest = str(entry["sha256"])
            if digest.startswith(prefix) and digest not in found:
                found[digest] = Node("file", digest, str(path / name), (of_folder(path, manifest, known),))
    if not found:
        raise RecipeError(
            [f"{thing}: no manifest under the working folder holds this hash, and no row has this id; give the right "
             "work_dir"]
        )  # fmt: skip
    if len(found) > 1:
        names = "; ".join(_label(node) for node in found.values())
        raise RecipeError([f"{thing}: stands for {len(found)} things, expected one; give more digits ({names})"])
    return next(iter(found.values()))
