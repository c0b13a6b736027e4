"""The synthetic scenes: rendered scenes with exact descriptions, for the demo, the tests and the study."""
