"""The command, and that it stays small at full scale."""

import json
import subprocess
import sys

import pytest

from configs.errors import RefusedInput
from data_pipeline.simulate import main

# The command, and then what it cost.
MEASURED = """
import re, sys, time
from pathlib import Path
from data_pipeline.simulate import main
main(sys.argv[1:])
# Not getrusage, whose maximum begins with that of the process that started this one.
max_kib = re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]
print(max_kib, time.process_time(), file=sys.stderr)
"""


def test_the_command_prints_numbers_and_advice(capsys):
    options = "--images 1e4 --shards 100 --world-size 8 --streams 12 --ranks-per-node 4 "
    options += "--batch-images 64 --image-bytes 1e6 --new-world-size 12 --classes 50"
    assert main(options.split()) == 0
    out = capsys.readouterr().out
    assert "10,000 images of 1 MB in 100 shards of 100 images, 100 MB; 10 GB in all" in out
    assert "8 ranks on 2 nodes" in out and "going on with 12 ranks instead of 8" in out
    assert "balance: 1,250 to 1,250 images a rank" in out
    assert "advice: 8 ranks do not divide 12 streams" in out
    assert "for a new run take 16 streams, for one under way 6 ranks" in out
    assert "advice: with 12 ranks: a batch of 64 does not divide by 12 ranks" in out


def test_json_holds_the_numbers_in_full(capsys):
    options = "--images 1e4 --shards 100 --world-size 8 --streams 8 --ranks-per-node 4 --json "
    options += "--batch-images 64 --image-bytes 1e6 --new-world-size 4 --classes 50"
    assert main(options.split()) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fleet"]["images"] == 10000
    assert told["fleet"]["cache_bytes"] is None
    reading = told["reading"]
    assert reading["shard_bytes"] == 1e8
    assert reading["images_of_rank"] == {"fewest": 1250, "mean": 1250.0, "most": 1250}
    # 10,000 images of 1 MB over 2 nodes at 8 x 1000 images/s.
    assert reading["straight_bytes_of_node_and_hour"] == pytest.approx(5e9 * 3600 / 1.25)
    downloads = reading["downloads_of_node_and_epoch"]["mean"]
    fetched = reading["fetched_bytes_of_node_and_hour"]["mean"]
    assert fetched == pytest.approx(downloads * 1e8 * 3600 / 1.25)
    assert told["mixing"]["ideal"]["clumping"] == pytest.approx(1, abs=0.3)
    assert told["change"]["world_size"] == 4
    assert told["change"]["reading"]["nodes"] == 1
    assert told["advice"] == []


def test_nothing_to_advise_is_said(capsys):
    options = "--images 1e5 --shards 500 --world-size 8 --streams 8 --image-bytes 1e6"
    assert main(options.split()) == 0
    assert capsys.readouterr().out.endswith("advice: none, these settings fit together\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--images 10 --shards 11", "--shards 11: more than --images 10"),
        ("--images 10 --shards 5 --classes 20", "--classes 20: more than --images 10"),
        ("--images 10 --shards 5 --classes 2", "--batch-images 4,096: more than --images 10"),
        ("--images 1e4 --shards 5 --seed -1", "--seed -1: give 0 or more"),
        ("--images 2e8 --shards 5", "--images 200,000,000: at most 100,000,000"),
        ("--images 1e4 --shards 5 --streams 2e6", "--streams 2,000,000: at most 1,000,000"),
        ("--images 1e4 --shards 5 --batch-images 1", "--world-size 2: .* --batch-images 2"),
        ("--images 1e4 --shards 5 --new-world-size 5000", "--new-world-size 5,000: more than"),
    ],
)
def test_impossible_fleets_are_refused(options, message):
    with pytest.raises(RefusedInput, match=message):
        main([*options.split(), "--world-size", "2"])


@pytest.mark.parametrize("streams", [512, 767])
def test_memory_is_bounded_at_14_million_images(streams):
    command = [
        *(sys.executable, "-c", MEASURED),
        *("--images", "14e6", "--shards", "13000", "--world-size", "512"),
        *("--streams", str(streams), "--new-world-size", "384"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=True)
    assert "14,000,000 images" in done.stdout
    max_kib, cpu_seconds = (float(word) for word in done.stderr.split()[-2:])
    assert max_kib < 500 * 1024
    assert cpu_seconds < 60  # of processor time, which other work on the machine does not change


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "nan", "inf", "1e30", "many"])
def test_what_is_no_count_is_refused_with_exit_code_2(value, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--images", value, "--shards", "1", "--world-size", "1"])
    assert "--images" in capsys.readouterr().err
