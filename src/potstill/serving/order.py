"""The order of a request. A step is one module, and one line here.

The version is chosen (and held) early, so that every step behind knows it: a cache answers for one version only.
"""

from __future__ import annotations

from potstill.serving import (
    answer_filter,
    authenticate,
    budget,
    capture,
    constrain,
    dashboard,
    direct,
    drift_step,
    escalate,
    exact_cache,
    limits,
    meter,
    prefix_reuse,
    probabilities,
    prompt_step,
    route,
    screen,
    semantic_cache,
    shadow,
    telemetry,
    truncate,
    validate_input,
    validate_output,
)
from potstill.serving.batches import runner as batches

ORDER = (
    telemetry.make,
    authenticate.make,
    limits.make,
    validate_input.make,
    screen.make,
    route.make,
    exact_cache.make,
    semantic_cache.make,
    limits.make_tokens,
    budget.make,
    direct.make,
    prompt_step.make,
    truncate.make,
    constrain.make,
    # here the engine is asked
    prefix_reuse.make,
    validate_output.make,
    escalate.make,
    probabilities.make,
    answer_filter.make,
    shadow.make,
    drift_step.make,
    meter.make,
    dashboard.make,
    capture.make,
    batches.make,  # no part of the way: it lives beside it
)
