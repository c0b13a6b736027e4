"""What a dataset is: sources and scales, the layout of a run, and the schema that every room shares."""
