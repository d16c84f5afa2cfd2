"""A lineage as a picture: origins on the left, what was made of them on the right, one self-contained SVG or page.

Layers by the longest way from an origin, nodes in a layer ordered by the mean place of what they hang on (the
barycentre heuristic of Sugiyama, Tagawa and Toda 1981), which is enough for some dozens of nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from statistics import fmean

from potstill.lineage.tree import Node, short_name

Key = tuple[str, str, str]
WIDTH, HEIGHT, ACROSS, DOWN, MARGIN = 224, 62, 84, 18, 24
LETTERS = 30  # of a line in a box
PASSES = 6
COLOURS: Mapping[str, str] = dict.fromkeys(("traffic", "captured", "exchange", "conversation"), "#8a8f98") | {
    "feedback": "#c77d00",
    "answer": "#c77d00",
    "dataset": "#2f7fd1",
    "adapter": "#7a4fd0",
    "artifact": "#128a6b",
    "report": "#c0392b",
    "version": "#1f9d3a",
}
STYLE = """
.lineage{font:13px/1.3 system-ui,sans-serif;background:#fff;--ink:#1b1f24;--soft:#59636e;--box:#f6f8fa;--line:#9aa4af}
.lineage rect.box{fill:var(--box)} .lineage text{fill:var(--ink)} .lineage .soft{fill:var(--soft);font-size:11px}
.lineage .kind{font-weight:600} .lineage path{fill:none;stroke:var(--line);stroke-width:1.5}
.lineage .this rect.box{stroke-width:3}
@media (prefers-color-scheme:dark){
.lineage{background:#14181d;--ink:#e6edf3;--soft:#9aa4af;--box:#1f262e;--line:#56616d}}
"""


@dataclass
class _Graph:
    """Every thing once, and who was made from whom."""

    nodes: dict[Key, Node] = field(default_factory=dict)
    edges: dict[tuple[Key, Key], None] = field(default_factory=dict)

    def add(self, node: Node) -> Key:
        key = (node.kind, node.digest, node.path if not node.digest or node.kind == "feedback" else "")
        fresh = key not in self.nodes
        self.nodes.setdefault(key, node)
        for each in node.made_from:
            self._join(self.add(each), key)
        for each in node.made_into:
            self._join(key, self.add(each))
        if not fresh and len(node.path) > len(self.nodes[key].path):
            self.nodes[key] = node  # the fuller words
        return key

    def _join(self, start: Key, end: Key) -> None:
        if start != end and (end, start) not in self.edges:
            self.edges[(start, end)] = None

    def leave_implied_out(self) -> None:
        """Drop each way that a longer one implies: a report hangs on its artifact, and so on its adapter too."""
        further: dict[Key, list[Key]] = {}
        for start, end in self.edges:
            further.setdefault(start, []).append(end)
        for start, end in list(self.edges):
            seen: set[Key] = set()
            todo = [each for each in further[start] if each != end]
            while todo:
                each = todo.pop()
                if each not in seen:
                    seen.add(each)
                    todo += further.get(each, [])
            if end in seen:
                del self.edges[(start, end)]
                further[start].remove(end)


def draw(node: Node, *, page: bool = False) -> str:
    """The SVG of a tree, or with `page` an HTML page with it and the tree as text below."""
    graph = _Graph()
    this = graph.add(node)
    graph.leave_implied_out()
    places = _placed(graph)
    svg = _svg(graph, places, this)
    if not page:
        return svg
    title = escape(f"{node.kind} {short_name(node)}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><style>:root{color-scheme:light dark}'
        "body{margin:16px;font:14px system-ui,sans-serif}div,pre{overflow-x:auto}"
        "svg{width:100%;height:auto;min-width:900px;max-width:fit-content}</style>"
        f"<h1>{title}</h1><div>{svg}</div><pre>{escape(node.to_text())}</pre></html>\n"
    )


def _placed(graph: _Graph) -> dict[Key, tuple[int, int]]:
    """Column and row of every node."""
    depth = dict.fromkeys(graph.nodes, 0)
    for _ in graph.nodes:  # as many rounds as the longest way can have; a circle cannot make more
        for start, end in graph.edges:
            depth[end] = max(depth[end], min(depth[start] + 1, len(graph.nodes)))
    for key in graph.nodes:  # an origin stands beside what was made of it, not at the far left
        ends = [depth[end] for start, end in graph.edges if start == key]
        if ends and not any(end == key for _, end in graph.edges):
            depth[key] = min(ends) - 1
    columns: dict[int, list[Key]] = {}
    for key in graph.nodes:
        columns.setdefault(depth[key], []).append(key)
    row = {key: at for keys in columns.values() for at, key in enumerate(keys)}
    for turn in range(PASSES):
        for column in sorted(columns, reverse=turn % 2 == 1):
            keys = columns[column]
            beside = {key: _neighbours(graph, key, row, turn % 2 == 0) for key in keys}
            keys.sort(key=lambda key: fmean(beside[key]) if beside[key] else row[key])
            row |= {key: at for at, key in enumerate(keys)}
    return {key: (column, row[key]) for column, keys in columns.items() for key in keys}


def _neighbours(graph: _Graph, key: Key, row: Mapping[Key, int], before: bool) -> list[int]:
    return [
        row[start if before else end] for start, end in graph.edges if (end if before else start) == key
    ]  # fmt: skip


def _svg(graph: _Graph, places: Mapping[Key, tuple[int, int]], this: Key) -> str:
    first = min(column for column, _ in places.values())
    most = max(row for _, row in places.values()) + 1
    sizes = {column: sum(1 for other, _ in places.values() if other == column) for column, _ in places.values()}

    def corner(key: Key) -> tuple[float, float]:
        column, row = places[key]
        lower = (most - sizes[column]) * (HEIGHT + DOWN) / 2  # short columns stand in the middle
        return MARGIN + (column - first) * (WIDTH + ACROSS), MARGIN + lower + row * (HEIGHT + DOWN)

    wide = MARGIN * 2 + (max(sizes) - first + 1) * (WIDTH + ACROSS) - ACROSS
    high = MARGIN * 2 + most * (HEIGHT + DOWN) - DOWN
    lines = [_edge(corner(start), corner(end)) for start, end in graph.edges]
    boxes = [_box(graph.nodes[key], *corner(key), key == this) for key in graph.nodes]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="lineage" width="{wide}" height="{high}" '
        f'viewBox="0 0 {wide} {high}" role="img"><style>{STYLE}</style>{"".join(lines)}{"".join(boxes)}</svg>\n'
    )


def _edge(start: tuple[float, float], end: tuple[float, float]) -> str:
    x, y, to, down = start[0] + WIDTH, start[1] + HEIGHT / 2, end[0], end[1] + HEIGHT / 2
    middle = max((to - x) / 2, 20)
    return f'<path d="M{x:g} {y:g}C{x + middle:g} {y:g} {to - middle:g} {down:g} {to:g} {down:g}"/>'


def _box(node: Node, x: float, y: float, this: bool) -> str:
    colour = COLOURS.get(node.kind, "#59636e")
    words = [each for each in _words(node) if each]
    texts = "".join(
        f'<text class="soft" x="{x + 14:g}" y="{y + 38 + 15 * at:g}">{escape(each)}</text>'
        for at, each in enumerate(words[:2])
    )
    name = _cut(f"{node.kind} {short_name(node)}", LETTERS - 4)
    whole = f"{node.kind} {node.digest} {node.path}".strip()
    return (
        f'<g class="{"this" if this else "thing"}"><title>{escape(whole)}</title>'
        f'<rect class="box" x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" stroke="{colour}"/>'
        f'<rect x="{x:g}" y="{y:g}" width="5" height="{HEIGHT}" rx="2" fill="{colour}"/>'
        f'<text class="kind" x="{x + 14:g}" y="{y + 20:g}">{escape(name)}</text>{texts}</g>'
    )


def _words(node: Node) -> Sequence[str]:
    """The last parts of the path, and what is said behind it."""
    path, _, said = node.path.partition(": ")
    last = path if "/" not in path or "://" in path else path.rpartition("/")[2]
    return _cut(last, LETTERS + 2), _cut(said, LETTERS + 4)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2 - 1) :]}"
