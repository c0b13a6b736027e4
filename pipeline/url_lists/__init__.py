"""URL lists: read, filter, shuffle and cut into shards."""
