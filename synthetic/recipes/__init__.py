"""How the three tiny captioners are trained: one module per part."""
