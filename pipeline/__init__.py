"""The pipeline, from lists of image URLs to an evaluated model, as functions for scripts and notebooks.

`docs/guides/notebook.md` explains them with a complete example. The commands of `lotlip-data` call the same functions.
"""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.pipeline.inspection import captioners, doctor, evaluate, plan, report, stats, status, verify
    from lotlip_data.pipeline.stages import (
        download,
        export,
        features,
        fetch_models,
        import_captions,
        publish,
        publish_progress,
        recaption,
        remove_captioner,
        run_pipeline,
        score,
        shard,
        train,
    )

__all__ = [
    "captioners",
    "doctor",
    "download",
    "evaluate",
    "export",
    "features",
    "fetch_models",
    "import_captions",
    "plan",
    "publish",
    "publish_progress",
    "recaption",
    "remove_captioner",
    "report",
    "run_pipeline",
    "score",
    "shard",
    "stats",
    "status",
    "train",
    "verify",
]
__getattr__ = lazy_exports(
    __name__,
    {
        "inspection": ["captioners", "doctor", "evaluate", "plan", "report", "stats", "status", "verify"],
        "stages": [
            "download",
            "export",
            "features",
            "fetch_models",
            "import_captions",
            "publish",
            "publish_progress",
            "recaption",
            "remove_captioner",
            "run_pipeline",
            "score",
            "shard",
            "train",
        ],
    },
)
