"""The names that ``import atdm`` gives."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

import atdm
from atdm import Model, Objective, Process, Settings
from atdm.training.config import ObjectiveConfig, TrainConfig


def test_every_public_name_is_there_and_stays_itself():
    for name in atdm.__all__:
        assert not isinstance(getattr(atdm, name), ModuleType)
    # Importing a submodule binds its name in the package, over a function of that name.
    assert not {module.name for module in pkgutil.iter_modules(atdm.__path__)} & {*atdm.__all__}


def test_every_public_name_has_a_docstring_of_its_own():
    for name in atdm.__all__:
        value = getattr(atdm, name)
        if callable(value):
            assert value.__doc__, name
            assert not value.__doc__.startswith(f"{name}("), name  # what dataclasses write where there is none


def test_tab_completion_offers_what_is_public_and_nothing_that_is_merely_imported():
    assert {name for name in dir(atdm) if not name.startswith("_")} == {*atdm.__all__}


def test_what_is_printed_is_short_and_says_what_is_special():
    process = Process.cosine(prediction="v_prediction")
    assert repr(process) == (
        "Process(squaredcos_cap_v2, 1000 timesteps, noise levels 0.00643 to 2.03e+04, predicts v_prediction)"
    )
    gated = Objective("robust_adv", process, gate=0.3)
    assert repr(gated) == f"Objective(name='robust_adv', process={process}, gate=0.3)"
    assert repr(ObjectiveConfig("auto:k=3")) == "ObjectiveConfig(name='auto:k=3')"
    assert repr(Settings(steps=7)) == "Settings(steps=7)"
    assert repr(TrainConfig(data="photos", image_size=32)) == "TrainConfig(data='photos', image_size=32)"
    net = atdm.build_net("mlp:width=8", (3,))
    assert repr(Model(net, process)) == f"Model(MLP of 375 parameters, {process})"
    assert eval(repr(TrainConfig(objective=ObjectiveConfig("ddpm")))) == TrainConfig(objective=ObjectiveConfig("ddpm"))


def test_the_package_says_that_it_is_typed_and_names_to_type_checkers_all_that_it_gives():
    assert (Path(atdm.__file__).with_name("py.typed")).is_file()
    text = Path(atdm.__file__).read_text()
    for name, module in atdm._WHERE.items():
        assert f"    {name}: Any" in text or f"    from .{module} import" in text, module
        assert f"    {name}: Any" in text or f"{name} as {name}" in text, name


@pytest.mark.slow
def test_a_type_checker_understands_the_program_of_a_user(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import torch
            from atdm import Model, Objective, Process, Settings, State, build_net, fit

            images = torch.randn(64, 1, 8, 8)
            process = Process.linear()
            objective = Objective.auto(images, process, k=3.0)
            settings = Settings(steps=3, batch_size=8)
            net = build_net("mlp", (1, 8, 8))
            for step in fit(objective, State.create(net, settings), images, settings):
                loss: float = step.summary()["loss"]
            samples: torch.Tensor = Model(net, process, shape=(1, 8, 8)).sample(4, steps=10)
            reveal_type(objective)
            """
        )
    )
    options = [
        "--strict",
        "--ignore-missing-imports",
        "--follow-imports=silent",
        "--cache-dir",
        str(tmp_path / "cache"),
    ]
    said = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "program.py"], cwd=tmp_path, capture_output=True, text=True
    ).stdout
    assert 'Revealed type is "atdm.objective.terms.Loss"' in said  # Objective.auto may choose another loss
    assert "Success" in said, said
    program.write_text(program.read_text() + "\nObjective(3, process)\nfrom atdm import Objektive\n")
    said = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "program.py"], cwd=tmp_path, capture_output=True, text=True
    ).stdout
    assert 'incompatible type "int"; expected "str"' in said
    assert "Objektive" in said
