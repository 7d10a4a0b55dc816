import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from srdd.metrics.classifier import ClassifierConfig
from srdd.train.classifier import ClassifierTask
from srdd.train.config import OptimConfig, TokenizerLossConfig, TransformerLossConfig
from srdd.train.task import Batch
from srdd.train.var.adversarial import Discriminator
from srdd.train.var.flops import tokenizer_flops, transformer_flops
from srdd.train.var.tokenizer_task import TokenizerTask
from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd.var.cost import increment_flops
from srdd.var.masks import MASKS, Mask
from srdd.var.transformer import ScaleTransformer

OPTIM = OptimConfig(steps=10)
TOKENIZER = TokenizerConfig(
    resolution=16, patch_nums=(1, 2, 4), vocab_size=32, z_channels=8, ch=8, ch_mult=(1, 2, 2),
    num_res_blocks=1,
)  # fmt: skip


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shared_aln", [False, True])
def test_the_closed_form_is_what_torch_counts_forward_and_backward(
    mask: Mask, shared_aln: bool
) -> None:
    config = TransformerConfig(
        patch_nums=(1, 2, 3, 4), mask=mask, num_classes=10, depth=3, width=64, num_heads=4,
        vocab_size=128, z_channels=16, shared_aln=shared_aln,
    )  # fmt: skip
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = ScaleTransformer(config).train()
        codes_BL = torch.zeros(1, 30, dtype=torch.int64)
        model(torch.zeros(1, dtype=torch.int64), codes_BL).mean().backward()
    unused = increment_flops(config)  # the last scale's, which no input needs
    assert counter.get_total_flops() == (
        transformer_flops(config, TransformerLossConfig()) + unused
    )


def test_showing_images_their_own_codes_costs_an_increment_more_a_scale() -> None:
    config = TransformerConfig(patch_nums=(1, 2, 3, 4))
    plain, refined = (
        transformer_flops(config, TransformerLossConfig(refine_share=share)) for share in (0, 0.5)
    )
    assert refined - plain == 3 * increment_flops(config)


def test_a_tokenizer_costs_what_torch_counts_of_its_training_step() -> None:
    task = TokenizerTask(TOKENIZER, TokenizerLossConfig(), OPTIM)
    batch = Batch(
        torch.randint(0, 256, (4, 3, 16, 16)).byte(), torch.zeros(4, dtype=torch.int64),
        torch.arange(4), 4,
    )  # fmt: skip
    # Attention as two products, which torch's counter knows.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        task.module.forward(batch, 0)[0].backward()
    assert counter.get_total_flops() > 0
    assert 4 * tokenizer_flops(TOKENIZER, task.loss) == counter.get_total_flops()
    assert task.flops(0) == tokenizer_flops(TOKENIZER, task.loss)


def test_the_discriminator_costs_a_judgement_and_its_own_update_once_it_has_begun() -> None:
    loss = TokenizerLossConfig(gan=0.4, gan_start=0.5, gan_width=16)
    task = TokenizerTask(TOKENIZER, loss, OPTIM)
    before, after = task.flops(4), task.flops(5)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        discriminator = Discriminator(16, 2)
        discriminator(torch.zeros(1, 3, 16, 16))
    judged = counter.get_total_flops()
    first = 2 * 3 * 16 * 4 * 4 * 8 * 8  # whose input needs no gradient in the update
    # Judging the reconstruction: forward, and back to the pixels. The update, of two images:
    # forward, back, and the weights' gradients.
    assert after - before == 2 * judged + 2 * (3 * judged - first)


def test_a_classifier_costs_three_times_its_forward_pass_but_for_the_pixels() -> None:
    config = ClassifierConfig(num_classes=10, resolution=16, ch=8, features=32)
    task = ClassifierTask(config, OPTIM)
    with FlopCounterMode(display=False) as counter:
        task.classifier(torch.zeros(1, 3, 16, 16))
    forward = counter.get_total_flops()
    conv = next(m for m in task.classifier.modules() if isinstance(m, torch.nn.Conv2d))
    pixels = 2 * conv.weight.numel() * (16 // conv.stride[0]) ** 2
    assert task.flops(0) == 3 * forward - pixels
