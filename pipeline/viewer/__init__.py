"""A local web page over a run: its dataset a page at a time, its quarantine, and what trained models make of it."""
