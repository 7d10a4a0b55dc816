"""Sampling as one CUDA graph: a single launch for all steps and the decoder."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from srdd.errors import UserError
from srdd.generator import Capturable, SampleResult, State, result_of

_WARM_UP_CALLS = 3  # before a capture, so that libraries have chosen their kernels


@torch.no_grad()
def run_loop(
    generator: Capturable[Any], labels_B: Tensor, config: Any, seeds_B: Tensor
) -> tuple[State, Tensor]:
    """All steps and the decoder: nothing in it waits for the device.

    Args:
        generator: the model.
        labels_B: int64, on the device, known to fit.
        config: settings that can be captured.
        seeds_B: int64, on the device.

    Returns:
        The state after the last step, and its images [B, 3, R, R] in [0, 1].
    """
    state = generator.start(labels_B, config, seeds_B)
    while state.step < state.num_steps:
        state = generator.advance(state)
    return state, generator.pixels(state)


class GraphedSampler:
    """A generator's sampling, captured for one batch size and one configuration.

    Smaller batches are filled up.

    Args:
        generator: on a CUDA device.
        config: settings under which the number of evaluations is fixed.
        batch: images of a call.

    Attributes:
        warm_up_s: seconds that warming up and capturing took.

    Raises:
        UserError: the device is no CUDA device, or the settings cannot be captured.
    """

    def __init__(self, generator: Capturable[Any], config: Any, batch: int) -> None:
        device = generator.device
        generator.check_capture(config)
        check_cuda(device)
        began = time.perf_counter()
        self.generator, self.config, self.batch = generator, config, batch
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
                self._state, self._images = self._run()
            torch.cuda.synchronize()
        self.warm_up_s = time.perf_counter() - began

    def _run(self) -> tuple[State, Tensor]:
        return run_loop(self.generator, self._labels_B, self.config, self._seeds_B)

    def __call__(
        self, labels_B: Tensor | Sequence[int], seeds_B: Tensor | Sequence[int]
    ) -> SampleResult:
        """Make an image for each label, up to ``batch`` of them.

        Raises:
            UserError: more labels than the batch, or labels or seeds that do not fit the model.
            FloatingPointError: the network gave values that are not finite.
        """
        labels_B, seeds_B = self.generator.check_request(labels_B, self.config, seeds_B)
        count = len(labels_B)
        if count > self.batch:
            raise UserError(f"{count} images do not fit a graph captured for {self.batch}")
        if count:
            for held, values in ((self._labels_B, labels_B), (self._seeds_B, seeds_B)):
                held[:count].copy_(values)
                held[count:].fill_(held[0])  # the first image again: whatever fails there counts
        self._graph.replay()
        self.generator.check_finite(self._state)
        whole = result_of(self._state, self._images)
        parts = (whole.images, whole.codes_BL, whole.nfe, whole.gflops)
        return SampleResult(*(part[:count].clone() for part in parts))  # a replay overwrites them


def check_cuda(device: torch.device) -> None:
    """Refuse a device on which nothing can be captured.

    Raises:
        UserError: it is no CUDA device.
    """
    if device.type != "cuda":
        raise UserError(f"--cuda-graph needs a CUDA device, this is {device}: leave it out")
