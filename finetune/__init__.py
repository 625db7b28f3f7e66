"""The Accelerate stage: pretrained weights are transferred to a smaller task, and measured there.

`run.py` is the command, `loop.py` the order in which things happen.
"""
