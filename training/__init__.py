"""Training of LoTLIP and of the methods that it is compared with: towers, loss, data and evaluation."""

from typing import TYPE_CHECKING

from lotlip_data.manifests.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lotlip_data.training.config import TrainConfig, make_config
    from lotlip_data.training.embed import embed_images, embed_texts
    from lotlip_data.training.models.lotlip import LoTLIP
    from lotlip_data.training.trainer import TrainResult, train

__all__ = ["LoTLIP", "TrainConfig", "TrainResult", "embed_images", "embed_texts", "make_config", "train"]
__getattr__ = lazy_exports(
    __name__,
    {
        "config": ["TrainConfig", "make_config"],
        "embed": ["embed_images", "embed_texts"],
        "models.lotlip": ["LoTLIP"],
        "trainer": ["TrainResult", "train"],
    },
)
