"""The study of scores: whether they find wrong sub-captions, and whether trainings gain from them."""
