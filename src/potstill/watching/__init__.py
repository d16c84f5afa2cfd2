"""Watching a served model: how far traffic has moved from what was trained on, and the loop that trains anew."""
