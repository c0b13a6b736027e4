"""The cluster that a plan assumes. This module imports little: the command line reads its defaults for `--help`."""

from dataclasses import dataclass

from lotlip_data.manifests.errors import UserError

MOST = 1_000_000


@dataclass(frozen=True)
class Hardware:
    """The GPUs of a cluster. `tflops` and `mfu` are used where no speed was measured or given."""

    gpus: int = 8
    """Number of GPUs in the cluster."""
    gpu_gib: float = 79.1
    """Memory of one GPU in GiB, as torch reports it."""
    tflops: float = 312.0
    """Peak of one GPU in 16 bit, in TFLOP/s."""
    mfu: float = 0.3
    """Model FLOPs utilisation, the share of that peak: assumed, of the order that is reported for 7B models."""
    price: float | None = None
    """Price per GPU-hour, in any currency."""

    def __post_init__(self) -> None:
        def require(holds: bool, name: str, fix: str) -> None:
            if not holds:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: {fix}")

        require(0 <= self.gpus <= MOST, "gpus", f"must be 0 to {MOST:,}")
        require(1 <= self.gpu_gib <= MOST, "gpu_gib", f"must be 1 to {MOST:,}")
        require(0.001 <= self.tflops <= MOST, "tflops", f"must be 0.001 to {MOST:,}")
        require(0.001 <= self.mfu <= 1, "mfu", "a share: must be 0.001 to 1")
        require(self.price is None or 0 <= self.price <= MOST, "price", f"must be 0 to {MOST:,}")
