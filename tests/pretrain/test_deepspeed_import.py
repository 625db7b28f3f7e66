"""Start-up imports neither mlflow nor torch's compiler backend, and hides nothing afterwards."""

import subprocess
import sys

from tests.integration.pretrain_processes import ROOT, environment

CODE = """
import os, sys
from pretrain.deepspeed_import import import_deepspeed
import_deepspeed()
print(sorted({"mlflow", "torch._inductor.lowering"} & set(sys.modules)))
print("TORCHDYNAMO_DISABLE" in os.environ)
import deepspeed, mlflow.version
print(deepspeed.__version__, mlflow.version.VERSION)
"""


def test_deepspeed_comes_without_what_training_never_uses():
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=ROOT,
        env=environment(),
        check=True,
    )
    lines = done.stdout.splitlines()[-3:]
    assert lines[:2] == ["[]", "False"] and lines[2].startswith("0.19")
