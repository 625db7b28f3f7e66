"""From image files to batches: shards, index, sample order, decoding, loading."""
