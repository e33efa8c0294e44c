import doctest
import importlib
import pkgutil

import pytest

import ppse
import ppse.guides
import ppse.infer
import ppse.models
import ppse.testing


def _modules() -> list[str]:
    names = ["ppse"]
    for package in (ppse, ppse.infer, ppse.models, ppse.guides, ppse.testing):
        names += [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
    return sorted(name for name in names if not name.endswith(".__main__"))


@pytest.mark.parametrize("name", _modules())
def test_doctests(name: str) -> None:
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def test_there_are_doctests() -> None:
    finder = doctest.DocTestFinder()
    examples = sum(len(test.examples) for name in _modules() for test in finder.find(importlib.import_module(name)))
    assert examples >= 20
