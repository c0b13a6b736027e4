"""The image and text towers, corner attention, and checkpoints."""
