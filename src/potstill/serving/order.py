"""The order of a request. A step is one module, and one line here.

The version is chosen (and held) early, so that every step behind knows it: a cache answers for one version only.
"""

from __future__ import annotations

from potstill.serving import (
    answer_filter,
    authenticate,
    capture,
    constrain,
    dashboard,
    direct,
    escalate,
    meter,
    probabilities,
    prompt_step,
    route,
    screen,
    shadow,
    telemetry,
    validate_input,
    validate_output,
)

ORDER = (
    telemetry.make,
    authenticate.make,
    validate_input.make,
    screen.make,
    route.make,
    direct.make,
    prompt_step.make,
    constrain.make,
    # here the engine is asked
    validate_output.make,
    escalate.make,
    probabilities.make,
    shadow.make,
    answer_filter.make,
    meter.make,
    dashboard.make,
    capture.make,
)
