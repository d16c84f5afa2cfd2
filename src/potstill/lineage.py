"""Where something comes from, and what was made of it: manifests followed by digest, back to the traffic log's hash.

Manifests name their inputs by content, so the way back needs no database: a folder, a file, any hash that a manifest
holds, or the artifact digest that an answer carries will do. A version (`models:/...`) brings its digests and its own
copies of the manifests along, so that it can be followed even where the working folder is gone.
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


def _label(node: Node) -> str:
    return f"{node.kind} {node.digest[:12]}  {node.path}".rstrip()


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
class _Known:
    """Every manifest found, folder and manifest."""

    folders: tuple[tuple[Path, Manifest], ...]

    def find(self, digest: str, path: str = "") -> tuple[Path, Manifest] | None:
        """The folder with this content; of several (other settings, same files) the one at `path`, else the first."""
        same = [(folder, found) for folder, found in self.folders if found.digest == digest]
        return next((each for each in same if str(each[0]) == path), same[0] if same else None)


def lineage(thing: str, work_dir: Path, tracking_uri: str | None = None) -> Node:
    """The tree of `thing`: `models:/NAME@ALIAS`, a folder, a file, or the first six or more digits of a hash.

    Raises RecipeError when nothing is known under that name, or more than one thing is.
    """
    known = _Known(tuple(_manifests(work_dir)))
    if thing.startswith("models:/"):
        return _of_version(thing, known, tracking_uri)
    path = Path(thing)
    if (path / MANIFEST).is_file():
        manifest = read_manifest(path, verify=False)
        return _of_folder(path, manifest, _Known(((path, manifest), *known.folders)))
    digest = sha256_file(path) if path.is_file() else thing.lower()
    return _of_digest(digest, thing, known)


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


def _of_version(uri: str, known: _Known, tracking_uri: str | None) -> Node:
    from potstill.tracking import open_tracking
    from potstill.tracking_versions import find_version, version_folder

    if tracking_uri is None:
        raise RecipeError([f"{uri}: found no tracking address, which a version needs; give the recipe"])
    tracking = open_tracking(tracking_uri)
    version = find_version(tracking, uri)
    root = version_folder(tracking, version)
    copies = [(path.parent, read_manifest(path.parent, verify=False)) for path in sorted(root.glob(f"*/{MANIFEST}"))]
    known = _Known((*copies, *known.folders))  # its own first: equal content can have another origin
    made_from = []
    for noun in ("report", "artifact"):
        if digest := version.tags.get(noun):
            made_from.append(_origin(Input(noun, "", digest), known))
    alias = f" ({', '.join(version.aliases)})" if version.aliases else ""
    return Node("version", version.tags.get("artifact", ""), f"{version.uri}{alias}", tuple(made_from))


def _of_folder(path: Path, manifest: Manifest, known: _Known) -> Node:
    return Node(
        manifest.kind,
        manifest.digest,
        str(path),
        tuple(_origin(each, known, (manifest.digest,)) for each in manifest.inputs),
        _made_of(manifest.digest, known),
    )


def _origin(source: Input, known: _Known, below: tuple[str, ...] = ()) -> Node:
    """The node of an input, opened as far as manifests are known; `below` guards against a circle."""
    found = known.find(source.digest, source.path)
    if found is None or source.digest in below:
        return Node(source.role, source.digest, source.path)
    path, manifest = found
    inputs = tuple(_origin(each, known, (*below, source.digest)) for each in manifest.inputs)
    return Node(manifest.kind, manifest.digest, str(path), inputs)


def _made_of(digest: str, known: _Known, above: tuple[str, ...] = ()) -> tuple[Node, ...]:
    if digest in above:
        return ()
    made: dict[tuple[str, ...], Node] = {}
    for path, manifest in known.folders:
        sources = [each.digest for each in manifest.inputs]
        identity = (manifest.digest, *sources)  # equal files made from other inputs are another thing
        if digest in sources and identity not in made:
            into = _made_of(manifest.digest, known, (*above, digest))
            made[identity] = Node(manifest.kind, manifest.digest, str(path), made_into=into)
    return tuple(made.values())


def _of_digest(prefix: str, thing: str, known: _Known) -> Node:
    if len(prefix) < SHORTEST_PREFIX or not set(prefix) <= HEX:
        raise RecipeError(
            [f"{thing!r}: found no such folder or file; expected models:/NAME@ALIAS, a path, or at least "
             f"{SHORTEST_PREFIX} digits of a sha256"]
        )  # fmt: skip
    found: dict[str, Node] = {}
    for path, manifest in known.folders:
        if manifest.digest.startswith(prefix):
            found.setdefault(manifest.digest, _of_folder(path, manifest, known))
        for each in manifest.inputs:
            if each.digest.startswith(prefix) and known.find(each.digest) is None:
                found.setdefault(each.digest, Node(each.role, each.digest, each.path, (), _made_of(each.digest, known)))
        for name, entry in manifest.files.items():
            digest = str(entry["sha256"])
            if digest.startswith(prefix) and digest not in found:
                found[digest] = Node("file", digest, str(path / name), (_of_folder(path, manifest, known),))
    if not found:
        raise RecipeError([f"{thing}: no manifest under the working folder holds this hash; give the right work_dir"])
    if len(found) > 1:
        names = "; ".join(_label(node) for node in found.values())
        raise RecipeError([f"{thing}: stands for {len(found)} things, expected one; give more digits ({names})"])
    return next(iter(found.values()))
