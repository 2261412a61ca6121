"""MosaicBERT in plain PyTorch, copied into what is exported; mosaicbert_jax imports none of it."""
