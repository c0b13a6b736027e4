"""The cluster that `plan` estimates for. The command line shows its defaults, so this module imports nothing heavy."""

from dataclasses import dataclass

from lotlip_data.manifests.errors import UserError

MAX_SETTING = 1_000_000
"""Upper limit of every setting."""


@dataclass(frozen=True)
class Hardware:
    """The cluster that captions. The defaults are those of the command line.

    `tflops` and `mfu` are used only where no speed is given or measured.
    """

    gpus: int | None = None
    """Number of GPUs; None if it is not known: then there is no estimate in days."""
    gpu_gib: float = 79.1
    """Memory of one GPU in GiB, as torch reports it."""
    tflops: float = 312.0
    """Peak of one GPU in 16 bit, in TFLOP/s."""
    mfu: float = 0.3
    """Model FLOPs utilisation, the share of the peak that is reached. The default is assumed; it is in the range that
    is reported for 7B models."""
    price: float | None = None
    """Price per GPU-hour."""
    download_speed: float | None = None
    """URLs that the cluster downloads per second; None if it is not known."""

    @property
    def assumed_gpus(self) -> float:
        """GPUs of the cluster, as the default of `num_gpus` depends on them: a cluster of unknown size has some."""
        return float("inf") if self.gpus is None else self.gpus

    def __post_init__(self) -> None:
        def require(condition: bool, name: str, remedy: str) -> None:
            if not condition:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: {remedy}")

        require(self.gpus is None or 0 <= self.gpus <= MAX_SETTING, "gpus", f"must be between 0 and {MAX_SETTING:,}")
        require(1 <= self.gpu_gib <= MAX_SETTING, "gpu_gib", f"must be between 1 and {MAX_SETTING:,}")
        require(0.001 <= self.tflops <= MAX_SETTING, "tflops", f"must be between 0.001 and {MAX_SETTING:,}")
        require(0.001 <= self.mfu <= 1, "mfu", "must be a share between 0.001 and 1")
        is_valid_speed = self.download_speed is None or 0.001 <= self.download_speed <= MAX_SETTING
        require(is_valid_speed, "download_speed", f"must be between 0.001 and {MAX_SETTING:,}")
        is_valid_price = self.price is None or 0 <= self.price <= MAX_SETTING
        require(is_valid_price, "price", f"must be between 0 and {MAX_SETTING:,}")
