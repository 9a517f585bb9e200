"""Precision, attention, rematerialisation and memory: what changes results, what only changes how they are computed, what is refused."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit.data.batches import ImageDataset, load_images
from dit.design.config import BLOCKS, DATASETS, ModelConfig, OptimConfig, RunArguments, RunConfig, model_config
from dit.design.memory_rules import KEPT_ON_CPU, USABLE, state_bytes
from dit.design.topology import MeshShape
from dit.errors import UserError
from dit.model import memory
from dit.model.compute import Compute, attend, best_attention, cast_params, require_precision
from dit.model.layers import layer_norm, normalize
from dit.model.memory import activation_bytes, choose_remat
from dit.model.transformer import DiT, applied
from dit.train.loop import train
from dit.train.step import build

MODEL = ModelConfig("adaln_zero", 4, depth=2, hidden_size=32, num_heads=2, input_size=8, in_channels=1, num_classes=10)
RUN = RunConfig(MODEL, DATASETS["digits"], steps=10, batch_size=8)
XL = RunConfig(model_config("adaln_zero", "XL", 2, DATASETS["imagenet256"]), DATASETS["imagenet256"], steps=10)


class Chip:
    def __init__(self, platform="gpu", capability=None, kind="chip", limit=None):
        self.platform, self.device_kind, self.limit = platform, kind, limit
        if capability is not None:
            self.compute_capability = capability

    def memory_stats(self):
        return None if self.limit is None else {"bytes_limit": self.limit}


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def standard_promotion():
    """JAX's gradient of its own half-precision products relies on implicit promotion, when it is compiled."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def parameters(model):
    """Random ones, none of them zero."""
    shapes = nnx.split(nnx.eval_shape(lambda: DiT(model, rngs=nnx.Rngs(0))))[1]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.15, s.shape).astype(np.float32)), shapes)


def outputs(compute, model=MODEL):
    x, t, y = numbers(4, 8, 8, 1), np.array([0.0, 10, 500, 999], np.float32), np.array([0, 3, 9, 10], np.int32)
    return jax.jit(applied(model, compute, "cpu"))(parameters(model), x, t, y)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_plain_attention_is_the_reference_of_the_others(precision):
    dtype = Compute(precision).dtype
    q, k, v = (jnp.asarray(numbers(2, 5, 3, 8, seed=s), dtype) for s in range(3))
    ours = attend("plain", q, k, v)
    for kind in ("xla", "heads_first"):
        theirs = attend(kind, q, k, v)
        assert ours.dtype == theirs.dtype == dtype
        np.testing.assert_allclose(
            ours.astype(jnp.float32), theirs.astype(jnp.float32), atol=1e-6 if precision == "float32" else 2e-2
        )
        np.testing.assert_allclose(outputs(Compute(attention="plain")), outputs(Compute(attention=kind)), atol=2e-5)


@pytest.mark.parametrize(("keys", "offset", "digits"), [(5, 0, 2e-5), (2, 0, 2e-5), (5, 60, 2e-4)])
def test_gradients_of_every_attention_are_the_plain_ones(keys, offset, digits):
    """An offset of all keys cancels in the softmax, but makes logits whose exponential is infinite, known to fewer digits."""
    q, weights = (jnp.asarray(numbers(2, 5, 3, 8, seed=s)) for s in (0, 3))
    k, v = jnp.asarray(offset + numbers(2, keys, 3, 8, seed=1)), jnp.asarray(numbers(2, keys, 3, 8, seed=2))
    assert (jnp.einsum("bthk,bmhk->bhtm", q, k).max() / np.sqrt(8) > 89) == (offset > 0)

    def gradients(kind):
        return jax.grad(lambda *qkv: jnp.sum(weights * attend(kind, *qkv)), argnums=(0, 1, 2))(q, k, v)

    plain = gradients("plain")
    for kind in ("xla", "heads_first"):
        for ours, theirs in zip(gradients(kind), plain):
            np.testing.assert_allclose(ours, theirs, atol=digits * np.abs(theirs).max())


def test_dots_keeps_the_values_of_attention_on_a_cpu():
    """Of the products without weights in a block's backward pass, the four of the gradient and the logits; not the values again."""
    batch = jnp.asarray(numbers(2, 8, 8, 1)), jnp.array([0.0, 999]), jnp.array([0, 10])

    def attention_products(kind):
        model = applied(MODEL, Compute(remat="dots", attention=kind), "cpu")
        gradient = jax.jit(jax.grad(lambda params: jnp.sum(model(params, *batch) ** 2)))
        return gradient.lower(parameters(MODEL)).as_text().count(", batching_dims")

    assert attention_products("heads_first") == 2 + 1 + 4
    assert attention_products("plain") == 2 + 2 + 4


def test_softmax_is_float32_under_bfloat16_inputs():
    q = jnp.full((1, 1, 1, 8), 8.0, jnp.bfloat16)
    k = jnp.stack([jnp.full((1, 1, 8), 8.0), jnp.full((1, 1, 8), 8.03125)], axis=1).astype(jnp.bfloat16)
    v = jnp.asarray([0.0, 1.0], jnp.bfloat16).reshape(1, 2, 1, 1).repeat(8, axis=3)
    gap = (
        8 * 8 * (float(k[0, 1, 0, 0]) - float(k[0, 0, 0, 0])) / np.sqrt(8)
    )  # a bfloat16 logit of 181 moves in steps of 1
    for kind in ("plain", "heads_first", "xla"):
        assert float(attend(kind, q, k, v)[0, 0, 0, 0]) == pytest.approx(1 / (1 + np.exp(-gap)), abs=5e-3)


def test_normalisation_is_float32_under_bfloat16_inputs():
    layer = layer_norm(64, nnx.Rngs(0), affine=True)
    x = (300 + numbers(3, 64)).astype(jnp.bfloat16)  # its square has no digits left in bfloat16
    normal = np.asarray(normalize(layer, jnp.asarray(x)).astype(jnp.float32))
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(1, keepdims=True)) / exact.std(1, keepdims=True)
    np.testing.assert_allclose(normal, exact, atol=2e-2)


@pytest.mark.parametrize("affine", [False, True])
def test_normalisation_and_its_gradient_are_those_of_the_layer(affine):
    layer = layer_norm(64, nnx.Rngs(0), affine)
    if affine:
        layer.scale[...], layer.bias[...] = jnp.asarray(numbers(64, seed=1)), jnp.asarray(numbers(64, seed=2))
    x, weights = jnp.asarray(3 + 2 * numbers(4, 5, 64)), jnp.asarray(numbers(4, 5, 64, seed=3))
    graph, params = nnx.split(layer)

    def gradient(function):
        return jax.grad(lambda params, x: jnp.sum(weights * function(nnx.merge(graph, params), x)), (0, 1))(params, x)

    with jax.numpy_rank_promotion("allow"):
        theirs, of_theirs = layer(x), gradient(lambda layer, x: layer(x))
    np.testing.assert_array_equal(normalize(layer, x), theirs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max()), gradient(normalize), of_theirs
    )


@pytest.mark.parametrize("block", BLOCKS)
def test_bfloat16_is_the_same_model_within_its_own_rounding(block):
    model = dataclasses.replace(MODEL, block=block, qk_norm=block == "in_context")
    exact, rounded = outputs(Compute(), model), outputs(Compute("bfloat16"), model)
    assert rounded.dtype == jnp.float32
    error = np.abs(np.asarray(exact - rounded))
    assert 1e-4 < error.max() / np.abs(exact).max() < 3e-2


@pytest.mark.usefixtures("standard_promotion")
def test_parameters_moments_and_average_stay_float32_in_bfloat16():
    run = dataclasses.replace(RUN, precision="bfloat16")
    program, exact = build(run), build(RUN)
    batch = ImageDataset(*load_images("digits"), 8, 0).batch(0)
    state, reference = program.init(), exact.init()
    for _ in range(3):  # the first two see a last layer, then gates, that are zero in any precision
        state, metrics = program.step(state, *batch)
        reference, expected = exact.step(reference, *batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {np.dtype("float32"), np.dtype("int32")}
    assert metrics.loss.dtype == np.float32
    assert float(metrics.loss) == pytest.approx(float(expected.loss), rel=2e-2)
    assert float(metrics.loss) != float(expected.loss)


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_bfloat16_trains_like_float32():
    means = []
    for precision in ("float32", "bfloat16"):
        run = dataclasses.replace(RUN, precision=precision, batch_size=16, optim=OptimConfig(learning_rate=2e-3))
        program, rows = build(run), []
        data = ImageDataset(*load_images("digits"), 16, 0)
        train(program, program.init(), data, 100, 50, rows.append)
        means.append([row["loss"] for row in rows])
    np.testing.assert_allclose(means[1], means[0], rtol=2e-2)
    assert means[0][1] < 0.95 * means[0][0]


def test_all_but_normalisations_is_cast():
    model = dataclasses.replace(MODEL, block="cross_attention", qk_norm=True)
    cast = cast_params(parameters(model), jnp.bfloat16)
    dtypes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.dtype
        for path, leaf in jax.tree_util.tree_flatten_with_path(cast)[0]
    }
    kept = {name for name, dtype in dtypes.items() if dtype == np.float32}
    assert {name.split("/")[-3] for name in kept} == {"norm", "norm1", "norm2", "norm_cross", "q_norm", "k_norm"}
    assert all(dtype == jnp.bfloat16 for name, dtype in dtypes.items() if name not in kept)


def test_query_key_normalisation_bounds_the_logits():
    model = dataclasses.replace(MODEL, qk_norm=True)
    params = parameters(model)
    x, t, y = numbers(2, 8, 8, 1), np.array([5.0, 500], np.float32), np.array([0, 3], np.int32)
    output = jax.jit(applied(model, Compute(), "cpu"))
    before = output(params, x, t, y)
    qkv = params["blocks"]["attention"]["qkv"]
    for leaf in ("kernel", "bias"):  # queries and keys a hundred times larger: the same attention
        value = qkv[leaf][...]
        qkv[leaf][...] = value.at[..., : 2 * 32].multiply(100.0)
    np.testing.assert_allclose(output(params, x, t, y), before, atol=1e-4)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputing_changes_no_gradient(remat):
    x, t = jnp.asarray(numbers(4, 8, 8, 1)), jnp.asarray([0.0, 10, 500, 999])
    y = jnp.asarray([0, 3, 9, 10], jnp.int32)

    def gradient(remat):
        model = applied(MODEL, Compute(remat=remat), "cpu")
        return jax.jit(jax.grad(lambda params: jnp.sum(model(params, x, t, y) ** 2)))(parameters(MODEL))

    for ours, theirs in zip(jax.tree.leaves(gradient(remat)), jax.tree.leaves(gradient("none"))):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(np.abs(theirs).max()))


@pytest.mark.parametrize("block", BLOCKS)
def test_each_policy_keeps_less_and_the_quick_bound_holds(block):
    for run in (
        dataclasses.replace(RUN, model=dataclasses.replace(MODEL, block=block)),
        RunConfig(model_config(block, "S", 2, DATASETS["imagenet256"]), DATASETS["imagenet256"], steps=1),
    ):
        none, dots, full = (activation_bytes(run.model, "float32", remat) for remat in ("none", "dots", "full"))
        assert full < dots < none < memory._at_most(run)
        half = activation_bytes(run.model, "bfloat16", "none")
        assert 0.4 * none < half < 0.9 * none


def test_full_recomputation_keeps_the_inputs_of_the_blocks_and_one_block():
    tokens = 4 * XL.model.tokens * XL.model.hidden_size
    kept = (
        activation_bytes(XL.model, "float32", "full") - activation_bytes(XL.model, "float32", "none") // XL.model.depth
    )
    assert XL.model.depth * tokens <= kept < 1.2 * XL.model.depth * tokens


def test_the_least_recomputation_that_fits_is_chosen():
    compute, chosen = Compute("bfloat16"), []
    run = dataclasses.replace(XL, precision="bfloat16", batch_size=32)
    state = state_bytes(run, MeshShape())
    kept = {remat: 32 * activation_bytes(run.model, "bfloat16", remat) for remat in ("none", "dots", "full")}
    for remat, more in (("none", 1.01), ("dots", 1.01), ("full", 0.5)):
        limit = int((state + more * kept[remat]) / USABLE)
        chosen.append(choose_remat(run, compute, RunArguments(), Chip(), limit=limit))
    assert chosen == ["none", "dots", "full"]
    assert choose_remat(run, compute, RunArguments(remat="dots"), Chip(), limit=900 * 2**30) == "dots"
    assert choose_remat(run, compute, RunArguments(), Chip()) == "none"  # a device that does not say
    assert choose_remat(run, compute, RunArguments(accumulate=32), Chip(limit=40 * 2**30)) == "none"


def test_a_cpu_recomputes_where_it_would_keep_much():
    cpu, model = Chip("cpu"), model_config("adaln_zero", "S", 8, DATASETS["imagenet256"])
    run = RunConfig(model, DATASETS["imagenet256"], 1, batch_size=1)
    images = math.ceil(KEPT_ON_CPU / activation_bytes(run.model, "float32", "none"))
    for batch, policy in ((images - 1, "none"), (images, "dots")):
        run = dataclasses.replace(run, batch_size=batch)
        assert choose_remat(run, Compute(), RunArguments(), cpu, limit=2**40) == policy
        assert choose_remat(run, Compute(), RunArguments(), Chip("tpu"), limit=2**40) == "none"
        assert choose_remat(run, Compute(), RunArguments(remat="none"), cpu, limit=2**40) == "none"


def test_weights_that_do_not_fit_are_refused_in_one_line():
    gathered = 4 * 4 * (18 * 1152**2 + 15 * 1152)
    assert state_bytes(XL, MeshShape(fsdp=4)) == pytest.approx(675.1e6 * 20 / 4 + gathered, rel=1e-3)
    assert state_bytes(XL, MeshShape(data=4)) == pytest.approx(675.1e6 * 20, rel=1e-3)
    with pytest.raises(UserError, match=r"needs 12\.6 GiB a device .* chip has 8\.0 GiB: use more devices along fsdp"):
        choose_remat(XL, Compute(), RunArguments(), Chip(limit=2**33))


def test_cudnns_attention_is_taken_where_it_is_legal():
    h100 = Chip(capability="9.0")
    assert best_attention(h100, "bfloat16", 72) == "cudnn"
    for device, precision, head_dim in (
        (h100, "float32", 72),
        (h100, "bfloat16", 18),
        (h100, "bfloat16", 136),
        (Chip(capability="7.5"), "bfloat16", 64),
        (Chip("tpu"), "bfloat16", 64),
    ):
        assert best_attention(device, precision, head_dim) == "xla"
    assert best_attention(jax.devices()[0], "bfloat16", 64) == "heads_first"


def test_bfloat16_is_refused_where_the_hardware_has_none():
    with pytest.raises(UserError, match=r"bfloat16 on Tesla T4, which has none \(compute capability 7.5"):
        require_precision("bfloat16", Chip(capability="7.5", kind="Tesla T4"))
    for device in (Chip(capability="8.0"), Chip("tpu"), Chip("cpu"), Chip(capability="gfx90a")):
        require_precision("bfloat16", device)
    require_precision("float32", Chip(capability="7.5"))
