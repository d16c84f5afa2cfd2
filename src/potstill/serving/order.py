"""The order of a request. A step is one module, and one line here.

The version is chosen (and held) early, so that every step behind knows it: a cache answers for one version only.
"""

from __future__ import annotations

from potstill.serving import (
    authenticate,
    capture,
    constrain,
    drift_step,
    meter,
    prompt_step,
    route,
    validate_input,
    validate_output,
)

ORDER = (
    authenticate.make,
    validate_input.make,
    route.make,
    prompt_step.make,
    constrain.make,
    # here the engine is asked
    validate_output.make,
    drift_step.make,
    meter.make,
    capture.make,
)
