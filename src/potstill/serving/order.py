"""The order of a request. A step is one module, and one line here.

The version is chosen (and held) early, so that every step behind knows it: a cache answers for one version only.
"""

from __future__ import annotations

from potstill.serving import (
    authenticate,
    budget,
    capture,
    constrain,
    limits,
    meter,
    prompt_step,
    route,
    validate_input,
    validate_output,
)

ORDER = (
    authenticate.make,
    limits.make,
    validate_input.make,
    route.make,
    limits.make_tokens,
    budget.make,
    prompt_step.make,
    constrain.make,
    # here the engine is asked
    validate_output.make,
    meter.make,
    capture.make,
)
