"""Readers of the published evaluation sets, one file a set. What each needs is in its `WHERE`."""
