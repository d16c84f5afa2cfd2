"""The server: an OpenAI-compatible application in front of one engine child.

`run.py` starts and stops it, `start.py` checks the artifact before anything is bound, `app.py` holds the order of a
request, and each step of that order is one module. Nothing here imports torch, transformers, mlflow or their kin.
"""
