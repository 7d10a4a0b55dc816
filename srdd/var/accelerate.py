"""Faster sampling by choice: int8 linears, compiled blocks, CUDA graphs.

None is on by default: int8 is not exact, and the other two must warm up first.
"""

import copy
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from srdd.compiling import check_compiler, compile_function
from srdd.errors import UserError
from srdd.generator import SampleResult, sample
from srdd.graph import GraphedSampler, check_cuda
from srdd.nn.autoencoder import Decoder
from srdd.nn.int8 import Int8Linear
from srdd.var.block import Block
from srdd.var.config import SamplerConfig
from srdd.var.pipeline import Pipeline


def check_accelerators(
    device: torch.device, *, int8: bool = False, compiled: bool = False, cuda_graph: bool = False
) -> None:
    """Refuse what :func:`make_sampler` could not do on a device of this machine.

    Raises:
        UserError: the machine lacks what it needs; the message names the option.
    """
    if int8:
        _check_int8(device)
    if cuda_graph:
        check_cuda(device)
    if compiled:
        check_compiler(device)


def _check_int8(device: torch.device) -> None:
    if device.type != "cpu":
        raise UserError(f"--int8 runs on a CPU, this is {device}: use bfloat16 there")
    if not torch.cpu._is_vnni_supported():
        raise UserError("--int8 needs a processor with AVX512-VNNI: leave it off on this one")


def int8_linears(pipeline: Pipeline) -> Pipeline:
    """A copy whose transformer blocks multiply in int8; the tokenizer is shared.

    Embedding, AdaLN and head stay as they are. Not exact: see docs/performance.md for the error.

    Raises:
        UserError: the model is not on a CPU, or the processor has no 8-bit dot product (VNNI),
            without which this is slow.
    """
    _check_int8(pipeline.device)
    model = copy.deepcopy(pipeline.transformer)
    for block in model.layers:
        for parent, names in ((block.attn, ("qkv", "proj")), (block.ffn, ("fc1", "fc2"))):
            for name in names:
                setattr(parent, name, Int8Linear(getattr(parent, name)))
    return Pipeline(pipeline.tokenizer, model, pipeline.sampler, pipeline.class_names)


def compile_blocks(pipeline: Pipeline, backend: str = "inductor") -> Pipeline:
    """A copy whose blocks run through ``torch.compile``; the tokenizer is shared.

    Two functions are compiled, for all blocks and scales, when first called.

    Args:
        pipeline: the model.
        backend: torch.compile's.
    """
    model = copy.deepcopy(pipeline.transformer)
    project = compile_function(Block.project, dynamic=True, backend=backend)
    finish = compile_function(Block.finish, dynamic=True, backend=backend)
    for block in model.layers:
        object.__setattr__(block, "project", partial(project, block))
        object.__setattr__(block, "finish", partial(finish, block))
    return Pipeline(pipeline.tokenizer, model, pipeline.sampler, pipeline.class_names)


def compile_decoder(pipeline: Pipeline, backend: str = "inductor") -> Pipeline:
    """A copy whose decoder runs through ``torch.compile``; the transformer is shared.

    It pays where the device leaves group norm and SiLU as kernels of their own, as CUDA does.
    """
    tokenizer = copy.deepcopy(pipeline.tokenizer)
    decoder = tokenizer.decoder
    compiled = compile_function(Decoder.forward, dynamic=False, backend=backend)
    object.__setattr__(decoder, "forward", partial(compiled, decoder))
    return Pipeline(tokenizer, pipeline.transformer, pipeline.sampler, pipeline.class_names)


def make_sampler(
    pipeline: Pipeline,
    config: SamplerConfig,
    batch: int,
    *,
    int8: bool = False,
    compiled: bool = False,
    cuda_graph: bool = False,
) -> tuple[Callable[[Tensor, Tensor], SampleResult], float]:
    """A function of labels and seeds that samples with the accelerations chosen, warmed up.

    Args:
        pipeline: the model, on its device.
        config: the settings.
        batch: images of the largest call.
        int8: see :func:`int8_linears`.
        compiled: see :func:`compile_blocks`; on CUDA :func:`compile_decoder` too.
        cuda_graph: see :class:`srdd.graph.GraphedSampler`.

    Returns:
        The function, and the seconds that warming up took.

    Raises:
        UserError: the device or the settings do not allow it.
    """
    device = pipeline.device
    check_accelerators(device, int8=int8, compiled=compiled, cuda_graph=cuda_graph)
    began = time.perf_counter()
    if int8:
        pipeline = int8_linears(pipeline)
    if compiled:
        pipeline = compile_blocks(pipeline)
        pipeline = compile_decoder(pipeline) if device.type == "cuda" else pipeline
    if cuda_graph:
        graph = GraphedSampler(pipeline, config, batch)
        return graph, time.perf_counter() - began

    def draw(labels_B: Tensor, seeds_B: Tensor) -> SampleResult:
        return sample(pipeline, labels_B, config, seeds_B)

    if compiled:
        zeros_B = torch.zeros(batch, dtype=torch.int64)
        draw(zeros_B, zeros_B)
    return draw, time.perf_counter() - began
