"""How sure an answer is, and the threshold from which the student may keep it: fitted on validation rows alone.

- confidence.py: scores of an answer from its tokens' log-probabilities
- conformal.py: thresholds with a guarantee
- reliability.py: scores to probabilities of being right
- learned.py: a router that decides before the student is asked
- record.py: the folder `calibration-KEY`
- ask.py, make.py: the validation rows through the exported student, and what comes of it
"""
