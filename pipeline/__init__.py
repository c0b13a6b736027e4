"""What happens to data, stage by stage, and the command line over it."""
