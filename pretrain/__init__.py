"""The DeepSpeed stage: pretraining on shards."""
