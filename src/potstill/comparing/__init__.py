"""Comparing base models on a slice of a recipe's dataset, to choose a student: `potstill compare-bases`.

`run` is the order of things; `slices` makes the sliced dataset; `child` trains and answers in a process of its own,
which `watched` runs while it measures memory; `describe` and `licence` read what a base says of itself; `judge` says
what may be concluded; `table` and `page` show it.
"""
