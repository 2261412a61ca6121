"""The GPUs that programs are compiled for: what XLA must know, and data-sheet speeds.

Architecture figures are those that XLA publishes with its own target descriptions.
"""

import dataclasses

from mosaicbert_jax.training.flops import data_sheet_peak


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
      name: as the driver reports it.
      compute_capability: such as (8, 0).
      memory_bandwidth: bytes/s.
      memory: bytes.
      cores: streaming multiprocessors.
      shared_memory_per_core, shared_memory_per_block: bytes; the latter is the most that a block
        can ask for.
    """

    name: str
    compute_capability: tuple[int, int]
    memory_bandwidth: int
    memory: int
    cores: int
    fpus_per_core: int
    l2_cache: int
    clock_ghz: float
    shared_memory_per_core: int
    shared_memory_per_block: int

    @property
    def peak_flops(self) -> float:
        """The data sheet's, of dense bfloat16 matrix products, FLOP/s.

        Raises:
          ValueError: a GPU that the table of peaks doesn't have.
        """
        peak = data_sheet_peak(self.name)
        if peak is None:
            raise ValueError(f"the peak of {self.name} is not known")
        return peak

    @property
    def architecture(self) -> str:
        """As ptxas has it, such as "sm_80"."""
        major, minor = self.compute_capability
        return f"sm_{major}{minor}" + ("a" if major in (9, 10) else "")

    def description(self) -> str:
        """The text of XLA's GpuTargetConfigProto."""
        major, minor = self.compute_capability
        accelerated = " feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024
              threads_per_warp: 32
              threads_per_core_limit: 2048
              block_dim_limit_x: 2147483647
              block_dim_limit_y: 65535
              block_dim_limit_z: 65535
              registers_per_core_limit: 65536
              registers_per_block_limit: 65536
              shared_memory_per_block: 49152
              shared_memory_per_core: {self.shared_memory_per_core}
              shared_memory_per_block_optin: {self.shared_memory_per_block}
              core_count: {self.cores}
              fpus_per_core: {self.fpus_per_core}
              memory_bandwidth: {self.memory_bandwidth}
              l2_cache_size: {self.l2_cache}
              clock_rate_ghz: {self.clock_ghz}
              device_memory_size: {self.memory}
              cuda_compute_capability {{ major: {major} minor: {minor}{accelerated} }}
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
            device_description_str: "{self.name}"
        """


_A100 = Gpu(
    name="NVIDIA A100-SXM4-80GB",
    compute_capability=(8, 0),
    memory_bandwidth=2_039_040_000_000,
    memory=85_100_068_864,
    cores=108,
    fpus_per_core=64,
    l2_cache=41_943_040,
    clock_ghz=1.41,
    shared_memory_per_core=167_936,
    shared_memory_per_block=166_912,
)
_H100 = Gpu(
    name="NVIDIA H100 80GB HBM3",
    compute_capability=(9, 0),
    memory_bandwidth=3_352_320_000_000,
    memory=84_942_979_072,
    cores=132,
    fpus_per_core=128,
    l2_cache=52_428_800,
    clock_ghz=1.98,
    shared_memory_per_core=233_472,
    shared_memory_per_block=232_448,
)

GPUS = {
    "a100-40gb": dataclasses.replace(
        _A100,
        name="NVIDIA A100-SXM4-40GB",
        memory=42_331_013_120,
        memory_bandwidth=1_555_200_000_000,
    ),
    "a100-80gb": _A100,
    "h100": _H100,
    "h200": dataclasses.replace(
        _H100, name="NVIDIA H200", memory=151_397_597_184, memory_bandwidth=4_800_000_000_000
    ),
    "a10": Gpu(
        name="NVIDIA A10",
        compute_capability=(8, 6),
        memory_bandwidth=600_096_000_000,
        memory=23_836_753_920,
        cores=72,
        fpus_per_core=128,
        l2_cache=6_291_456,
        clock_ghz=1.695,
        shared_memory_per_core=102_400,
        shared_memory_per_block=101_376,
    ),
    "l4": Gpu(
        name="NVIDIA L4",
        compute_capability=(8, 9),
        memory_bandwidth=300_096_000_000,
        memory=23_641_587_712,
        cores=58,
        fpus_per_core=128,
        l2_cache=50_331_648,
        clock_ghz=2.04,
        shared_memory_per_core=102_400,
        shared_memory_per_block=101_376,
    ),
    "b200": Gpu(
        name="NVIDIA B200",
        compute_capability=(10, 0),
        memory_bandwidth=7_672_320_000_000,
        memory=191_538_331_648,
        cores=148,
        fpus_per_core=128,
        l2_cache=132_644_864,
        clock_ghz=1.965,
        shared_memory_per_core=233_472,
        shared_memory_per_block=232_448,
    ),
}
