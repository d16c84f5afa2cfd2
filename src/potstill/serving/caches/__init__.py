"""What the two caches of the server are made of; the steps are `exact_cache.py` and `semantic_cache.py` beside this."""
