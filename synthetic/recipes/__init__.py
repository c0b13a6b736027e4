"""How the three tiny captioners are trained: one small file a step."""
