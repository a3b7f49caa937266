"""The spec travels as text and comes back the same, or is refused."""

import json

import pytest
from brainseg_runtime.errors import CODES, BrainsegError, BundleInvalid
from brainseg_runtime.spec import Label, Modality, ModelSpec, Region
from hypothesis import given
from hypothesis import strategies as st
from toys import toy_spec

NAMES = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=8)


@st.composite
def specs(draw):
    """Any valid spec: nested or disjoint regions, either activation."""
    modalities = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    values = draw(st.lists(st.integers(1, 255), min_size=1, max_size=5, unique=True))
    nested = draw(st.booleans())
    regions = tuple(
        Region(f"R{n}", tuple(values[n:]) if nested else (value,), draw(st.floats(0.01, 0.99)))
        for n, value in enumerate(values)
    )
    softmax = draw(st.booleans())
    return toy_spec(
        name=draw(NAMES),
        modalities=tuple(Modality(m, tuple(draw(st.lists(NAMES, max_size=3)))) for m in modalities),
        reference=draw(st.sampled_from(modalities)),
        labels=tuple(Label(v, f"L{v}") for v in values),
        regions=regions,
        activation="softmax" if softmax else "sigmoid",
        channels=(0, *values) if softmax else (),
        spacing=draw(st.tuples(*[st.floats(0.1, 10)] * 3)),
    )


@given(specs())
def test_a_spec_survives_its_json(spec):
    """Reading what was written gives the same spec, and writing it again the same bytes."""
    again = ModelSpec.from_json(spec.to_json())
    assert again == spec
    assert again.to_json() == spec.to_json()


def changed(**changes):
    raw = json.loads(toy_spec().to_json())
    raw.update(changes)
    return json.dumps({k: v for k, v in raw.items() if v is not None})


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "E_BUNDLE_FORMAT"),
        ("[]", "E_BUNDLE_FORMAT"),
        ("{}", "E_BUNDLE_FORMAT"),
        (changed(format=2), "E_BUNDLE_FORMAT"),
        (changed(regions=None), "E_BUNDLE_FORMAT"),
        (changed(tile="many"), "E_BUNDLE_FORMAT"),
        (changed(surprise=1), "E_BUNDLE_FORMAT"),
        (changed(modalities=[{"name": "t1"}]), "E_BUNDLE_FORMAT"),
        (changed(orientation="LPS"), "E_SPEC"),
        (changed(activation="tanh"), "E_SPEC"),
        (changed(normalisation="minmax"), "E_SPEC"),
    ],
)
def test_what_is_no_spec_is_refused_with_a_code(text, code):
    """Malformed, newer and contradictory specs are told apart."""
    with pytest.raises(BundleInvalid) as caught:
        ModelSpec.from_json(text)
    assert caught.value.code == code


def test_every_error_has_a_known_code():
    """An error cannot be made with a code that the table does not explain."""
    with pytest.raises(KeyError):
        BrainsegError("E_NEW", "x", "y")
    assert all(code.startswith("E_") and meaning for code, meaning in CODES.items())
