"""What a step minimises: the loss of the global batch, of which each process computes its own samples' rows."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lotlip_data.training.config import TrainConfig
from lotlip_data.training.data.loader import Batch
from lotlip_data.training.distributed import ALONE, ProcessGroup, gather
from lotlip_data.training.loss import Loss, lotlip_loss, primary_components
from lotlip_data.training.models.towers import TwoTowers
from lotlip_data.training.packing import Embedded, embed


class Objective:
    """The loss of a configuration; `long_texts` is T."""

    def __init__(self, config: TrainConfig, towers: TwoTowers, long_texts: int, of: ProcessGroup = ALONE) -> None:
        self._config, self._towers, self._long_texts, self._of = config, towers, long_texts, of

    def __call__(self, batch: Batch) -> tuple[Loss, Embedded]:
        """This process's share of the loss of all processes' batches: the shares, and their gradients, add up."""
        config, of = self._config, self._of
        device = self._towers.log_scale.device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
            image = self._images(batch.images.to(device, non_blocking=True))
            embedded = embed(self._towers.text, batch.ids, config.accumulate)
        samples = len(image)
        text = F.normalize(embedded.features.float(), dim=-1)
        short, long = text[:samples, 0], text[samples:].unflatten(0, (samples, self._long_texts))
        if not config.corner_loss:
            long = long[:, :, :1]
        # Gathered once: every process has all features, and computes the logits of its own rows.
        images = gather(F.normalize(image.float(), dim=-1), of)
        texts = gather(torch.cat([short[:, None], long.flatten(1, 2)], dim=1), of)
        short, long = texts[:, 0], texts[:, 1:].unflatten(1, (self._long_texts, -1 if self._long_texts else 1))
        matched = primary_components(images) if config.method == "lit_longclip" else None
        here = of.share(len(images))
        loss = lotlip_loss(images, short, long, self._towers.scale, config.reduction, short_image=matched, here=here)
        return loss, embedded

    def _images(self, images: Tensor) -> Tensor:
        """Features [b, D] of a batch's images, which are features already where the locked tower has been run once."""
        if images.ndim == 2:
            return images
        tower: Callable[[Tensor], Tensor] = self._towers.image
        pieces = images.chunk(self._config.accumulate)
        if self._config.lock_image:
            with torch.no_grad():
                return torch.cat([tower(piece) for piece in pieces])
        if len(pieces) == 1:
            return tower(images)
        return torch.cat([checkpoint(tower, piece, use_reentrant=False) for piece in pieces])
