"""The order of a request. A step is one module, and one line here.

The version is chosen (and held) early, so that every step behind knows it: a cache answers for one version only.
"""

from __future__ import annotations

from potstill.serving import (
    authenticate,
    capture,
    constrain,
    exact_cache,
    meter,
    prefix_reuse,
    prompt_step,
    route,
    semantic_cache,
    validate_input,
    validate_output,
)

ORDER = (
    authenticate.make,
    validate_input.make,
    route.make,
    exact_cache.make,
    semantic_cache.make,
    prompt_step.make,
    constrain.make,
    # here the engine is asked
    prefix_reuse.make,
    validate_output.make,
    meter.make,
    capture.make,
)
