"""`report["details"]`: what a task kind's own metrics say of each candidate, and the same as plain tables.

details = {
  "kind": "classification", "reference": "gold" | "teacher",     what answers were compared with
  "notes": ["..."],                                              sentences to show beside the figures
  "candidates": {name: {
    "n": 300, "clusters": 150,
    "figures": {"macro_f1": FIGURE, ...},                        in the order to show them in
    classification: "labels": [{"label", "support", "precision": FIGURE, "recall": ..., "f1": ...}],
                    "calibration": {"n", "ece": FIGURE, "brier": FIGURE, "bins": [{"low", "high", "n",
                                    "confidence", "right": FIGURE}]} or None,
                    "abstention": {"aurc": FIGURE, "points": [{"coverage", "threshold", "risk": FIGURE}],
                                   "curve": [[coverage, risk], ...]} or None
    extraction:     "fields": [{"field", "gold", "right", "missing", "spurious", "wrong",
                                "precision": FIGURE, "recall": FIGURE, "f1": FIGURE}]
    tool_calls:     "functions": [{"function", "gold", "called", "name_right", "arguments_right",
                                   "name": FIGURE, "arguments": FIGURE}]
  }},
  "judge": {...}                                                 see evaluation/judges; only where one was asked
}
FIGURE = {"value", "low", "high", "n", "clusters", "method", "unit": "share" | "number"} or None (undefined)
"""
