"""Modules that an exported folder holds as copies, with those of this project that they import (see source_files.py).

Of this project they import modules alone, by `from lotlip_data.package.module import name`, and few of them.
"""
