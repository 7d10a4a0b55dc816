"""``--init-from``: the pipeline whose weights a transformer's training begins with."""

from pathlib import Path

import torch

from srdd.checkpoint import map_weights, read_config
from srdd.errors import UserError
from srdd.foreign import main_state
from srdd.networks import name_network
from srdd.var.config import TransformerConfig
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import ScaleTransformer
from srdd.var.warm_start import check_source
from srdd.weight_files import read_weights
from srdd_platform.core.files import sha256_file
from srdd_platform.core.runs import model_dir


def check_init(source: Path, config: TransformerConfig, tokenizer: Tokenizer) -> None:
    """Refuse what ``--init-from`` cannot begin with, before any work; few values are read.

    Raises:
        UserError: there is no pipeline, or its transformer does not fit.
    """
    if source.is_file():
        loaded = read_weights(source, "--init-from takes a pipeline or run directory")
        network = name_network(main_state(loaded)) or "a file of weights"
        raise UserError(
            f"--init-from {source}: this is {network}, not a pipeline or run directory; "
            "srdd convert makes one of VAR's, MVAR's and HMAR's files"
        )
    directory = _weights(source).parent
    try:
        other = read_config(directory, "transformer", TransformerConfig)
        with torch.device("meta"):
            model = ScaleTransformer(other)
        check_source(config, tokenizer.state_dict(), other, map_weights(model, directory))
    except UserError as error:
        raise UserError(f"--init-from {source}: {error}") from None


def weights_hash(source: Path) -> str:
    """Names the transformer's weights in a pipeline or run directory, wherever that lies.

    Raises:
        UserError: there are none.
    """
    return sha256_file(_weights(source))


def _weights(source: Path) -> Path:
    """The file of the transformer's weights."""
    path = model_dir(source) / "transformer" / "model.safetensors"
    if not path.is_file():
        raise UserError(f"--init-from {source}: neither a pipeline nor a finished transformer run")
    return path
