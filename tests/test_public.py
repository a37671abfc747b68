"""The names that ``import atdm`` gives."""

from __future__ import annotations

import pkgutil
from types import ModuleType

import atdm


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
