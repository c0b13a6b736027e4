"""Inference engines: transformers, vLLM, and vLLM from prompt embeddings."""
