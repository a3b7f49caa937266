"""A run's configuration: complete, checked, and the same after a trip through its file."""

from dataclasses import replace

import pytest
from brainseg_runtime.errors import UsageRefused
from brainseg_trainer.config import RECIPES, Data, Network, TrainConfig, Training, from_toml, load, to_toml
from hypothesis import given
from hypothesis import strategies as st

counts = st.integers(1, 10**6)
rates = st.floats(1e-8, 1.0)
configs = st.builds(
    TrainConfig,
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]*", fullmatch=True),
    seed=st.integers(0, 2**40),
    network=st.builds(Network, st.sampled_from(["s2d", "unet3d"]), counts, st.integers(2, 7)),
    data=st.builds(
        Data,
        spacing=st.tuples(*[st.floats(0.1, 20)] * 3),
        tile=st.tuples(*[counts] * 3),
        validation=st.floats(0.01, 0.99),
        tumour=st.floats(0, 1),
    ),
    training=st.builds(
        Training,
        steps=st.integers(11, 10**6),
        batch=counts,
        learning_rate=rates,
        warmup=st.integers(0, 10),
        weight_decay=rates,
        validate_every=counts,
        checkpoint_seconds=rates,
    ),
)


@given(configs)
def test_a_configuration_survives_its_file(config):
    """Written as TOML and read again, a configuration is the same to the last bit."""
    assert from_toml(to_toml(config)) == config


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_whole(recipe):
    """Every recipe of the package is a valid configuration under its own name."""
    assert load(recipe).name == recipe


def test_a_file_says_only_what_differs(tmp_path):
    """What a file leaves out comes from the recipe glioma."""
    path = tmp_path / "mine.toml"
    path.write_text("[training]\nsteps = 1000\nlearning_rate = 1\n")
    glioma = load("glioma")
    expected = replace(glioma, training=replace(glioma.training, steps=1000, learning_rate=1.0))
    assert load(str(path)) == expected


def test_a_recipe_may_rest_on_another(tmp_path):
    """What a file leaves out comes from its base, and what that leaves out from the base's own."""
    path = tmp_path / "mine.toml"
    path.write_text("base = 'demo-nnunet'\nname = 'mine'\n[network]\nwidth = 4\n")
    found = load(str(path))
    assert (found.name, found.network.width, found.network.norm) == ("mine", 4, "instance")
    assert found.data == load("demo").data
    assert found.training.weight_decay == load("glioma").training.weight_decay


@pytest.mark.parametrize("kind", ["focal", "dice", "tversky"])
def test_losses_that_suit_both_activations_are_taken(tmp_path, kind):
    """Only cross-entropies are bound to an activation by their name."""
    path = tmp_path / "soft.toml"
    path.write_text(f"[task]\nactivation = 'softmax'\n[loss]\nkind = '{kind}'\n")
    assert load(str(path)).loss.kind == kind


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[training]\nstepz = 3", "training.stepz"),
        ("[network]\npreset = 'resnet'", "network.preset"),
        ("name = 'a/b'", "name"),
        ("[network]\nwidth = 1.5", "network.width"),
        ("[data]\ntile = [64, 64]", "data.tile"),
        ("[data]\nvalidation = 1.0", "data.validation"),
        ("[training]\nsteps = 10", "training.warmup"),
        ("[network]\nauxiliary = 4", "network.auxiliary"),
        ("[network]\nslices = 3", "network.slices"),
        ("[network]\npreset = 'isensee2017'\nauxiliary = 1", "isensee2017"),
        ("[task]\nmodalities = []", "task.modalities"),
        ("[task]\nactivation = 'softmax'", "dice_ce"),
        ("[loss]\nkind = 'weighted_dice'", "loss.weights"),
        ("[loss]\nkind = 'dice_ce'", "dice_ce"),
        ("[data]\nfold = 6", "data.fold"),
        ("[training]\nema = 1.0", "training.ema"),
        ("[training]\nema = 0.999\nsteps = 3000", "training.ema remembers"),
        ('[task]\noptional = ["t1c"]', "task.optional"),
        ('[task]\noptional = ["pet"]', "task.optional"),
        ("base = 'other'", "base"),
        ("network = 3", "network"),
        ("steps = ", "TOML"),
    ],
)
def test_mistakes_are_named(tmp_path, text, named):
    """A file with an unknown, ill-typed or impossible value is refused by that value's name."""
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(UsageRefused, match=named) as refusal:
        load(str(path))
    assert refusal.value.code == "E_USAGE"


def test_a_missing_file_is_refused():
    """A name that is neither a file nor a recipe is refused, and the recipes are listed."""
    with pytest.raises(UsageRefused, match=", ".join(RECIPES)):
        load("nowhere.toml")
