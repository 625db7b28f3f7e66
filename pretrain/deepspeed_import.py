"""Importing DeepSpeed without what training never uses; on every rank, so it is worth some care."""

import gc
import os
import sys


def import_deepspeed() -> None:
    """Import DeepSpeed; afterwards `import deepspeed` gives the same module.

    Left out are mlflow, which its autotuner would import and which takes longer than the rest of
    DeepSpeed (rank 0 imports it later, in the thread that sends the journal), and torch's compiler,
    which the module of an optimizer we do not use starts when the bf16 optimizer asks for its type.
    """
    is_hidden = sys.modules.setdefault("mlflow", None) is None  # type: ignore[arg-type]
    asked = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        if is_hidden:
            del sys.modules["mlflow"]
        if asked is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = asked
    # Modules never become garbage: spare every later collection, of which DeepSpeed makes a dozen
    # while it sets up, the look at their half a million objects.
    gc.freeze()
