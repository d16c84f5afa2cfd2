"""A dataset folder as one page to browse: what was kept, what was left out and why, clusters, suspects, preferences."""
