"""Where a thing comes from and what was made of it: `lineage(thing, work_dir, tracking_uri)`."""

from potstill.lineage.tree import Node, lineage

__all__ = ["Node", "lineage"]
