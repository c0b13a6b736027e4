"""Filters, deduplication and decontamination of a dataset."""
