"""Sums of rows by index: the gradient of an embedding table."""
