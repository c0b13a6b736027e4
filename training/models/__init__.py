"""The image and text towers, corner attention, and the model's folder."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.training.models.lotlip import LoTLIP
    from lotlip_data.training.models.towers import TwoTowers

__all__ = ["LoTLIP", "TwoTowers"]
__getattr__ = lazy_exports(
    __name__,
    {
        "lotlip": ["LoTLIP"],
        "towers": ["TwoTowers"],
    },
)
