from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tvgrad.errors import TvgradError
from tvgrad.files.tensors import TensorFile
from tvgrad.files.writing import write_tensors
from tvgrad.streaming.blocks import blocks_of
from tvgrad.streaming.gram import GramResult, gram_of
from tvgrad.streaming.rows import LONGEST_BLOCK, SMALL_GROUP, TILE, Vector, spans_of

SHAPES = {"a.weight": (130, 300), "a.bias": (300,), "b.weight": (211, 157), "b.scale": (), "b.empty": (0, 4)}
GROUPS = {name: name.split(".")[0] for name in SHAPES}


def flat(file, names=None):
    """The file's tensors as one float64 vector: the oracle loads everything and knows nothing of blocks."""
    names = list(file.places) if names is None else names
    return np.concatenate([file.read(name).double().numpy().ravel() for name in names])


def values(vector, names=None):
    return flat(vector.file, names) - (0 if vector.minus is None else flat(vector.minus, names))


def residual(v, g):
    # Twice, as Gram-Schmidt is: the first coefficient's rounding error must not count.
    for _ in range(2):
        if g @ g:
            v = v - (v @ g) / (g @ g) * g
    return np.linalg.norm(v)


def check(result: GramResult, vectors, groups, tolerance, residual_tolerance=(1e-6, 1e-9)):
    """Compare with the oracle, over each group and the whole model; tolerances are relative to norms."""
    every = list(vectors[0].file.places)
    parts = {group: [name for name in every if groups[name] == group] for group in dict.fromkeys(groups.values())}
    for group, names in {**parts, "all": every}.items():
        rows = [values(vector, names) for vector in vectors]
        norms = [np.linalg.norm(row) for row in rows]
        for i, j in product(range(len(rows)), repeat=2):
            assert abs(result.gram(group)[i, j] - rows[i] @ rows[j]) <= 2 * tolerance * norms[i] * norms[j]
            if norms[i] and norms[j]:
                expected = rows[i] @ rows[j] / (norms[i] * norms[j])
                assert result.cosine(i, j, group) == pytest.approx(expected, abs=tolerance)
            else:
                assert math.isnan(result.cosine(i, j, group))
            assert result.norm(i, group) == pytest.approx(norms[i], rel=tolerance)
        for (i, j), found in result.residuals.items():
            relative, absolute = residual_tolerance
            assert found[group] == pytest.approx(residual(rows[i], rows[j]), rel=relative, abs=absolute * norms[i])
        for (i, j), found in result.sign_agreement.items():
            both = (rows[i] != 0) & (rows[j] != 0)
            share = np.mean(np.sign(rows[i][both]) == np.sign(rows[j][both])) if both.any() else math.nan
            assert found[group] == pytest.approx(share, nan_ok=True)


@pytest.fixture
def write(tmp_path):
    def write(name, tensors, **options):
        return TensorFile(write_tensors(tensors, tmp_path / f"{name}.safetensors", **options))

    return write


def random_tensors(seed, dtype=torch.float32, scale=1.0, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)
        for name, shape in shapes.items()
    }


def run_like(write, dtypes, shapes=SHAPES):
    """Vectors as a report has them: gradients, task vectors, displacements."""
    weights = [write(f"w{e}", random_tensors(e, dtypes[e % len(dtypes)], shapes=shapes)) for e in range(3)]
    gradients = [write(f"g{e}", random_tensors(10 + e, dtypes[-1 - e % len(dtypes)], shapes=shapes)) for e in range(2)]
    return [
        Vector("g0", gradients[0]),
        Vector("g1", gradients[1]),
        Vector("tau1", weights[1], weights[0]),
        Vector("tau2", weights[2], weights[0]),
        Vector("d1", weights[1], weights[0]),
        Vector("d2", weights[2], weights[1]),
    ]


PAIRS = [(2, 0), (3, 0), (1, 0), (3, 2), (5, 1)]


@pytest.mark.parametrize(
    ("dtypes", "tolerance"),
    [
        ([torch.float32], 1e-7),
        ([torch.bfloat16], 1e-7),
        ([torch.float16, torch.float32], 1e-7),
        ([torch.float64], 1e-12),
        ([torch.float32, torch.float64, torch.bfloat16], 1e-12),
    ],
)
def test_agrees_with_the_oracle(write, dtypes, tolerance):
    vectors = run_like(write, dtypes)
    result = gram_of(vectors, GROUPS, projections=PAIRS, signs=[(2, 3), (0, 1)])
    check(result, vectors, GROUPS, tolerance)
    assert result.labels == ("g0", "g1", "tau1", "tau2", "d1", "d2")
    np.testing.assert_allclose(sum(result.groups.values()), result.matrix, rtol=1e-13)
    assert (result.matrix == result.matrix.T).all()
    assert result.cosine("tau1", "d1") == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_groups_go_through_blocks(write, dtype):
    shapes = {"a.weight": (2 * SMALL_GROUP + 7,), "a.bias": (3,), "b.weight": (LONGEST_BLOCK + 1,), "b.bias": (TILE,)}
    groups = {name: name[0] for name in shapes}
    vectors = run_like(write, [dtype], shapes)
    result = gram_of(vectors, groups, projections=PAIRS, signs=[(2, 3)])
    check(result, vectors, groups, 1e-7 if dtype == torch.float32 else 1e-12)


def test_many_vectors_shorten_the_blocks(write):
    shapes = {"a": (SMALL_GROUP + 5,)}
    files = [write(f"v{n}", random_tensors(n, shapes=shapes)) for n in range(30)]
    vectors = [Vector(f"v{n}", file) for n, file in enumerate(files)]
    vectors += [Vector(f"d{n}", file, files[n // 3]) for n, file in enumerate(files) if n > 3]
    result = gram_of(vectors, {"a": "a"}, projections=[(n, 0) for n in range(20)])
    check(result, vectors, {"a": "a"}, 1e-7)


@pytest.mark.parametrize("size", [SMALL_GROUP // 2, 3 * SMALL_GROUP])
@pytest.mark.parametrize("noise", [1e-3, 1e-7])
def test_small_residuals(write, size, noise):
    """A task vector that is -eta g_0 and next to nothing else, between weights of its own size and larger."""
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(size, generator=generator)
    start = torch.randn(size, generator=generator) * torch.logspace(-3, 1, size)
    end = (start.double() - 0.1 * g.double() * (1 + noise * torch.randn(size, generator=generator))).float()
    # Weights on a coarse grid would drown the noise in their own rounding: gradients carry it exactly.
    exact = (-0.1 * g.double() * (1 + noise * torch.randn(size, generator=generator))).float()
    w0, w1 = write("w0", {"x": start}), write("w1", {"x": end})
    vectors = [Vector("g", write("g", {"x": g})), Vector("tau", w1, w0), Vector("v", write("v", {"x": exact}))]
    result = gram_of(vectors, {"x": "x"}, projections=[(1, 0), (2, 0)])
    check(result, vectors, {"x": "x"}, 1e-7)
    truth = residual(values(vectors[2]), values(vectors[0])) / result.norm("v")
    assert truth < 1.2 * noise
    if noise < 1e-6:  # what a Gram matrix in float32 precision would have said
        products = torch.stack([g, exact]) @ torch.stack([g, exact]).T
        cosine = float(products[0, 1] / (products[0, 0] * products[1, 1]).sqrt())
        assert abs(math.sqrt(max(0.0, 1 - cosine**2)) - truth) > 0.1 * truth


def test_residual_of_float64_vectors_near_rounding(write):
    generator = torch.Generator().manual_seed(1)
    g = torch.randn(100_000, generator=generator, dtype=torch.float64)
    v = -0.3 * g * (1 + 1e-9 * torch.randn(100_000, generator=generator, dtype=torch.float64))
    vectors = [Vector("g", write("g", {"x": g})), Vector("v", write("v", {"x": v}))]
    found = gram_of(vectors, {"x": "x"}, projections=[(1, 0)]).residuals[1, 0]["all"]
    assert found == pytest.approx(residual(values(vectors[1]), values(vectors[0])), rel=1e-6)


def test_residual_of_the_whole_model_uses_its_own_coefficient(write):
    """Each group is parallel to g, with another factor: no residual in the groups, a large one in the model."""
    g = write("g", {"a": torch.ones(4), "b": torch.ones(4)})
    v = write("v", {"a": torch.full((4,), 3.0), "b": torch.full((4,), 1.0)})
    vectors = [Vector("g", g), Vector("v", v)]
    found = gram_of(vectors, {"a": "a", "b": "b"}, projections=[(1, 0)]).residuals[1, 0]
    assert found == {"a": 0.0, "b": 0.0, "all": pytest.approx(math.sqrt(8))}


def test_long_vectors_where_one_float32_sum_is_wrong(write):
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(5_000_000, generator=generator) + 0.5
    y = x + 0.1 * torch.rand(5_000_000, generator=generator)
    vectors = [Vector("x", write("x", {"x": x})), Vector("y", write("y", {"x": y}))]
    result = gram_of(vectors, {"x": "x"})
    check(result, vectors, {"x": "x"}, 1e-7)
    truth = float(np.linalg.norm(values(vectors[0])))
    naive = float(np.cumsum(np.square(x.numpy()), dtype=np.float32)[-1]) ** 0.5
    assert abs(naive / truth - 1) > 1e-6 > 10 * abs(result.norm("x") / truth - 1)


@pytest.mark.parametrize("compared", [1, 6, 7, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_signs_of_few_and_of_many_pairs(write, compared, dtype):
    """Counted pair by pair, or multiplied: zeros of both signs, whole tiles of them, and an end inside a tile."""
    numbers = [torch.randint(-1, 2, (3 * TILE + 5,), generator=torch.Generator().manual_seed(k)) for k in range(4)]
    numbers[3][: 2 * TILE] = 0
    files = [
        write(f"f{k}", {"x": torch.copysign(one, torch.randn(len(one))).to(dtype)}) for k, one in enumerate(numbers)
    ]
    vectors = [Vector(f"v{k}", file, files[1] if k == 2 else None) for k, file in enumerate(files)]
    signs = list(product(range(4), repeat=2))[:compared]
    result = gram_of(vectors, {"x": "x"}, signs=signs)
    assert set(result.sign_agreement) == set(signs)
    check(result, vectors, {"x": "x"}, 1e-7)
    for (i, j), found in result.sign_agreement.items():
        rows = [values(vectors[k]) for k in (i, j)]
        both = (rows[0] != 0) & (rows[1] != 0)
        assert found["all"] == ((rows[0] > 0) == (rows[1] > 0))[both].sum() / both.sum()


@pytest.mark.parametrize("size", [1, 2, 1000, SMALL_GROUP + 1])
def test_zero_vectors(write, size):
    x, zero = torch.arange(1.0, size + 1), torch.zeros(size)
    vectors = [Vector("x", write("x", {"x": x})), Vector("zero", write("zero", {"x": zero}))]
    vectors.append(Vector("still", vectors[0].file, vectors[0].file))
    result = gram_of(vectors, {"x": "x"}, projections=[(0, 1), (1, 0), (1, 2)], signs=[(0, 1), (0, 0)])
    check(result, vectors, {"x": "x"}, 1e-7)
    assert result.residuals[0, 1]["all"] == pytest.approx(result.norm("x"), rel=1e-7)
    assert not result.norm("still")
    assert math.isnan(result.sign_agreement[0, 1]["all"])
    assert result.sign_agreement[0, 0] == {"x": 1.0, "all": 1.0}


def test_a_group_of_empty_tensors(write):
    file = write("x", {"x": torch.ones(3), "nothing": torch.ones(0)})
    result = gram_of([Vector("x", file)], {"x": "x", "nothing": "none"}, projections=[(0, 0)])
    assert not result.norm("x", "none")
    assert result.residuals[0, 0] == {"x": 0.0, "none": 0.0, "all": 0.0}


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e15, 1e25])
@pytest.mark.parametrize("size", [100, SMALL_GROUP + 100])
def test_squares_beyond_the_range_of_float32(write, scale, size):
    vectors = run_like(write, [torch.float32], {"x": (size,)})
    files = {}
    for vector in vectors:
        for file in (vector.file, vector.minus):
            if file is not None and file not in files:
                tensors = {name: tensor * scale for name, tensor in file.read_all().items()}
                files[file] = write(f"{file.path.stem}-scaled", tensors)
    scaled = [Vector(v.key, files[v.file], v.minus and files[v.minus]) for v in vectors]
    check(gram_of(scaled, {"x": "x"}, projections=PAIRS, signs=[(2, 3)]), scaled, {"x": "x"}, 1e-7)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(
        st.sampled_from([0, 1, 7, TILE - 1, TILE, TILE + 1, LONGEST_BLOCK - 1, LONGEST_BLOCK, LONGEST_BLOCK + 1]),
        min_size=1,
        max_size=5,
    ),
    wide=st.booleans(),
)
def test_block_boundaries(tmp_path_factory, sizes, wide):
    folder = tmp_path_factory.mktemp("blocks")
    shapes = {f"{'ab'[n % 2]}.{n}": (size,) for n, size in enumerate(sizes)}
    groups = {name: name[0] for name in shapes}
    dtype = torch.float64 if wide else torch.float32

    def write(name, tensors):
        return TensorFile(write_tensors(tensors, folder / f"{name}.safetensors"))

    vectors = run_like(write, [dtype], shapes)
    result = gram_of(vectors, groups, projections=PAIRS[:3], signs=[(2, 3)])
    check(result, vectors, groups, 1e-12 if wide else 1e-7)


def test_blocks_cover_every_element_once():
    sizes = {"a.1": 10, "b.1": 0, "a.2": 3, "b.2": 25, "a.3": 1}
    blocks = blocks_of(sizes, {name: name[0] for name in sizes}, 8)
    assert all(block.length <= 8 for block in blocks)
    assert len(blocks) == 2 + 4  # small tensors share a block: 14 and 25 elements
    for name, size in sizes.items():
        found = [k for b in blocks for s in b.segments if s.name == name for k in range(s.start, s.start + s.length)]
        assert found == list(range(size))
    assert all(segment.name[0] == block.group for block in blocks for segment in block.segments)


def test_spans_form_what_was_asked():
    sources = [(0, None), (1, None), (3, None), (6, 5), (7, 5), (8, 5), (7, 6), (8, 7), (9, 2), (9, 2)]
    spans = spans_of(sources)
    formed = [
        (span.file + k, None if span.minus is None else span.minus + k * span.step)
        for span in spans
        for k in range(span.length)
    ]
    assert formed == sources
    assert [span.length for span in spans] == [2, 1, 3, 2, 1, 1]


def test_each_file_is_read_once(write, monkeypatch):
    vectors = run_like(write, [torch.float32])
    vectors.append(Vector("again", TensorFile(vectors[0].file.path)))
    read = []
    original = TensorFile.read_into

    def counting(self, name, start, out):
        read.append(out.nbytes)
        return original(self, name, start, out)

    monkeypatch.setattr(TensorFile, "read_into", counting)
    result = gram_of(vectors, GROUPS)
    assert sum(read) == 5 * sum(place.nbytes for place in vectors[0].file.places.values())
    assert result.cosine("g0", "again") == pytest.approx(1.0, abs=1e-15)


def test_shards(write):
    whole = run_like(write, [torch.float32])
    expected = gram_of(whole, GROUPS, projections=PAIRS)
    shards = {}
    for vector in whole:
        for file in (vector.file, vector.minus):
            if file is not None and file not in shards:
                name = f"{file.path.stem}-sharded"
                shards[file] = write(name, file.read_all(), max_shard_bytes=80_000 + 1000 * len(shards))
                assert shards[file].path.name.endswith(".index.json")
    sharded = [Vector(v.key, shards[v.file], v.minus and shards[v.minus]) for v in whole]
    found = gram_of(sharded, GROUPS, projections=PAIRS)
    np.testing.assert_allclose(found.matrix, expected.matrix, rtol=1e-12)
    check(found, sharded, GROUPS, 1e-7)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_are_the_same_to_the_last_bit(write, workers):
    shapes = {"a.weight": (3 * SMALL_GROUP + 7,), "b.weight": (LONGEST_BLOCK + 1,)}
    groups = {name: name[0] for name in shapes}
    vectors = run_like(write, [torch.float32], shapes)
    threads = torch.get_num_threads()
    one = gram_of(vectors, groups, projections=PAIRS, signs=[(0, 1)])
    two = gram_of(vectors, groups, projections=PAIRS, signs=[(0, 1)], workers=workers)
    assert (one.matrix == two.matrix).all()
    assert one.residuals == two.residuals
    assert one.sign_agreement == two.sign_agreement
    assert torch.get_num_threads() == threads


def test_names_choose_what_counts(write):
    file = write("x", {"x": torch.ones(3), "steps": torch.tensor(7)})
    other = write("y", {"x": torch.ones(3), "mask": torch.ones(2)})
    assert gram_of([Vector("x", file), Vector("y", other)], {"x": "x"}, names=["x"]).matrix.tolist() == [[3, 3], [3, 3]]


def test_progress(write):
    seen = []
    vectors = run_like(write, [torch.float32])
    gram_of(vectors, GROUPS, progress=lambda done, total: seen.append((done, total)))
    total = 5 * sum(place.nbytes for place in vectors[0].file.places.values())
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_an_error_of_the_caller_stops_the_pass(write):
    def stop(done, total):
        raise KeyboardInterrupt

    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        gram_of(run_like(write, [torch.float32]), GROUPS, progress=stop)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [5, 2 * SMALL_GROUP])
def test_values_that_are_not_finite_are_named(write, value, dtype, size):
    tensors = {"x": torch.ones(3, dtype=dtype), "bad": torch.ones(size, dtype=dtype)}
    good = write("good", tensors)
    tensors["bad"][-2] = value
    bad = write("broken", tensors)
    groups = {"x": "x", "bad": "x"}
    for vectors in ([Vector("v", bad)], [Vector("v", good, bad)], [Vector("v", bad, bad)]):
        with pytest.raises(TvgradError, match=r"broken\.safetensors: tensor 'bad' holds"):
            gram_of(vectors, groups)


def test_products_beyond_float64_are_refused(write):
    file = write("x", {"x": torch.full((3,), 1e200, dtype=torch.float64)})
    with pytest.raises(TvgradError, match="too large"):
        gram_of([Vector("x", file)], {"x": "g"})


def test_what_does_not_fit_is_refused(write):
    x = write("x", {"x": torch.ones(3)})
    cases = [
        ([x, write("y", {"y": torch.ones(3)})], {"x": "g", "y": "g"}, {}, "has a tensor 'y'"),
        ([write("both", {"x": torch.ones(3), "y": torch.ones(1)}), x], {"x": "g", "y": "g"}, {}, "has no tensor 'y'"),
        ([x, write("long", {"x": torch.ones(4)})], {"x": "g"}, {}, "has shape"),
        ([write("ints", {"x": torch.ones(3, dtype=torch.int64)})], {"x": "g"}, {}, "int64"),
        ([x], {}, {}, "belongs to no group"),
        ([x], {"x": "all"}, {}, "stands for the whole model"),
        ([x], {"x": "g"}, {"projections": [(0, 1)]}, "indices go from 0 to 0"),
        ([x], {"x": "g"}, {"signs": [(-1, 0)]}, "indices go from 0 to 0"),
        ([], {"x": "g"}, {}, "at least one"),
    ]
    for files, groups, options, message in cases:
        with pytest.raises(TvgradError, match=message):
            gram_of([Vector(str(n), file) for n, file in enumerate(files)], groups, **options)
    with pytest.raises(TvgradError, match="different labels"):
        gram_of([Vector("x", x), Vector("x", x)], {"x": "g"})
    result = gram_of([Vector("x", x)], {"x": "g"})
    assert result.index("x") == result.index(0) == 0
    with pytest.raises(TvgradError, match="no vector 'y'"):
        result.norm("y")
    with pytest.raises(TvgradError, match="no group 'h'"):
        result.norm("x", "h")
