"""The recipes that ship, by name, and how one is loaded: by name, or from a file of one's own."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any, Final

from statestream_export.errors import RecipeError
from statestream_export.recipe import Card, Recipe

NAMES: Final = (
    "sunspots",
    "digits-cnn",
    "antonyms",
    "antonyms-attention",
    "cocktails",
    "linear",
    "sine-mlp",
    "sine-rnn-window",
    "sine",
    "sin2cos",
    "deepar",
    "deepar-sales",
    "global-rnn",
    "srn-linear",
    "srn",
    "rnn-cells",
    "rnn",
    "lstm",
    "gru",
    "hello-cell",
    "hello",
    "hello-embedding",
    "tagger",
    "sentiment",
    "rows",
    "rows-lstm",
    "rows-gru",
    "convnet",
    "lenet",
    "fashion",
    "credit",
    "income",
    "transfer",
    "resnet18",
    "alexnet",
    "googlenet",
    "inception-v3",
    "vgg16",
)
"""The recipes that ship, in the order of the list; each lives in a module of its name."""


def load(reference: str) -> Recipe[Any]:
    """Loads a recipe by its name, or from a Python file that has a module-level `recipe`.

    Raises:
        RecipeError: No such recipe or file, or the file has no recipe in it.
    """
    if reference.endswith(".py"):
        return _load_file(Path(reference))
    if reference not in NAMES:
        near = difflib.get_close_matches(reference, NAMES, n=1)
        raise RecipeError(
            f"there is no recipe {reference!r}{f' (did you mean {near[0]!r}?)' if near else ''}; there are"
            f" {', '.join(NAMES)}. A file of your own is named with its"
            " ending: ./my_recipe.py"
        )
    module = importlib.import_module(f"{__name__}.{reference.replace('-', '_')}")
    return _checked(reference, module)


def _load_file(path: Path) -> Recipe[Any]:
    if not path.is_file():
        raise RecipeError(f"there is no file {path}; give the path of a Python file with a module-level `recipe`")
    name = f"statestream_recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles of the file look their module up by name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise RecipeError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    return _checked(str(path), module)


def _checked(where: str, module: Any) -> Recipe[Any]:
    recipe = getattr(module, "recipe", None)
    if recipe is None:
        raise RecipeError(f"{where} has no `recipe`; end it with recipe = YourRecipe()")
    wanted = ("data", "module", "train", "metrics", "picture", "export")
    missing = [name for name in wanted if not callable(getattr(recipe, name, None))]
    if missing or not isinstance(getattr(recipe, "card", None), Card):
        what = ", ".join([*missing, *([] if isinstance(getattr(recipe, "card", None), Card) else ["card"])])
        raise RecipeError(f"the recipe of {where} lacks {what}; statestream_export.recipe shows what one is")
    found: Recipe[Any] = recipe
    return found
