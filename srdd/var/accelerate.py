"""Faster sampling by choice: int8 linears, compiled blocks, CUDA graphs.

None is on by default: int8 is not exact, and the other two must warm up first.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from srdd.compiling import check_compiler, compile_function
from srdd.errors import UserError
from srdd.generator import SampleResult, result_of, sample
from srdd.nn.autoencoder import Decoder
from srdd.nn.linear import RowLinear
from srdd.var.checks import check_request
from srdd.var.config import SamplerConfig
from srdd.var.pipeline import Pipeline
from srdd.var.sampling import check_finite, start
from srdd.var.state import SampleState
from srdd.var.transformer import Block

_WARM_UP_CALLS = 3  # before a capture, so that libraries have chosen their kernels


class Int8Linear(nn.Module):
    """A linear layer in 8-bit integers: weights by output channel, inputs by row, at run time.

    A row's result depends on that row alone, so an image still does not depend on its batch.
    """

    weight_KN: Tensor
    scale_N: Tensor
    bias: Tensor | None

    def __init__(self, linear: RowLinear) -> None:
        super().__init__()
        weight_NK = linear.weight.detach().float()
        scale_N = weight_NK.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("weight_KN", (weight_NK / scale_N[:, None]).round().to(torch.int8).T)
        self.register_buffer("scale_N", scale_N)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        self.register_buffer("bias", bias)

    @torch.no_grad()
    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., K] -> [..., N]; ``bias`` stands in for the layer's own."""
        rows_nK = x.flatten(0, -2)
        scale_n1 = rows_nK.abs().amax(-1, keepdim=True).clamp_min_(1e-30).float() / 127
        rows_nK = (rows_nK / scale_n1).round_().to(torch.int8)
        sums_nN = torch._int_mm(rows_nK, self.weight_KN)
        scaled_nN: Tensor = sums_nN * scale_n1
        bias = self.bias if bias is None else bias
        if bias is None:
            scaled_nN.mul_(self.scale_N)
        else:
            torch.addcmul(bias.float(), scaled_nN, self.scale_N, out=scaled_nN)
        out: Tensor = scaled_nN.to(x.dtype).unflatten(0, x.shape[:-1])
        return out


def check_accelerators(
    device: torch.device, *, int8: bool = False, compiled: bool = False, cuda_graph: bool = False
) -> None:
    """Refuse what :func:`make_sampler` could not do on a device of this machine.

    Raises:
        UserError: the machine lacks what it needs; the message names the option.
    """
    if int8:
        _check_int8(device)
    if cuda_graph and device.type != "cuda":
        raise UserError(f"--cuda-graph needs a CUDA device, this is {device}: leave it out")
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


def run_loop(
    pipeline: Pipeline, labels_B: Tensor, config: SamplerConfig, seeds_B: Tensor
) -> tuple[SampleState, Tensor]:
    """The whole of sampling without refinement: nothing in it waits for the device.

    Args:
        pipeline: the model.
        labels_B: int64, on the device, known to fit.
        config: without refinement.
        seeds_B: int64, on the device.

    Returns:
        The state after the last scale, and its images [B, 3, R, R] in [-1, 1].
    """
    with torch.no_grad():
        state = start(pipeline.transformer, pipeline.tokenizer, labels_B, config, seeds_B)
        while state.step < state.num_steps:
            state = pipeline.advance(state)
        return state, pipeline.tokenizer.decode_latent(state.f_hat)


class GraphedSampler:
    """Sampling as one CUDA graph: a single launch for all scales and the decoder.

    It is captured for one batch size and one configuration; smaller batches are filled up.

    Args:
        pipeline: on a CUDA device.
        config: settings without refinement, whose number of passes depends on the codes drawn.
        batch: images of a call.

    Attributes:
        warm_up_s: seconds that warming up and capturing took.

    Raises:
        UserError: the device is no CUDA device, or the settings refine.
    """

    def __init__(self, pipeline: Pipeline, config: SamplerConfig, batch: int) -> None:
        device = pipeline.device
        if config.active()["refine_steps"]:
            raise UserError("a CUDA graph needs a fixed loop: set refine_steps to 0")
        check_accelerators(device, cuda_graph=True)
        began = time.perf_counter()
        self.pipeline, self.config, self.batch = pipeline, config, batch
        self._labels_B = torch.zeros(batch, dtype=torch.int64, device=device)
        self._seeds_B = torch.zeros(batch, dtype=torch.int64, device=device)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device):  # a capture takes place on the current one
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP_CALLS):
                    self._run()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self._graph, stream=stream):
                self._state, self._pixels = self._run()
            torch.cuda.synchronize()
        self.warm_up_s = time.perf_counter() - began

    def _run(self) -> tuple[SampleState, Tensor]:
        return run_loop(self.pipeline, self._labels_B, self.config, self._seeds_B)

    def __call__(
        self, labels_B: Tensor | Sequence[int], seeds_B: Tensor | Sequence[int]
    ) -> SampleResult:
        """Draw an image for each label, up to ``batch`` of them.

        Raises:
            UserError: more labels than the batch, or labels or seeds that do not fit the model.
            FloatingPointError: the network gave logits that are not finite.
        """
        labels_B, seeds_B = check_request(self.pipeline.transformer, labels_B, self.config, seeds_B)
        count = len(labels_B)
        if count > self.batch:
            raise UserError(f"{count} images do not fit a graph captured for {self.batch}")
        self._labels_B[:count].copy_(labels_B)
        self._seeds_B[:count].copy_(seeds_B)
        self._graph.replay()
        check_finite(replace(self._state, fault_B=self._state.fault_B[:count]))
        whole = result_of(self._state, self._pixels.add(1).mul(0.5))
        parts = (whole.images, whole.codes_BL, whole.nfe, whole.gflops)
        return SampleResult(*(part[:count].clone() for part in parts))  # a replay overwrites them


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
        cuda_graph: see :class:`GraphedSampler`.

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
