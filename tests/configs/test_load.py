"""Reading configs: precedence, and the message for each kind of bad input."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.errors import RefusedInput
from configs.load import flatten, load_config, to_yaml
from configs.schema import FinetuneConfig, PretrainConfig

ROOT = Path(__file__).resolve().parents[2]


def load(*argv, cls=PretrainConfig, default_file=None):
    return load_config(cls, argv, "command", default_file=default_file)


def refusal(*argv, cls=PretrainConfig):
    with pytest.raises(RefusedInput) as caught:
        load(*argv, cls=cls)
    return str(caught.value)


@pytest.fixture
def config_file(tmp_path):
    def write(text, name="run.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_command_line_beats_file_beats_default(config_file):
    path = config_file("stage: pretrain\noptim: {lr: 0.5, weight_decay: 0.25}\n")
    loaded = load("--config", str(path), "--optim.lr", "3e-3")
    assert loaded.config.optim.lr == 3e-3
    assert loaded.config.optim.weight_decay == 0.25
    assert loaded.config.optim.beta1 == 0.9
    assert loaded.config_file == path
    assert loaded.overrides == ("optim.lr",)


def test_default_file_serves_when_none_is_named(config_file):
    path = config_file("stage: finetune\ntask: digits\n")
    assert load(cls=FinetuneConfig, default_file=path).config.task == "digits"


@pytest.mark.parametrize(
    ("in_file", "option", "kept", "dropped"),
    [
        ("schedule: {epochs: 3}", "schedule.total-steps", "total_steps", "epochs"),
        ("schedule: {total_steps: 3}", "schedule.epochs", "epochs", "total_steps"),
        (
            "batch: {micro_images: 3}",
            "batch.accumulation-steps",
            "accumulation_steps",
            "micro_images",
        ),
        ("data: {fraction: 0.5}", "data.images-per-class", "images_per_class", "fraction"),
    ],
)
def test_one_of_two_exclusive_options_replaces_the_files_other(
    config_file, in_file, option, kept, dropped
):
    path = config_file(f"stage: pretrain\n{in_file}\n")
    config = load("--config", str(path), f"--{option}", "7").config
    section = getattr(config, option.split(".")[0])
    assert getattr(section, kept) == 7
    assert getattr(section, dropped) is None


def test_resolved_yaml_reads_back_as_the_same_config(config_file):
    config = load("--optim.lr", "1e-5", "--data.train", "/shards", "--augment.no-flip").config
    path = config_file(to_yaml(config))
    assert load("--config", str(path)).config == config


def test_flatten_names_every_option_by_its_dotted_key():
    flat = flatten(FinetuneConfig(learning_rates=(0.1, 0.2), task="pets"))
    assert flat["learning_rates"] == "0.1 0.2"
    assert flat["model.patch_px"] == 16
    assert flat["resolution"] == "none"
    assert flat["task"] == "pets"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "stage: pretrain\noptim:\n  lrr: 3\n",
            ":3: unknown key optim.lrr; did you mean optim.lr?",
        ),
        ("stage: pretrain\noptmi: {}\n", ":2: unknown key optmi; did you mean optim?"),
        ("stage: pretrain\noptim:\n  lr: fast\n", ":3: optim.lr = 'fast': input should be a valid"),
        (
            "stage: pretrain\noptim:\n  lr: -1\n",
            ":3: optim.lr = -1: input should be greater than 0",
        ),
        ("stage: pretrain\nmodel: 3\n", ":2: model = 3 is a group"),
        ("stage: pretrain\nmodel: {image_px: 33}\n", ":2: model.image_px = 33 is not a multiple"),
        (
            "stage: pretrain\nmodel: {heads: 5}\n",
            "model.heads = 5 does not divide model.width = 192",
        ),
        ("stage: pretrain\nschedule: {epochs: 1, total_steps: 2}\n", "are both set; give one"),
        (
            "stage: pretrain\ndata: {fraction: 0.1, images_per_class: 2}\n",
            "data.fraction = 0.1 and data.images_per_class = 2 are both set; give one",
        ),
        (
            "stage: pretrain\ndata: {fraction: 0}\n",
            ":2: data.fraction = 0: input should be greater",
        ),
        ("stage: pretrain\ndata: {classes: []}\n", ":2: data.classes = []: tuple should have at"),
        ("stage: pretrain\naugment: {crop_area_min: 0.9, crop_area_max: 0.5}\n", "is above"),
        ("stage: finetune\n", ":1: stage = 'finetune', but this command reads pretrain configs"),
        ("seed: 3\n", "has no `stage:` line; add `stage: pretrain`"),
        ("- a\n- b\n", "holds a list; expected `key: value` lines"),
        ("stage: [\n", "not valid YAML"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(config_file, text, expected):
    path = config_file(text)
    message = refusal("--config", str(path))
    assert str(path) in message
    assert expected in message


def test_a_syntax_error_shows_the_line(config_file):
    path = config_file("stage: pretrain\noptim: {lr: 1\nseed: 3\n")
    message = refusal("--config", str(path))
    assert f"{path}:3" in message
    assert "seed: 3" in message


def test_a_missing_file_offers_the_nearest(config_file):
    path = config_file("stage: pretrain\n", name="vit_b16.yaml")
    message = refusal("--config", str(path.with_name("vit_b61.yaml")))
    assert f"perhaps you meant {path}" in message


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--optim.lrr", "3"], "unknown option --optim.lrr; did you mean --optim.lr?"),
        (["--lr", "3"], "unknown option --lr; did you mean --optim.lr?"),
        (["--optim.lr", "fast"], "command line: --optim.lr fast: give a number"),
        (["--data.streams", "1.5"], "command line: --data.streams 1.5: give a whole number"),
        (["--data.fraction", "all"], "command line: --data.fraction all: give a number or None"),
        (["--data.subset-seed", "x"], "--data.subset-seed x: give a whole number or None"),
        (["--optim.lr", "-1"], "optim.lr = -1.0: input should be greater than 0"),
        (["--seed", "-1"], "seed = -1: input should be greater than or equal to 0"),
        (["--model.image-px", "100"], "model.image_px = 100 is not a multiple of model.patch_px"),
        (["--zero.stage", "7"], "invalid choice '7' for argument '--zero.stage'"),
        (["--few-shot.shots", "1", "x"], "--few-shot.shots 1 x: not of the kind that --help"),
        (["--data.train"], "Missing value for argument '--data.train'"),
        (["--config"], "--config: expected the path of a YAML file"),
        (["shards"], "'shards' belongs to no option"),
    ],
)
def test_a_bad_option_is_refused_in_one_line(argv, expected):
    message = refusal(*argv)
    assert expected in message
    assert "\n" not in message
    assert "pydantic" not in message


def test_bounds_of_top_level_options_name_the_option():
    assert "steps = 0: input should be greater than 0" in refusal(
        "--steps", "0", cls=FinetuneConfig
    )


def test_help_shows_the_files_values_and_imports_no_torch(config_file):
    path = config_file("stage: pretrain\noptim: {lr: 0.0625}\n")
    code = (
        "import sys\n"
        "from configs.load import load_config\n"
        "from configs.schema import PretrainConfig\n"
        f"argv = ['--config', {str(path)!r}, '--help']\n"
        "try: load_config(PretrainConfig, argv, 'launch/pretrain.py')\n"
        "finally: assert 'torch' not in sys.modules"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "0.0625" in done.stdout
    assert str(path) in done.stdout.replace("\n", "").replace(" ", "").replace("│", "")
    assert "--checkpoint.every-steps" in done.stdout
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*/*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_config_loads(path):
    cls = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}[path.parent.name]
    config = load("--config", str(path), cls=cls).config
    assert config.stage == path.parent.name
    head = path.read_text().split("\nstage:")[0]
    for word in ("Reproduces", "Command", "Hardware", "Expected"):
        assert word in head, f"the head of {path.name} does not say: {word}"
    if path.stem.endswith(("_cpu", "_demo")):
        assert config.batch.micro_images is None
        assert config.batch.accumulation_steps is None


def test_a_file_extends_another_beside_it(config_file):
    config_file(
        "stage: pretrain\noptim: {lr: 0.5, eps: 0.1}\nbatch: {global_images: 8}\n", "base.yaml"
    )
    config_file("extends: base.yaml\noptim: {lr: 0.25}\n", "middle.yaml")
    path = config_file("extends: middle.yaml\nbatch: {micro_images: 2}\n")
    config = load("--config", str(path), "--optim.beta1", "0.5").config
    assert (config.optim.lr, config.optim.eps, config.optim.beta1) == (0.25, 0.1, 0.5)
    assert (config.batch.global_images, config.batch.micro_images) == (8, 2)


def test_what_is_wrong_is_told_where_it_stands(config_file):
    base = config_file("stage: pretrain\noptim:\n  lr: -1\n", "base.yaml")
    path = config_file("extends: base.yaml\noptim: {eps: 0.1}\nseed: 1\n")
    assert f"{base}:3: optim.lr = -1" in refusal("--config", str(path))
    path = config_file("extends: base.yaml\noptim: {lr: 1}\nsede: 1\n")
    assert f"{path}:3: unknown key sede; did you mean seed?" in refusal("--config", str(path))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("extends: nowhere.yaml\n", "run.yaml:2: extends"),
        ("extends: [a.yaml, b.yaml]\n", "give the path of one YAML file"),
        ("extends: run.yaml\n", "comes back to a file that extends it"),
    ],
)
def test_a_file_that_cannot_be_extended_is_refused(config_file, text, told):
    path = config_file("stage: pretrain\n" + text)
    assert told in refusal("--config", str(path))
