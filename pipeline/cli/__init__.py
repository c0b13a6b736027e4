"""The command line, `lotlip-data`."""

from lotlip_data.pipeline.cli.main import main

__all__ = ["main"]
