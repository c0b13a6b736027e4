"""The stages that run `training/`: train, compute features, evaluate."""
