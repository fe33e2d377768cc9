"""What names a file gives itself: told without running it, and never wrongly denied."""

from __future__ import annotations

import pytest

from tvgrad.recipes.module_names import defines_name, looks_like_training

DEFINES = {
    "function": "def recipe():\n    pass\n",
    "async function": "async def recipe():\n    pass\n",
    "class": "class recipe:\n    pass\n",
    "assigned": "recipe = lambda: 1\n",
    "unpacked": "a, recipe = 1, 2\n",
    "annotated": "recipe: object = 1\n",
    "in a branch": "if True:\n    def recipe():\n        pass\n",
    "in a try": "try:\n    from a import recipe\nexcept ImportError:\n    pass\n",
    "imported": "from a import b as recipe\n",
    "a module": "import recipe\n",
    "star": "from a import *\n",
    "global": "def make():\n    global recipe\n    recipe = 1\nmake()\n",
    "globals": "globals()['recipe'] = 1\n",
    "getattr": "def __getattr__(name):\n    return 1\n",
    "walrus": "print(recipe := 1)\n",
    "loop": "for recipe in [1]:\n    pass\n",
}
DEFINES_NOT = {
    "empty": "",
    "another": "def main():\n    pass\n",
    "local": "def main():\n    recipe = 1\n",
    "method": "class A:\n    def recipe(self):\n        pass\n",
    "used only": "print(recipe)\n",
    "training": "import torch\nmodel.eval()\nconfig = vars(arguments)\nloss.backward()\noptimizer.step()\n",
    "keyword": "train(recipe=1)\n",
}


@pytest.mark.parametrize("case", DEFINES)
def test_defines(case: str) -> None:
    assert defines_name(DEFINES[case], "recipe")


@pytest.mark.parametrize("case", DEFINES_NOT)
def test_defines_not(case: str) -> None:
    assert not defines_name(DEFINES_NOT[case], "recipe")


def test_no_python() -> None:
    with pytest.raises(SyntaxError):
        defines_name("def recipe(:", "recipe")


def test_training() -> None:
    assert looks_like_training(DEFINES_NOT["training"])
    assert looks_like_training("Trainer(model).train()\n")
    assert not looks_like_training("import torch\nstep(1)\nmodel = torch.nn.Linear(2, 1)\n")
