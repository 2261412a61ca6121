"""Pretraining as a masked language model."""
