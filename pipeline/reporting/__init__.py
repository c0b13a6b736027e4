"""The progress of a run (`lotlip-data status`) and its HTML report (`lotlip-data report`)."""
