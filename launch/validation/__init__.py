"""`launch/pretrain.py --validate`: a run of two steps, with everything that a long run does."""
