"""The import of existing captions: of a table, or of the tables that the manifest's sources are."""
