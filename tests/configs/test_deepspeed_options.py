"""DeepSpeed's dictionary from our options."""

import re

import pytest

from configs.deepspeed_options import deepspeed_options
from configs.errors import RefusedInput
from configs.groups import BatchConfig, OptimConfig, ZeroConfig
from configs.load import load_config
from configs.schema import PretrainConfig


def options(config, precision="bf16"):
    return deepspeed_options(config, micro_images=8, accumulation_steps=4, precision=precision)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_stage_batch_and_clip_arrive(stage):
    config = PretrainConfig(
        zero=ZeroConfig(stage=stage),
        batch=BatchConfig(global_images=64),
        optim=OptimConfig(clip_norm=0.5),
    )
    found = options(config)
    assert found["zero_optimization"]["stage"] == stage
    assert found["train_batch_size"] == 64
    assert found["train_micro_batch_size_per_gpu"] == 8
    assert found["gradient_accumulation_steps"] == 4
    assert found["gradient_clipping"] == 0.5
    assert found["data_types"] == {"grad_accum_dtype": "fp32"}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_precision_switches_its_block_and_sums_in_fp32(precision):
    found = options(PretrainConfig(), precision)
    assert [name for name in ("bf16", "fp16") if found[name]["enabled"]] == [
        name for name in ("bf16", "fp16") if name == precision
    ]
    assert found["communication_data_type"] == "fp32"
    same = PretrainConfig(zero=ZeroConfig(sum_precision="same"))
    assert options(same, precision)["communication_data_type"] == precision


def test_offloading_keeps_our_optimizer():
    found = options(PretrainConfig(zero=ZeroConfig(stage=3, offload_optimizer=True)))
    assert found["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert found["zero_force_ds_cpu_optimizer"] is False


def test_no_clip_norm_means_no_clipping_key():
    assert "gradient_clipping" not in options(PretrainConfig(optim=OptimConfig(clip_norm=None)))


def test_the_deepspeed_block_is_merged_key_by_key():
    extra = {"zero_optimization": {"overlap_comm": True}, "comms_logger": {"enabled": True}}
    found = options(PretrainConfig(deepspeed=extra))
    assert found["zero_optimization"] == {"stage": 1, "overlap_comm": True}
    assert found["comms_logger"] == {"enabled": True}


def test_nothing_of_deepspeeds_waits_for_the_device_to_take_a_time():
    found = options(PretrainConfig())
    assert found["timers"] == {"throughput": {"enabled": False}}
    assert found["wall_clock_breakdown"] is False


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ("{zero_optimization: 3}", "deepspeed.zero_optimization = 3 is a group"),
        (
            "{zero_optimization: {offload_optimizer: cpu}}",
            "deepspeed.zero_optimization.offload_optimizer = 'cpu' is a group",
        ),
        ("{zero_optimization: {offload_param: null}}", "offload_param = None is a group"),
        ("{zero_optimization: {stage: 2}}", "deepspeed.zero_optimization.stage: set zero.stage"),
        ("{fp16: {enabled: true}}", "deepspeed.fp16.enabled: set precision instead"),
        ("{train_batch_size: 8}", "deepspeed.train_batch_size: set batch.global_images instead"),
        ("{scheduler: {type: WarmupLR}}", "deepspeed.scheduler: set the options of schedule"),
    ],
)
def test_a_block_of_another_shape_or_about_our_options_is_refused(block, told, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"stage: pretrain\ndeepspeed: {block}\n")
    with pytest.raises(RefusedInput, match=rf"run\.yaml:2: .*{re.escape(told)}"):
        load_config(PretrainConfig, ["--config", str(file)], "test")


def test_other_keys_of_these_groups_are_deepspeeds():
    extra = {"fp16": {"initial_scale_power": 8}, "zero_optimization": {"reduce_scatter": False}}
    assert PretrainConfig(deepspeed=extra).deepspeed == extra
