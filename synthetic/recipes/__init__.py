"""Training recipes of the three tiny captioners: perception, then language, then export."""
