"""Finetuning: classification, regression, GLUE."""
