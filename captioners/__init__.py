"""How an image becomes a long text: one file a captioner, one file an engine."""
