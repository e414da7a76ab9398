"""The servers that the demo runs, as a table: model, engine settings, step cost, usual traffic, GPUs."""

from typing import Final, NamedTuple

from .engine import EngineConfig, StepCost
from .workload import Lengths, Traffic


class Model(NamedTuple):
    """One kind of server.

    Attributes:
        name: the server's name.
        config: settings of each of its engines.
        traffic: what clients send in an ordinary hour.
        engines: data parallel size.
    """

    name: str
    config: EngineConfig
    traffic: Traffic
    engines: int


# Orders of magnitude from sizes: a step reads the weights once (bf16, 3.35 TB/s per H100) and the KV cache of its
# sequences; a prompt token costs 2 FLOP per parameter at about 500 TFLOP/s per GPU. Blocks fill 90 % of 80 GiB.
MODELS: Final = (
    Model(
        "llama-3.1-70b",
        EngineConfig(
            "meta-llama/Llama-3.1-70B-Instruct",
            max_model_len=32768,
            num_gpu_blocks=29500,
            cost=StepCost(base=14e-3, prefill=85e-6, sequence=60e-6, context=24e-9),
            max_num_seqs=128,
            max_num_batched_tokens=2048,
            tensor_parallel_size=4,
            weight_bytes=141e9,
            kv_bytes_per_token=327_680,  # 80 layers x 8 KV heads x 128 x K and V x 2 bytes
            collective_bytes_per_token=3.9e6,  # 2 all-reduces per layer of 8192 x 2 bytes, ring over 4
        ),
        Traffic(rate=3.5, prompt=Lengths(400, 0.75), output=Lengths(180, 0.6)),
        engines=1,
    ),
    Model(
        "qwen3-8b",
        EngineConfig(
            "Qwen/Qwen3-8B",
            max_model_len=32768,
            num_gpu_blocks=24300,
            cost=StepCost(base=7e-3, prefill=33e-6, sequence=25e-6, context=44e-9),
            max_num_seqs=256,
            max_num_batched_tokens=4096,
            weight_bytes=16.4e9,
            kv_bytes_per_token=147_456,  # 36 layers x 8 KV heads x 128 x K and V x 2 bytes
        ),
        Traffic(rate=12.0, prompt=Lengths(350, 0.9), output=Lengths(220, 0.6)),
        engines=2,
    ),
)
