"""The order of a request. A step is one module, and one line here.

The version is chosen (and held) early, so that every step behind knows it: a cache answers for one version only.
"""

from __future__ import annotations

from potstill.serving import (
    authenticate,
    capture,
    constrain,
    meter,
    prompt_step,
    route,
    truncate,
    validate_input,
    validate_output,
)
from potstill.serving.batches import runner as batches

ORDER = (
    authenticate.make,
    validate_input.make,
    route.make,
    prompt_step.make,
    truncate.make,
    constrain.make,
    # here the engine is asked
    validate_output.make,
    meter.make,
    capture.make,
    batches.make,  # no part of the way: it lives beside it
)
