"""Performance and prices of accelerator chips, for plans and launch commands.

Hardware: the vendors' pages named in `source`. Prices: Google Cloud's billing catalogue for the region named there, as
published by other projects; per chip, on demand without a commitment. Spot prices change daily and differ between
regions (by a factor of two within one country): check them before a long run.
"""

from dataclasses import dataclass

GIB = 2**30

_TPU_PAGES = "https://docs.cloud.google.com/tpu/docs"
_TPU_PRICES = "github.com/skypilot-org/skypilot-catalog, catalogs/v8/gcp/vms.csv"
_GPU_PRICES = "huggingface.co/datasets/tanod/cloud-gpu-list-prices"


@dataclass(frozen=True)
class Chip:
    """One chip as customers rent it.

    `hbm_gib`: memory in GiB; `bf16_flops`: dense bfloat16 operations per second (2 per multiply-add); `hbm_bandwidth`
    and `ici_bandwidth`: bytes per second, the latter over all links to neighbours in both directions; prices in dollars
    per chip and hour.
    """

    name: str
    hbm_gib: float
    bf16_flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    dollars_per_hour: float
    spot_dollars_per_hour: float
    source: str
    as_of: str

    def dollars(self, chip_hours: float, spot: bool = False) -> float:
        """Price of a number of chip-hours."""
        return chip_hours * (self.spot_dollars_per_hour if spot else self.dollars_per_hour)


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            hbm_gib=32,
            bf16_flops=275e12,
            hbm_bandwidth=1200e9,
            ici_bandwidth=600e9,  # six links of 50 GB/s each way
            dollars_per_hour=3.22,
            spot_dollars_per_hour=0.9215,
            source=f"{_TPU_PAGES}/v4; links: arXiv 2304.01433; prices, us-central2: {_TPU_PRICES}",
            as_of="commit 8427bbf of the catalogue, read 2026-11-24",
        ),
        Chip(
            name="v5e",
            hbm_gib=16,
            bf16_flops=197e12,
            hbm_bandwidth=819e9,
            ici_bandwidth=400e9,
            dollars_per_hour=1.20,
            spot_dollars_per_hour=0.2449,
            source=f"{_TPU_PAGES}/v5e; prices, us-central1: {_TPU_PRICES}",
            as_of="commit 8427bbf of the catalogue, read 2026-11-24",
        ),
        Chip(
            name="v5p",
            hbm_gib=95,
            bf16_flops=459e12,
            hbm_bandwidth=2765e9,
            ici_bandwidth=1200e9,
            dollars_per_hour=4.20,
            spot_dollars_per_hour=0.9286,
            source=f"{_TPU_PAGES}/v5p; prices, us-central1: {_TPU_PRICES}",
            as_of="commit 8427bbf of the catalogue, read 2026-11-24",
        ),
        Chip(
            name="v6e",
            hbm_gib=32,
            bf16_flops=918e12,
            hbm_bandwidth=1600e9,
            ici_bandwidth=800e9,
            dollars_per_hour=2.70,
            spot_dollars_per_hour=0.5729,
            source=f"{_TPU_PAGES}/v6e; prices, us-central1: {_TPU_PRICES}",
            as_of="commit 8427bbf of the catalogue, read 2026-11-24",
        ),
        Chip(
            name="h100",
            hbm_gib=80,
            bf16_flops=989e12,
            hbm_bandwidth=3350e9,
            ici_bandwidth=900e9,
            dollars_per_hour=10.98,  # a3-highgpu, including its share of the machine
            spot_dollars_per_hour=6.57,
            source="https://www.nvidia.com/en-us/data-center/h100; prices, us-central1: "
            "github.com/tgarg01/silybench-data, derived/csv/gpu_prices.csv",
            as_of="2026-09-26",
        ),
        Chip(
            name="h200",
            hbm_gib=141e9 / GIB,
            bf16_flops=989e12,
            hbm_bandwidth=4800e9,
            ici_bandwidth=900e9,
            dollars_per_hour=10.44,  # a3-ultragpu-8g, including its share of the machine
            spot_dollars_per_hour=6.26,
            source=f"https://www.nvidia.com/en-us/data-center/h200; prices, us-central1: {_GPU_PRICES}",
            as_of="2026-10-13",
        ),
    )
}
