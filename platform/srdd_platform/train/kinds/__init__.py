"""The kinds of training. To add one, write a file beside these and name it here."""

from srdd_platform.train.kind import Kind
from srdd_platform.train.kinds.classifier import CLASSIFIER
from srdd_platform.train.kinds.tokenizer import TOKENIZER
from srdd_platform.train.kinds.transformer import TRANSFORMER

KINDS: dict[str, Kind] = {kind.name: kind for kind in (TOKENIZER, TRANSFORMER, CLASSIFIER)}
