"""Scores images and texts: what a caption is worth, computed as a stage and stored as columns.

`stage.score` runs the scorers of a manifest over the shards of a run, and commits one Parquet file per scorer and
shard. `base` says what a scorer is, and `registry` finds one by its kind.
"""
