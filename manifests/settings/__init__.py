"""What a user configures in a manifest: one typed pydantic model per section, with a description of every setting."""

from lotlip_data.manifests.settings.base import Settings
from lotlip_data.manifests.settings.captioners import CaptionerEntry, CaptionerSettings, EngineOptions, PoolSettings
from lotlip_data.manifests.settings.dataset import CleanSettings, ShardSettings
from lotlip_data.manifests.settings.download import DownloadSettings
from lotlip_data.manifests.settings.evaluation import EvaluationEntry
from lotlip_data.manifests.settings.training import TrainingEntry, TrainingSettings, Workers

__all__ = [
    "CaptionerEntry",
    "CaptionerSettings",
    "CleanSettings",
    "DownloadSettings",
    "EngineOptions",
    "EvaluationEntry",
    "PoolSettings",
    "Settings",
    "ShardSettings",
    "TrainingEntry",
    "TrainingSettings",
    "Workers",
]
