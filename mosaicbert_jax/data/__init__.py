"""From the shards of a data set to batches: order, packing, masking, mixtures."""
