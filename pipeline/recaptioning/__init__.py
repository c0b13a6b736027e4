"""Captioning on pools of Ray actors, and the import of existing captions."""
