"""How training ends when it cannot go on."""


class TrainingStopped(RuntimeError):
    """All ranks stop together, at the same step; the message is for people, no traceback is needed.

    Weights and checkpoints are as they were before the step that failed.
    """
