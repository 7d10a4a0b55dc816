"""State dicts in what trainers save, and the names of networks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from srdd.errors import UserError
from srdd.foreign import check_tensors, find_state, main_state, owned, plain_names
from srdd.networks import is_inception, name_network

State = dict[str, Tensor]
STATE = {"blocks.0.weight": torch.ones(2), "blocks.0.bias": torch.zeros(1), "pos": torch.ones(1)}


def _fits(state: Any) -> bool:
    return "pos" in state


def before(prefix: str) -> dict[str, Any]:
    return {prefix + name: tensor for name, tensor in STATE.items()}


@pytest.mark.parametrize(
    ("loaded", "place"),
    [
        (STATE, ""),
        (before("module."), ""),  # DataParallel
        (before("_orig_mod."), ""),  # torch.compile
        (before("module._orig_mod."), ""),
        (before("_orig_mod.module."), ""),
        (before("model."), ""),
        (before("_fsdp_wrapped_module."), ""),
        ({"blocks._orig_mod.0.weight": STATE["blocks.0.weight"], "pos": STATE["pos"],
          "blocks.0._checkpoint_wrapped_module.bias": STATE["blocks.0.bias"]}, ""),
        ({**before("module."), "epoch": 3}, ""),
        ({"state_dict": before("model."), "epoch": 3}, "state_dict"),  # Lightning
        ({"model": before("module."), "optimizer": {"state": {}}}, "model"),
        ({"trainer": {"net": STATE}, "args": {}}, "trainer.net"),
        ({"ckpt": {"generator": before("_orig_mod.")}}, "ckpt.generator"),
        ({"model": {n: t + 1 for n, t in STATE.items()}, "ema": STATE}, "ema"),
        ({"params": {}, "params_ema": STATE}, "params_ema"),  # BasicSR
        ({"ours": STATE, "ema": {n: t + 1 for n, t in STATE.items()}}, "ours"),  # a name known
    ],
)  # fmt: skip
def test_a_state_is_found_where_trainers_keep_it(loaded: dict[str, Any], place: str) -> None:
    found = find_state(loaded, ("ours",), _fits)
    assert found is not None
    assert found.place == place
    assert {n for n, t in found.state.items() if isinstance(t, Tensor)} == STATE.keys()
    assert all(torch.equal(found.state[name], tensor) for name, tensor in STATE.items())


def test_what_is_not_there_is_not_found() -> None:
    assert find_state({"model": {"a": torch.ones(1)}, "pose": 3}, (), _fits) is None
    loaded = {"disc": {"a": torch.ones(1)}, "state_dict": before("module."), "lr": 1.0}
    assert main_state(loaded).keys() == STATE.keys()
    assert main_state({"epoch": 3}) == {"epoch": 3}


def test_names_that_fall_together_are_refused() -> None:
    both = {"_orig_mod.a": torch.ones(1), "a": torch.zeros(1)}
    with pytest.raises(UserError, match=r"^_orig_mod\.a and a are the same parameter$"):
        plain_names(both)


def test_a_prefix_of_some_is_part_of_their_names() -> None:
    mixed = {"model.a": torch.ones(1), "quant.b": torch.ones(1)}
    assert plain_names(mixed).keys() == mixed.keys()
    assert plain_names({}) == {}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_every_float_becomes_float32(dtype: torch.dtype) -> None:
    found = owned({"a": torch.tensor([1.5, -0.25]).to(dtype)})["a"]
    assert found.dtype == torch.float32
    assert found.tolist() == [1.5, -0.25]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.ones(2, dtype=torch.int8), "a is torch.int8"),
        (torch.ones(2, dtype=torch.complex64), "a is torch.complex64"),
        (torch.eye(2).to_sparse(), r"a is torch.float32, torch.sparse_coo, not dense floats"),
        (torch.tensor([1.0, torch.nan]), "a holds values that are not finite"),
        (torch.tensor([torch.inf]).half(), "a holds values that are not finite"),
        ([1.0], "a is a list, not a tensor"),
        (torch.ones(1).expand(2**40), "a claims 4398046511104 bytes and stores 4"),
    ],
)
def test_what_is_no_weight_is_named(value: object, said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}"):
        owned({"a": value})


def test_names_that_a_terminal_would_obey_are_quoted() -> None:
    with pytest.raises(UserError, match=r"unknown '\\x1b\[31ma\\n'$"):
        check_tensors({}, {"\x1b[31ma\n": torch.ones(1)})


def test_what_is_no_tensor_does_not_fit() -> None:
    with pytest.raises(UserError, match=r"^not tensors: b$"):
        check_tensors(STATE | {"b": torch.ones(1)}, STATE | {"b": 3})


def _meta(**shapes: tuple[int, ...]) -> State:
    return {n.replace("__", "."): torch.empty(s, device="meta") for n, s in shapes.items()}


INCEPTION = {"Mixed_7c__branch1x1__conv__weight": (320, 2048, 1, 1)}
NETWORKS: dict[str, State] = {
    "torch-fidelity's Inception": _meta(**INCEPTION, fc__weight=(1008, 2048)),
    "torchvision's Inception": _meta(**INCEPTION, fc__weight=(1000, 2048)),
    "VGG16": _meta(features__28__weight=(512, 512, 3, 3), features__0__weight=(64, 3, 3, 3)),
    "VGG19": _meta(features__28__weight=(512, 512, 3, 3), features__34__weight=(512, 512, 3, 3)),
    "AlexNet": _meta(features__0__weight=(64, 3, 11, 11)),
    "LPIPS's heads for VGG16": _meta(lin0__model__1__weight=(1, 64, 1, 1),
                                     lin1__model__1__weight=(1, 128, 1, 1)),
    "LPIPS's heads for AlexNet": _meta(lin1__model__1__weight=(1, 192, 1, 1)),
    "LPIPS's heads for SqueezeNet": _meta(lin1__model__1__weight=(1, 128, 1, 1),
                                          lin6__model__1__weight=(1, 512, 1, 1)),
    "LPIPS with VGG16": _meta(net__slice1__0__weight=(64, 3, 3, 3), net__slice5__28__weight=(1,),
                              lin1__model__1__weight=(1, 128, 1, 1)),
    "a ResNet": _meta(conv1__weight=(64, 3, 7, 7), layer1__0__conv1__weight=(64, 64, 1, 1)),
    "VAR's tokenizer": _meta(quantize__embedding__weight=(4096, 32),
                             quantize__quant_resi__qresi_ls__0__weight=(32, 32, 3, 3)),
    "a VQGAN": _meta(quantize__embedding__weight=(1024, 256), encoder__down__0__x=(1,)),
    "VAR's transformer": _meta(pos_1LC=(1, 680, 1024), lvl_embed__weight=(10, 1024)),
    "HMAR's transformer": _meta(pos_1LC=(1, 680, 1024), ns_blocks__0__ffn__fc1__bias=(1,),
                                mask_embed__weight=(1, 1024)),
    "HMAR's mask prediction": _meta(pos_1LC=(1, 680, 1024), lvl_embed__weight=(10, 1024),
                                    mask_embed__weight=(1, 1024), word_embed_bias=(1024,)),
    "DiT": _meta(x_embedder__proj__weight=(1152, 4, 2, 2), t_embedder__mlp__0__weight=(1152, 256)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_known_by_its_tensors(name: str) -> None:
    assert name_network(NETWORKS[name]) == name
    assert is_inception(NETWORKS[name]) is (name == "torch-fidelity's Inception")


def test_an_unknown_network_has_no_name(tiny_official: dict[str, State]) -> None:
    assert name_network({}) is None
    assert name_network({"weight": torch.ones(1), "fc.weight": torch.ones(1008, 1)}) is None
    assert name_network({"pos_1LC": 3}) is None
    assert name_network(tiny_official["vqvae"]) == "VAR's tokenizer"
    assert name_network(tiny_official["var"]) == "VAR's transformer"


def test_our_own_models_are_known(make_pipeline: Callable[..., Any]) -> None:
    pipeline = make_pipeline()
    assert name_network(pipeline.tokenizer.state_dict()) == "a tokenizer of srdd"
    assert name_network(pipeline.transformer.state_dict()) == "a transformer of srdd"
