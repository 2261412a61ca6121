"""Text: finding and reading inputs, the tokenizer, and encoding documents."""
