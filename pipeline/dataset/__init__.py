"""The dataset: join images and captions, write shards, describe and verify them."""
