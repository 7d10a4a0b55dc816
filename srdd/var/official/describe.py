"""What was found in official files, and how VAR's own code loads ours: lines for a person."""

import re
from collections import Counter
from collections.abc import Iterable

from srdd.var.config import TransformerConfig
from srdd.var.masks import Mask
from srdd.var.official.convert import LAYOUT_MASK, Source
from srdd.var.official.names import share_quant_resi
from srdd.var.pipeline import Pipeline


def describe_conversion(
    pipeline: Pipeline,
    tokenizer: Source,
    transformer: Source,
    *,
    given: Mask | None = None,
    show_keys: bool = False,
) -> list[str]:
    """What became of two files that are a pipeline now.

    Args:
        pipeline: the result.
        tokenizer: what was found in its file.
        transformer: likewise.
        given: the mask that the user chose; None took the layout's.
        show_keys: whether every key is named.
    """
    lines = []
    for source in (tokenizer, transformer):
        lines += [_describe_source(source), *(_key_lines(source) if show_keys else ())]
    reason = f"{transformer.layout}'s; no mask is read from a file" if given is None else "as given"
    mask = f"mask {pipeline.transformer.config.mask}: {reason}"
    return [*lines, _describe_sizes(pipeline), mask]


def _describe_source(source: Source) -> str:
    """How many tensors of a file were mapped, and which were not."""
    mapped = source.mapped
    dropped = f"; left out: {_grouped(mapped.dropped)}" if mapped.dropped else ""
    where = f"{source.where}, {source.place}" if source.place else source.where
    return f"{where}: {len(mapped.origin)} tensors mapped{dropped}"


def _key_lines(source: Source) -> list[str]:
    """Every key of a file, and what became of it."""
    mapped = [f"  {theirs} -> {ours}" for ours, theirs in source.mapped.origin.items()]
    return mapped + [f"  {theirs} left out" for theirs in source.mapped.dropped]


def _grouped(names: Iterable[str]) -> str:
    """Names with their numbers as stars, each with how often it comes."""
    counts = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names)
    return ", ".join(name if n == 1 else f"{name} ({n})" for name, n in sorted(counts.items()))


def _describe_sizes(pipeline: Pipeline) -> str:
    """The sizes of a pipeline's two networks."""
    vae, model = pipeline.tokenizer.config, pipeline.transformer.config
    return (
        f"tokenizer: {vae.resolution} px, {vae.vocab_size} codes of {vae.z_channels} channels, "
        f"{vae.num_phi} phi; transformer: depth {model.depth}, width {model.width}, "
        f"{model.num_heads} heads, {model.num_classes} classes, "
        f"scales {','.join(map(str, model.patch_nums))}"
    )


def mask_warning(pipeline: Pipeline, source: Source) -> str:
    """What speaks against the mask of a converted pipeline; "" for nothing."""
    if pipeline.transformer.config.mask != "block_causal" or not source.hides_first:
        return ""
    return (
        "the file's own mask hides scale 1 from the last code: if the model was trained so, "
        "convert it with --mask markov"
    )


def official_arguments(pipeline: Pipeline) -> list[str]:
    """How VAR's classes are constructed to load an exported pipeline, and what differs."""
    vae, model = pipeline.tokenizer.config, pipeline.transformer.config
    share = share_quant_resi(vae.num_phi, len(vae.patch_nums))
    lines = [
        f"VQVAE(vocab_size={vae.vocab_size}, z_channels={vae.z_channels}, ch={vae.ch}, "
        f"share_quant_resi={share}, v_patch_nums={vae.patch_nums})",
        f"VAR(vae, num_classes={model.num_classes}, depth={model.depth}, embed_dim={model.width}, "
        f"num_heads={model.num_heads}, mlp_ratio={model.mlp_ratio:g}, norm_eps={model.norm_eps:g}, "
        f"shared_aln={model.shared_aln}, attn_l2_norm={model.attn_l2_norm}, "
        f"patch_nums={model.patch_nums})",
    ]
    if vae.ch_mult != (1, 1, 2, 2, 4) or vae.num_res_blocks != 2 or vae.ch % 32:
        lines.append(
            "VAR's own VQVAE cannot hold this tokenizer: it has 5 levels (1, 1, 2, 2, 4), 2 "
            "residual blocks and channels in multiples of 32"
        )
    return lines + _differences(model)


def _differences(model: TransformerConfig) -> list[str]:
    lines = []
    if model.mask != LAYOUT_MASK["VAR"]:
        lines.append(
            f"the mask is {model.mask}: VAR's forward takes it from attn_bias_for_masking, VAR's "
            "sampling loop attends to every earlier scale all the same"
        )
    if model.parent:
        lines.append(
            f"scales were pruned: VAR's sampling loop ramps guidance over its own "
            f"{len(model.patch_nums)} scales, here it grows over the parent's {len(model.parent)}"
        )
    if model.unconditional:
        lines.append(f"the model is unconditional: give VAR label {model.num_classes}")
    return lines
