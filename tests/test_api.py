"""The one page of API: every name is there, and says what it takes and returns."""

import inspect
import re

import pytest

import lawm_jax as lawm

# Of each function, whether its docstring gives shapes, and whether it names its source.
FUNCTIONS = {
    "build": (False, False),
    "init": (True, False),
    "load": (False, False),
    "save": (False, False),
    "save_pretrained": (False, False),
    "push_to_hub": (False, False),
    "load_encoder": (False, False),
    "encode": (True, True),
    "infer_actions": (True, True),
    "predict": (True, True),
    "rollout": (True, False),
    "prefill": (True, False),
    "rollout_latents": (True, False),
    "rollout_actions": (True, True),
    "decode": (True, True),
    "map_actions": (True, True),
    "loss": (True, True),
    "train_step": (True, True),
    "sample_actions": (True, True),
    "cem": (True, True),
    "make_mesh": (False, False),
    "clips": (True, False),
}
CLASSES = {"WorldModel"}


def test_the_api_is_the_page_in_the_design():
    assert set(lawm.__all__) == FUNCTIONS.keys() | CLASSES
    assert set(lawm.__all__) <= set(dir(lawm))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'vague'"):
        lawm.vague  # noqa: B018


def test_the_package_explains_the_letters_of_shapes():
    for letter in ("B clips", "F frames", "T time steps", "N tokens", "D token", "A latent-action"):
        assert letter in lawm.__doc__


def sections(text):
    """Splits a docstring into {"Args": text, ...}; what comes first is named ""."""
    parts = re.split(r"^(Args|Returns|Yields|Raises|Source):", inspect.cleandoc(text), flags=re.M)
    return dict(zip(["", *parts[1::2]], parts[::2], strict=True))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_functions_docstring_says_what_it_takes_returns_and_raises(name):
    shaped, sourced = FUNCTIONS[name]
    function = getattr(lawm, name)
    text = sections(function.__doc__)
    first = function.__doc__.splitlines()[0]
    assert re.fullmatch(r"[A-Z][a-z]+s .*[.:]", first), "a verb in the third person"
    assert {"Args"} | ({"Raises"} if "save" in name else {"Returns"}) <= text.keys()
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"\b{parameter}\b", text["Args"]), f"{parameter} is not explained"
    if shaped:
        assert re.search(r"\[[A-Z.]", text["Args"] + text["Returns"]), "no shapes"
    if "raise ValueError" in inspect.getsource(function):
        assert "ValueError:" in text["Raises"]
    assert ("Source" in text) or not sourced


@pytest.mark.parametrize("name", CLASSES)
def test_a_classs_docstring_explains_its_fields(name):
    cls = getattr(lawm, name)
    explained = inspect.cleandoc(cls.__doc__).split("Attributes:")[1]
    for field in cls.__dataclass_fields__:
        assert re.search(rf"\b{field}\b", explained), field
