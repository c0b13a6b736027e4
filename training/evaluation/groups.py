"""The groups of results: what is measured on a set decides in which one its figures are."""

from collections.abc import Mapping
from typing import Any

GROUPS = ("retrieval", "classification", "selection")
"""The names of the groups in results. Results of earlier releases have no `selection`."""


def figures_by_task(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The figures of all sets of an evaluation, whatever their group."""
    return {task: figures for group in GROUPS for task, figures in results.get(group, {}).items()}
