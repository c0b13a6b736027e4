"""Prepare README.md and pyproject.toml for a package index, which resolves no relative links.

    python tools/release_metadata.py https://github.com/OWNER/lotlip-data v0.1.0

Links of README.md to files of the repository become links to the repository at that tag or branch, and pyproject.toml
gets its URLs. The CI workflow calls it before it builds the wheel, with the address of the repository that it runs in.
It changes the two files in place, so call it in a checkout that you throw away.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"(?<=\]\()(?!https?://|mailto:|#)(?P<target>[^)\s]+)")


def absolute_links(markdown: str, repository: str, reference: str) -> str:
    """Turn the relative links of a page in the repository's root into absolute ones."""
    return _LINK.sub(lambda link: f"{repository}/blob/{reference}/{link['target']}", markdown)


def with_urls(pyproject: str, repository: str, reference: str) -> str:
    """Add the table `project.urls`."""
    urls = {
        "Repository": repository,
        "Documentation": f"{repository}/blob/{reference}/docs/index.md",
        "Changelog": f"{repository}/blob/{reference}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
    return pyproject + "\n[project.urls]\n" + "".join(f'{name} = "{url}"\n' for name, url in urls.items())


def main(repository: str, reference: str) -> None:
    for name, change in (("README.md", absolute_links), ("pyproject.toml", with_urls)):
        file = ROOT / name
        file.write_text(change(file.read_text(encoding="utf-8"), repository.rstrip("/"), reference), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
