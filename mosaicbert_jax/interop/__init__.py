"""To and from PyTorch and Hugging Face."""
