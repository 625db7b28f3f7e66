"""Where results go: a journal in the run folder, sent to MLflow by a background thread.

`tracking.run.start_run` is what the training loops use, `tracking.lineage.resolve_weights` finds
pretrained weights by their MLflow name, `python -m tracking.sync RUN_DIR` sends what an outage has
left behind.
Importing this package imports no MLflow: that takes seconds and happens where it is needed.
"""
