"""The forward pass of a step: a process's batch through both towers, and the features of all processes gathered.

Every process has the features of the global batch and computes the loss of its own rows, so no process holds the
logits of another one's rows.

Shapes: b samples of this process, B of the global batch, T long texts per sample, K features per long text (1 + m, or 1
where corner tokens have no loss), D width of a feature.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lotlip_data.training.config import TrainConfig
from lotlip_data.training.distributed import SINGLE_PROCESS, ProcessGroup, all_gather
from lotlip_data.training.loss import project_on_principal_components
from lotlip_data.training.models.towers import TwoTowers
from lotlip_data.training.packing import PackedFeatures, PackedTexts, embed_packed


@dataclass(frozen=True)
class Batch:
    """The b samples of this process in one step."""

    images: Tensor
    """float32: features [b, D] of the locked image tower, or pixels [b, 3, height, width]."""
    texts: PackedTexts
    """b + b·T texts: the short texts, then the T long texts of each sample in turn."""


@dataclass(frozen=True)
class BatchFeatures:
    """The inputs of `lotlip_loss`: features of the global batch, and the rows that belong to this process."""

    image: Tensor
    """float32 [B, D], unit rows."""
    short: Tensor
    """float32 [B, D], unit rows: the [CLS] features of the short texts."""
    long: Tensor
    """float32 [B, T, K, D], unit rows: the [CLS] and corner features of the long texts."""
    short_image: Tensor | None
    """float32 [B, D]: the image features that short texts are matched to, where they differ from `image`."""
    local_rows: slice
    packed: PackedFeatures
    """The text features of this process before they are normalized, and their token counts."""


class BatchEncoder:
    """Computes the features of a batch for one configuration. `long_texts` is T."""

    def __init__(
        self, config: TrainConfig, towers: TwoTowers, long_texts: int, group: ProcessGroup = SINGLE_PROCESS
    ) -> None:
        self._config, self._towers, self._long_texts, self._group = config, towers, long_texts, group

    def __call__(self, batch: Batch) -> BatchFeatures:
        config, group, long_texts = self._config, self._group, self._long_texts
        device = self._towers.log_scale.device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
            image_bD = self._encode_images(batch.images.to(device, non_blocking=True))
            packed = embed_packed(self._towers.text, batch.texts, config.accumulate)
        text = F.normalize(packed.features.float(), dim=-1)  # [b + b·T, 1 + m, D]: short, then long texts
        b = len(image_bD)
        short_bD, long_bTKD = text[:b, 0], text[b:].unflatten(0, (b, long_texts))
        if not config.corner_loss:
            long_bTKD = long_bTKD[:, :, :1]
        image_BD = all_gather(F.normalize(image_bD.float(), dim=-1), group)
        texts = all_gather(torch.cat([short_bD[:, None], long_bTKD.flatten(1, 2)], dim=1), group)  # [B, 1 + T·K, D]
        has_components = config.short_image == "principal_components"
        return BatchFeatures(
            image=image_BD,
            short=texts[:, 0],
            long=texts[:, 1:].unflatten(1, (long_texts, -1 if long_texts else 1)),
            short_image=project_on_principal_components(image_BD, config.components) if has_components else None,
            local_rows=group.local_rows(len(image_BD)),
            packed=packed,
        )

    def _encode_images(self, images: Tensor) -> Tensor:
        """Image features [b, D] of pixels [b, 3, height, width]. Features from the cache are returned as they are."""
        if images.ndim == 2:
            return images
        tower: Callable[[Tensor], Tensor] = self._towers.image
        chunks = images.chunk(self._config.accumulate)
        if self._config.lock_image:
            with torch.no_grad():
                return torch.cat([tower(chunk) for chunk in chunks])
        if len(chunks) == 1:
            return tower(images)
        return torch.cat([checkpoint(tower, chunk, use_reentrant=False) for chunk in chunks])
