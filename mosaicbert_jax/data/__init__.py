"""Text to batches: corpora, tokenizer, preparation, packing, masking, the pipeline."""
