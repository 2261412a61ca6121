"""Cross-entropy of a softmax over a vocabulary, with its gradient."""
