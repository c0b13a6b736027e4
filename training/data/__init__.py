"""Training data: samples, texts, features, pixels, and batches made ahead."""
