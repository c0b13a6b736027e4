"""The reproduction study: the paper's tables and figures on the offline world, small."""
