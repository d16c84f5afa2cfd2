"""A search over a few `train.*` keys of a recipe: spaces, proposals, the study on disk, trials, the table.

A trial is an ordinary `train` run in its ordinary folder; what is here only chooses settings and compares.
"""
