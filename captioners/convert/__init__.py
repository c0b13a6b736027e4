"""Converters of published checkpoints into the Hugging Face layout."""
