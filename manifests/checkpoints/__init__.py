"""Checkpoints in model folders: find, read, write and compare weights, and convert between layouts."""
