"""Weight files of model folders: resolve, read, write, compare."""
