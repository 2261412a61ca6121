"""Attention with ALiBi biases over rows that hold several segments."""
