"""`benchmarks/gpu_pretrain.py`: which cases there are, what is made of their numbers, and a toy."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_pretrain, gpu_report, gpu_timm
from benchmarks.gpu_case import Case
from models.flops import forward_flops_per_image
from models.zoo import Architecture
from tests.data_pipeline.sample_shards import plain_dataset

ROOT = Path(__file__).resolve().parents[2]


def parsed(*words: str) -> argparse.Namespace:
    return gpu_pretrain.parse(list(words))


@pytest.mark.parametrize(
    "name",
    [
        *("x:synthetic:ours", "b:disk:ours", "b:real:theirs", "b:real:timm:foreach", "b:real"),
        *("b::::", "b:synthetic:timm_script", "b:synthetic:ours:decode_cuda"),
    ],
)
def test_a_case_that_there_is_not_is_refused(name):
    with pytest.raises(argparse.ArgumentTypeError, match="is not size:data:who"):
        Case.of(name)


def test_names_of_cases_are_read_back():
    assert Case.of("b:synthetic:ours").name == "b:synthetic:ours:plain"
    for name in ("l:real:ours:decode_cuda", "h:synthetic:timm:accumulate"):
        assert Case.of(name).name == name


def test_variants_are_of_whom_they_fit_and_loaders_are_measured_once():
    options = parsed("--sizes", "b", "--variants", "compile,fused,foreach,decode_cuda")
    assert [case.name for case in gpu_pretrain.cases_of(options)] == [
        "b:synthetic:ours:plain",
        "b:synthetic:timm:plain",
        "b:synthetic:ours:compile",
        "b:synthetic:timm:compile",
        "b:synthetic:timm:fused",
        "b:synthetic:ours:foreach",
        "b:real:ours:plain",
        "b:real:timm:plain",
        "b:real:ours:decode_cuda",
    ]
    chosen = parsed("--cases", "h:real:timm,s:synthetic:ours:flash")
    assert [case.name for case in gpu_pretrain.cases_of(chosen)] == [
        "h:real:timm:plain",
        "s:synthetic:ours:flash",
    ]


@pytest.mark.parametrize(
    "word",
    "--sizes=xl --data=disk --variants=fast --batch=b:12 --batch=x=12 --cases=b:real "
    "--timm-train=/nowhere/train.py".split(),
)
def test_wrong_options_are_refused(word, capsys):
    with pytest.raises(SystemExit) as refused:
        parsed(word)
    assert refused.value.code == 2 and word.partition("=")[0] in capsys.readouterr().err


def test_mfu_and_ratios_are_of_the_medians():
    def rows(*rates):
        return [
            {"images_per_second": rate, "tflops": rate / 10, "batch_images": 8} for rate in rates
        ]

    results = {
        "matmul": [{"tflops": 100.0, "device": "a card"}, {"tflops": 200.0, "device": "a card"}],
        "b:synthetic:ours:plain": rows(500.0, 700.0),
        "b:synthetic:ours:flash": rows(800.0),
        "b:synthetic:timm:plain": rows(400.0, 400.0),
    }
    report = gpu_report.report_of(results, {}, parsed())
    ours = report["b:synthetic:ours:plain"]
    assert ours["images_per_second"] == 600.0 and ours["images_per_second_range"] == [500.0, 700.0]
    assert ours["mfu"] == pytest.approx(60.0 / 150.0)
    assert ours["over_timm"] == 1.5 and "over_plain_timm" not in ours
    flash = report["b:synthetic:ours:flash"]
    assert flash["over_plain_timm"] == 2.0 and "over_timm" not in flash
    assert report["circumstances"]["gpu"] == "a card"


FAKE_SCRIPT = """
import json, sys
from pathlib import Path
Path({record!r}).write_text(json.dumps(sys.argv[1:]))
for step, rate in enumerate((1, 10, 30, 20)):
    print(f"Train: 0 [   {{step}}/4 ( 25%)]  Loss: 6.9 (6.9)  Time: 0.100s, {{rate:>7.2f}}/s  "
          "(0.100s,  900.00/s)  LR: 1.000e-03  Data: 0.010 (0.010)", file=sys.stderr)
sys.exit({code})
"""


@pytest.fixture
def script(tmp_path):
    """Makes a train.py that logs as timm's does, and says how it was called."""
    plain_dataset(tmp_path / "shards", [3, 3])
    options = parsed("--shards", str(tmp_path / "shards"), "--warm-steps", "1", "--workers", "2")

    def make(code=0):
        options.timm_train = tmp_path / "train.py"
        record = str(tmp_path / "words.json")
        options.timm_train.write_text(FAKE_SCRIPT.format(record=record, code=code))
        return options, tmp_path

    return make


def test_the_rate_of_timms_script_is_that_of_its_log(script):
    options, folder = script()
    found = gpu_timm.run_script(Case.of("b:real:timm_script:accumulate"), options, folder)
    assert found["images_per_second"] == 20.0 and found["batch_images"] == 256
    words = json.loads((folder / "words.json").read_text())
    assert {"--amp", "--batch-size=64", "--grad-accum-steps=4", "--num-classes=10"} <= set(words)
    assert "--train-split=part-{000000..000001}.tar" in words


def test_a_script_that_fails_is_told(script):
    options, folder = script(code=1)
    with pytest.raises(RuntimeError, match=r"timm's train\.py failed"):
        gpu_timm.run_script(Case.of("b:real:timm_script"), options, folder)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_toy_runs(tmp_path):
    """Ours and timm's parts, as on a GPU: same model, both kinds of batches, profiles."""
    file = tmp_path / "toy.json"
    cases = ("s:real:ours:accumulate", "s:synthetic:timm:accumulate")
    command = [sys.executable, "benchmarks/gpu_pretrain.py", "--toy", "--profile"]
    command += [f"--cases={','.join(cases)}", f"--json={file}"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=580, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert report["failures"] == {} and report["matmul"]["tflops"] > 0
    architecture = Architecture(
        depth=2, width=64, heads=2, mlp_dim=256, patch_px=8, image_px=(32, 32), num_classes=10
    )
    for name in cases:
        row = report[name]
        assert row["parameters"] == report[cases[0]]["parameters"] and row["batch_images"] == 8
        flops = 3 * forward_flops_per_image(architecture) * row["images_per_second"]
        assert row["tflops"] == pytest.approx(flops / 1e12)
        assert row["kernels"][0]["share"] >= row["kernels"][1]["share"] > 0
        assert (tmp_path / f"toy.{name.replace(':', '-')}.profile.txt").stat().st_size > 1000
        assert f"| {name} | 8 |" in done.stdout
