"""Potstill: turn the traffic of a large model into a small model that is proven as good, and ship it."""

__version__ = "0.1.0"
