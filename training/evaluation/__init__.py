"""Zero-shot evaluation: models, metrics, published tasks, tables."""
