"""The configurations that come with the package."""

from __future__ import annotations

from pathlib import Path

from ..errors import unknown
from .config import ObjectiveConfig, TrainConfig
from .versions import require_version


def recipe_file(name: str) -> Path:
    """The file of a recipe that comes with the package, such as ``cifar10-cpu``.

    Raises:
        UserError: there is none of that name.
    """
    package = Path(__file__).parents[1]
    inside, beside = package / "recipes", package.parents[1] / "recipes"  # installed, or a checkout
    folder = inside if inside.is_dir() else beside
    file = folder / f"{name}.yaml"
    if not file.is_file():
        raise unknown("recipe", name, [found.stem for found in folder.glob("*.yaml")])
    return file


def recipe(name: str) -> TrainConfig:
    """The configuration of a recipe that comes with the package."""
    import yaml

    values = yaml.safe_load(recipe_file(name).read_text())
    require_version(values, f"The recipe {name}")
    return TrainConfig(**{**values, "objective": ObjectiveConfig(**values.get("objective", {}))})
