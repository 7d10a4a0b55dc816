"""``srdd convert`` and ``srdd export``: official files to a pipeline directory, and back."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from torch import Tensor

from srdd.checkpoint import save_tensors
from srdd.errors import UserError
from srdd.load import load_var
from srdd.var.config import TransformerConfig
from srdd.var.official.convert import (
    LAYOUT_MASK,
    Source,
    build_pipeline,
    has_tokenizer,
    tokenizer_source,
    transformer_source,
)
from srdd.var.official.names import share_quant_resi, to_var, to_vqvae
from srdd.var.pipeline import Pipeline, save_pipeline
from srdd.weight_files import read_weights
from srdd_platform.core.files import atomic_path
from srdd_platform.core.parsing import integers
from srdd_platform.data.label_files import read_class_names

if TYPE_CHECKING:
    from srdd_platform.cli.convert_options import Convert, Export

_SUFFIXES = (".pth", ".pt", ".safetensors")


def convert_to(command: "Convert", console: Console) -> None:
    """Write a pipeline directory, whole or not at all, and say what became of every key.

    Raises:
        UserError: a file is no such checkpoint, or its keys or shapes do not fit.
    """
    if command.out.exists() and not (command.out.is_dir() and not any(command.out.iterdir())):
        raise UserError(f"{command.out} exists: give another --out")
    given = command.patch_nums
    patch_nums = None if given is None else integers(given, "patch_nums")
    names = None if command.classes is None else read_class_names(command.classes)
    tokenizer, transformer = _read_sources(command.vae, command.transformer)
    pipeline = build_pipeline(
        tokenizer,
        transformer,
        patch_nums=patch_nums,
        mask=command.mask,
        num_heads=command.num_heads,
        class_names=names,
    )
    with atomic_path(command.out) as temporary:
        save_pipeline(pipeline, temporary)
    for source in (tokenizer, transformer):
        _report(source, console, command.show_keys)
    _describe(pipeline, console)
    mask = pipeline.transformer.config.mask
    console.print(f"mask {mask}: {_reason(command.mask, transformer)}", soft_wrap=True)
    if mask == "block_causal" and transformer.hides_first:
        console.print(
            "the file's own mask hides scale 1 from the last code: if the model was trained so, "
            "convert it with --mask markov",
            style="yellow",
            soft_wrap=True,
        )
    console.print(
        f"{command.out}: try srdd sample --model {command.out} --num 8 --out grid.png",
        soft_wrap=True,
    )


def _read_sources(vae: Path | None, transformer: Path) -> tuple[Source, Source]:
    loaded = read_weights(
        transformer, "--transformer takes VAR's, MVAR's or HMAR's, such as var_d16.pth"
    )
    other, where = loaded, transformer
    if vae is not None:
        other, where = read_weights(vae, "--vae takes VAR's, such as vae_ch160v4096z32.pth"), vae
    elif not has_tokenizer(loaded, str(transformer)):
        raise UserError(f"{transformer} holds no tokenizer: give --vae")
    return tokenizer_source(other, str(where)), transformer_source(loaded, str(transformer))


def _reason(given: str | None, source: Source) -> str:
    if given is not None:
        return "as given"
    return f"{source.layout}'s; no mask is read from a file"


def _report(source: Source, console: Console, show_keys: bool) -> None:
    mapped = source.mapped
    dropped = f"; left out: {_grouped(mapped.dropped)}" if mapped.dropped else ""
    where = f"{source.where}, {source.place}" if source.place else source.where
    console.print(f"{where}: {len(mapped.origin)} tensors mapped{dropped}", soft_wrap=True)
    if show_keys:
        for ours, theirs in mapped.origin.items():
            console.print(f"  {theirs} -> {ours}", soft_wrap=True)
        for theirs in mapped.dropped:
            console.print(f"  {theirs} left out", soft_wrap=True)


def _grouped(names: Iterable[str]) -> str:
    """Names with their numbers as stars, each with how often it comes."""
    counts = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names)
    return ", ".join(name if n == 1 else f"{name} ({n})" for name, n in sorted(counts.items()))


def _describe(pipeline: Pipeline, console: Console) -> None:
    vae, model = pipeline.tokenizer.config, pipeline.transformer.config
    console.print(
        f"tokenizer: {vae.resolution} px, {vae.vocab_size} codes of {vae.z_channels} channels, "
        f"{vae.num_phi} phi; transformer: depth {model.depth}, width {model.width}, "
        f"{model.num_heads} heads, {model.num_classes} classes, "
        f"scales {','.join(map(str, model.patch_nums))}",
        soft_wrap=True,
    )


def export_to(command: "Export", console: Console) -> None:
    """Write a pipeline as VAR's two files, each whole, and say how VAR's code loads them.

    Raises:
        UserError: the model is no pipeline, or an output's name will not do.
    """
    targets = (command.vae, command.transformer)
    for path in targets:
        if path.suffix not in _SUFFIXES:
            raise UserError(f"{path} must end in one of {', '.join(_SUFFIXES)}")
        if path.exists():
            raise UserError(f"{path} exists: give another name")
    if targets[0].resolve() == targets[1].resolve():
        raise UserError(f"{targets[0]} cannot be both files: give two names")
    pipeline = load_var(command.model)
    states = (to_vqvae(pipeline.tokenizer), to_var(pipeline.transformer))
    with atomic_path(targets[0]) as vae, atomic_path(targets[1]) as transformer:
        for temporary, target, state in zip((vae, transformer), targets, states, strict=True):
            _save(temporary, target.suffix, state)
    for path, state in zip(targets, states, strict=True):
        console.print(f"{path}: {len(state)} tensors", soft_wrap=True)
    for line in official_arguments(pipeline):
        console.print(line, soft_wrap=True)


def _save(path: Path, suffix: str, state: dict[str, Tensor]) -> None:
    own = {name: tensor.contiguous() for name, tensor in state.items()}
    if suffix == ".safetensors":
        save_tensors(path, own)
        return
    with path.open("wb") as file:  # given a path, torch would write its name into the archive
        torch.save(own, file)


def official_arguments(pipeline: Pipeline) -> list[str]:
    """How VAR's classes are constructed to load what :func:`export_to` wrote, and what differs."""
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
