"""Language models on texts: a tiny random Llama with a tokenizer of words, and SmolLM2 where it is installed."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch
from torch.nn import functional

pytest.importorskip("transformers", reason="transformers is not installed (extra hf)")
pytest.importorskip("peft", reason="peft is not installed")

from peft import PeftModel  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from tokenizers.models import WordLevel  # noqa: E402
from tokenizers.pre_tokenizers import Whitespace  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tvgrad.errors import TvgradError, UnsupportedModel  # noqa: E402
from tvgrad.merging import METHODS, merge_checkpoints  # noqa: E402
from tvgrad.problem.recipe import Recipe, accuracy, check_recipes  # noqa: E402
from tvgrad.recipes import language_models  # noqa: E402
from tvgrad.recipes.catalogue import BUILT_IN  # noqa: E402
from tvgrad.recipes.language_models import IGNORED, Lora, blocks, language_recipes  # noqa: E402
from tvgrad.recipes.minilm import sentence_recipes  # noqa: E402
from tvgrad.recipes.texts import TEXTS, read_text  # noqa: E402
from tvgrad.record.options import TraceOptions  # noqa: E402
from tvgrad.record.training_loop import prepare, trace  # noqa: E402
from tvgrad.store.export import export_checkpoint  # noqa: E402
from tvgrad.theory.equivalence import check_one_epoch  # noqa: E402

WORDS = 12
CONTEXT = 8


def words(count, seed):
    drawn = torch.randint(1, WORDS, (count,), generator=torch.Generator().manual_seed(seed))
    return " ".join(f"w{number}" for number in drawn.tolist())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama of two layers and a tokenizer of twelve words, as save_pretrained writes them."""
    place = tmp_path_factory.mktemp("llama")
    tokenizer = Tokenizer(WordLevel({f"w{number}": number for number in range(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(place)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def texts():
    return {"first": words(70, seed=1), "second": words(99, seed=2)}


def test_every_token_is_predicted_once():
    inputs, targets = blocks(torch.arange(10, 21), context=4)
    assert inputs.tolist() == [[10, 11, 12, 13], [14, 15, 16, 17], [18, 19, 0, 0]]
    assert targets.tolist() == [[11, 12, 13, 14], [15, 16, 17, 18], [19, 20, IGNORED, IGNORED]]


def test_the_loss_is_the_models_own_mean_over_tokens(folder, texts):
    """The mean over all training tokens, block by block from the library's own loss, weighted by what it counts."""
    (recipe, _) = language_recipes(folder, texts, context=CONTEXT)
    model = AutoModelForCausalLM.from_pretrained(folder).eval().double()
    total, count = 0.0, 0
    inputs, targets = recipe.train.batch(0, len(recipe.train))
    for row, wanted in zip(inputs, targets, strict=True):
        length = int((wanted != IGNORED).sum())
        tokens = torch.cat([row[:1], wanted[:length]])[None]
        with torch.no_grad():
            total += length * float(model(input_ids=tokens, labels=tokens).loss)
        count += length
    # The library takes its norms and its loss in float32, whatever the weights are.
    assert recipe.objective(torch.float64).value() == pytest.approx(total / count, rel=1e-6)
    assert int((targets == IGNORED).sum()) > 0  # the last block is a short one, so that counting tokens matters


def test_tasks_share_the_model_and_a_wrong_count_is_refused(folder, texts):
    recipes = language_recipes(folder, texts, context=CONTEXT)
    check_recipes(recipes, "texts")
    assert [recipe.name for recipe in recipes] == ["first", "second"]
    assert [(len(recipe.train), len(recipe.test)) for recipe in recipes] == [(8, 1), (11, 2)]
    one = recipes[0]
    with pytest.raises(UnsupportedModel, match="count"):
        Recipe(one.model, one.loss, one.train, forward=one.forward, name="samples")


def test_a_wide_models_wrong_count_is_found_by_its_last_parameters(folder, texts, monkeypatch):
    one = language_recipes(folder, texts, context=CONTEXT)[0]
    monkeypatch.setattr("tvgrad.problem.count.WIDEST", 0)
    monkeypatch.setattr("tvgrad.problem.count.LEAST_COMPARED", 1)
    Recipe(one.model, one.loss, one.train, forward=one.forward, count=one.count, name="tokens")
    with pytest.raises(UnsupportedModel, match="count"):
        Recipe(one.model, one.loss, one.train, forward=one.forward, name="samples")


def test_hessian_products_are_differences_of_gradients(folder, texts):
    objective = language_recipes(folder, texts, context=CONTEXT)[0].objective(torch.float64)
    vector = objective.gradient()
    step = 1e-3  # a third derivative leaves the square of the step, roundings of float32 norms 1e-7 / step
    ends = [
        objective.gradient({name: w + sign * step * vector[name] for name, w in objective.initial.items()})
        for sign in (1, -1)
    ]
    product = objective.hvp(vector)
    for name, part in product.items():
        truth = (ends[0][name] - ends[1][name]) / (2 * step)
        assert float((part - truth).norm()) <= 1e-3 * float(part.norm())


def test_an_adapter_begins_at_the_model_and_alone_is_tuned(folder, texts):
    whole = language_recipes(folder, texts, context=CONTEXT)[0]
    (lora, other) = language_recipes(folder, texts, context=CONTEXT, lora=Lora(rank=2, alpha=4))
    trained = [name for name, parameter in lora.model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 8  # two factors of the queries and of the values, in two layers
    assert all("lora_" in name for name in trained)
    check_recipes([lora, other], "adapters")  # the random factors are the same
    assert lora.objective(torch.float64).value() == pytest.approx(whole.objective(torch.float64).value(), rel=1e-6)
    assert (whole.lr, lora.lr) == (2e-5, 2e-4)


def test_accuracy_leaves_out_what_does_not_count():
    logits = torch.zeros(1, 3, 4)
    logits[0, 2, :2] = 1.0
    assert float(language_models.token_accuracy(logits, torch.tensor([[2, 1, IGNORED, IGNORED]]))) == 0.5
    loss = functional.cross_entropy(logits, torch.tensor([[2, 1, IGNORED, IGNORED]]), ignore_index=IGNORED)
    assert torch.isfinite(loss)


@pytest.mark.parametrize("name", TEXTS)
def test_texts_ship_with_python_and_say_their_licence(name):
    text = read_text(name)
    assert len(text) > 10_000
    assert any(licence in TEXTS[name].about for licence in ("PSF-2.0", "Apache-2.0"))


def test_what_is_missing_is_said_in_one_sentence(folder, texts, tmp_path):
    cases = [
        (lambda: language_recipes(tmp_path / "none", texts), "cannot be loaded as a causal language model"),
        (lambda: language_recipes(folder, texts, context=40), "has 70 tokens, which is less than 5 blocks of 40"),
        (lambda: language_recipes(folder, texts, lora=Lora(targets=("no_such",))), "name other modules in targets"),
        (lambda: read_text("novel"), "no text called 'novel': choose from statements, objects, licence"),
    ]
    for attempt, said in cases:
        with pytest.raises(TvgradError, match=said) as caught:
            attempt()
        assert "\n" not in str(caught.value)


def missing_smollm2():
    from tvgrad.recipes.smollm2 import PACKAGE

    for package in (PACKAGE, "gguf"):
        try:
            importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            return package
    return None


@pytest.mark.slow
@pytest.mark.skipif(missing_smollm2() is not None, reason=f"{missing_smollm2()} carries SmolLM2 or reads it")
def test_smollm2_speaks_and_opens_like_any_folder():
    """Dequantised, written and read again, it continues a sentence as a language model does, and is not quantised."""
    from tvgrad.recipes.smollm2 import smollm2_folder

    model, tokenizer = language_models.load_language_model(smollm2_folder())
    asked = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**asked, max_new_tokens=2, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
    assert not hasattr(model.config, "quantization_config")
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters" in BUILT_IN["smollm2"].size


@pytest.fixture(scope="module")
def adapters(folder, texts, tmp_path_factory):
    """Runs of one full-batch step of LoRA on each text, and the adapters that they are exported as."""
    root = tmp_path_factory.mktemp("adapters")
    recipes = language_recipes(folder, texts, context=CONTEXT, lora=Lora(rank=2, alpha=6))
    found = []
    for recipe in recipes:
        run = trace(prepare(recipe, TraceOptions(optimizer="gd", lr=0.5, epochs=1)), root / recipe.name)
        export_checkpoint(run, 1, root / f"adapter-{recipe.name}", str(folder))
        found.append((recipe, run, root / f"adapter-{recipe.name}"))
    return found


def test_a_step_of_lora_is_exact_in_the_factors_and_projected_in_weight_space(folder, texts, adapters):
    """From B = 0 one step gives `dW = -eta s^2 G A'A`, G the gradient of the whole model's weight, and not `-eta G`."""
    whole = language_recipes(folder, texts, context=CONTEXT)[0].objective(torch.float64).gradient()
    _, run, _ = adapters[0]
    assert check_one_epoch(run).holds == "exact"
    scale, lr = 6 / 2, 0.5
    start, after = run.weights(0), run.weights(1)
    modules = [name.removesuffix(".lora_A.default.weight") for name in start if "lora_A" in name]
    assert len(modules) == 4
    for module in modules:
        first, second = (f"{module}.lora_{letter}.default.weight" for letter in "AB")
        assert not start[second].any()
        change = scale * after[second].double() @ after[first].double()
        gradient = whole[f"{module.removeprefix('base_model.model.')}.weight"]
        rows = start[first].double()
        truth = -lr * scale**2 * gradient @ rows.T @ rows
        assert float((change - truth).norm()) <= 1e-5 * float(truth.norm())  # float32 training against float64
        assert float((change + lr * gradient).norm()) > 0.1 * float(change.norm())


def test_two_merged_adapters_open_as_peft_merges_them(folder, adapters, tmp_path):
    """`theta_0 + dW_1 + dW_2`, opened by transformers, against peft's merge of one adapter after the other."""
    folders = [adapter for _, _, adapter in adapters]
    merge_checkpoints(METHODS["task_arithmetic"](), folder, folders, alpha=1.0, out=tmp_path / "merged")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    expected = AutoModelForCausalLM.from_pretrained(folder)
    for one in folders:
        expected = PeftModel.from_pretrained(expected, one).merge_and_unload()
    truth = dict(expected.named_parameters())
    start = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    for name, tensor in opened.named_parameters():
        torch.testing.assert_close(tensor, truth[name], rtol=2e-7, atol=1e-8)  # peft rounds twice
        assert torch.equal(tensor, start[name]) != ("q_proj" in name or "v_proj" in name)
    tokens = torch.arange(1, 9)[None]
    torch.testing.assert_close(opened(input_ids=tokens).logits, expected(input_ids=tokens).logits, rtol=1e-5, atol=1e-6)


def test_sentences_are_told_apart_by_a_tiny_encoder(tmp_path):
    """Features are means over true tokens, the head prefers the nearest mean, and one step is exact."""
    vocabulary = {f"w{number}": number for number in range(WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w1"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w1", pad_token="w0").save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    BertModel(config).save_pretrained(tmp_path)
    low = " ".join(f"w{2 + place % 4}" for place in range(60))
    high = " ".join(f"w{7 + place % 5}" for place in range(75))
    (recipe,) = sentence_recipes(tmp_path, {"side": {"low": low, "high": high}}, passage=5)
    assert (len(recipe.train), len(recipe.test)) == (16, 5)
    inputs, labels = recipe.test.batch(0, 5)
    assert float(accuracy(recipe.model(inputs), labels)) == 1.0
    filled = torch.cat([inputs, torch.zeros(5, 3, dtype=torch.long)], dim=1)
    torch.testing.assert_close(recipe.model(filled), recipe.model(inputs), rtol=1e-5, atol=1e-6)
    trained = {name for name, parameter in recipe.model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in recipe.model.named_parameters() if name.startswith("encoder.")}
    run = trace(prepare(recipe, TraceOptions(optimizer="gd", lr=0.1, epochs=1)), tmp_path / "run")
    assert check_one_epoch(run).holds == "exact"
    with pytest.raises(TvgradError, match="has 60 words, which is less than five passages of 40"):
        sentence_recipes(tmp_path, {"side": {"low": low, "high": high}}, passage=40)
