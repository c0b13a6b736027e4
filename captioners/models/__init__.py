"""What is particular to each captioner architecture."""
