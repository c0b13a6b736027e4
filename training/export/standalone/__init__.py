"""Modules that an exported folder holds as copies, with those of this project that they import (see source_files.py).

They import no other package of this project's than `lotlip_data.training.models` and `.data`, and `lotlip_data.manifests`.
"""
