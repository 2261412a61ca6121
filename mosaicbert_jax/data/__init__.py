"""Text to batches: inputs, tokenizer, preparation, packing, masking, the pipeline."""
