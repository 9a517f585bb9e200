"""Training: draws that follow their position, one step against its parts, exact resumption, rows, and divergence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit.data.batches import ImageDataset, load_images
from dit.design.config import DATASETS, ModelConfig, OptimConfig, RunConfig
from dit.design.flops import BACKWARD_FACTOR, gflops
from dit.design.schedule import linear_schedule
from dit.diffusion.process import tables, training_losses
from dit.train.loop import NonFiniteLoss, train
from dit.train.step import build, draw_examples
from dit.train.throughput import TIMINGS

DIGITS = DATASETS["digits"]
MODEL = ModelConfig("adaln", 4, depth=1, hidden_size=32, num_heads=2, input_size=8, in_channels=1, num_classes=10)
RUN = RunConfig(MODEL, DIGITS, steps=100, batch_size=16, seed=3, optim=OptimConfig(learning_rate=2e-3, ema_decay=0.9))
DRAW = jax.jit(draw_examples, static_argnums=0)
DATA = ImageDataset(*load_images("digits"), RUN.batch_size, RUN.seed)


@pytest.fixture(scope="module")
def program():
    return build(RUN)


def advance(program, state, stop, block=10, data=DATA):
    rows = []
    return train(program, state, data, stop, block, rows.append), rows


def assert_same_bits(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def drawn(step=5, positions=range(12), run=RUN):
    positions = np.asarray(positions, np.int32)
    return DRAW(run, np.int32(step), positions, positions % 10)


def test_an_examples_draws_depend_on_its_position_and_not_on_how_the_batch_is_split():
    whole = drawn()
    for part in ([0, 1, 2], [7], [11, 2, 5]):
        for some, all_of_it in zip(drawn(positions=part), whole):
            np.testing.assert_array_equal(some, all_of_it[np.asarray(part)])


def test_seed_and_step_change_every_draw():
    for other in (drawn(step=6), drawn(run=dataclasses.replace(RUN, seed=4))):
        assert not np.any(np.all(other.noise == drawn().noise, axis=(1, 2, 3)))
        assert np.any(other.times != drawn().times)


def test_draws_have_the_papers_distributions():
    timesteps, noise, labels = map(np.asarray, drawn(positions=range(8000)))
    assert (timesteps.min(), timesteps.max()) == (0, 999)
    assert timesteps.mean() == pytest.approx(499.5, abs=12)  # standard error 3.2
    assert noise.mean() == pytest.approx(0, abs=0.006) and noise.std() == pytest.approx(1, abs=0.005)
    dropped = labels == MODEL.num_classes
    assert dropped.mean() == pytest.approx(0.1, abs=0.013)  # standard error 0.0034
    np.testing.assert_array_equal(labels[~dropped], (np.arange(8000) % 10)[~dropped])
    assert abs(np.corrcoef(dropped, timesteps)[0, 1]) < 0.045
    assert abs(np.corrcoef(noise[:, 0, 0, 0], timesteps)[0, 1]) < 0.045


def test_without_label_dropout_no_label_is_dropped():
    run = dataclasses.replace(RUN, model=dataclasses.replace(MODEL, class_dropout_prob=0.0))
    np.testing.assert_array_equal(drawn(positions=range(100), run=run).labels, np.arange(100) % 10)


def test_one_step_is_the_loss_on_its_draws_an_adamw_step_and_the_average(program):
    before, (images, labels) = jax.device_get(program.init()), DATA.batch(0)
    assert_same_bits(before.params, before.ema)
    draws = DRAW(RUN, np.int32(0), np.arange(16, dtype=np.int32), labels)

    @jax.jit
    def gradient(params):
        def loss(params):
            table = tables(linear_schedule(RUN.diffusion))
            model = lambda x, t, y: program.model(params, x, t, y)  # noqa: E731
            losses = training_losses(model, table, jnp.asarray(images), draws.labels, draws.times, draws.noise)
            return losses.loss.mean(), losses

        return jax.grad(loss, has_aux=True)(params)

    gradients, losses = gradient(before.params)
    after, metrics = program.step(program.init(), images, labels)
    assert int(after.step) == 1
    for name in ("loss", "mse", "vb"):
        assert float(getattr(metrics, name)) == pytest.approx(float(getattr(losses, name).mean()), rel=1e-5)
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(gradients)]
    assert float(metrics.grad_norm) == pytest.approx(np.sqrt(sum((leaf**2).sum() for leaf in leaves)), rel=1e-5)
    for old, new, ema, g in zip(*map(jax.tree.leaves, (before.params, after.params, after.ema)), leaves, strict=True):
        moved = RUN.optim.learning_rate * g / (np.abs(g) + RUN.optim.eps)  # AdamW's first step
        clear = np.abs(g) > 1e-5
        np.testing.assert_allclose(np.asarray(new)[clear], (old - moved)[clear], atol=1e-6)
        np.testing.assert_allclose(ema, 0.9 * old + 0.1 * np.asarray(new), atol=1e-6)


def test_first_state_follows_the_seed(program):
    assert_same_bits(program.init(), program.init())
    other = build(dataclasses.replace(RUN, seed=4)).init()
    mine = program.init().params["patch_embedding"]["kernel"][...]
    assert np.any(mine != other.params["patch_embedding"]["kernel"][...])


def test_loss_falls_on_digits(program):
    _, rows = advance(program, program.init(), 150, block=50)
    losses = [row["loss"] for row in rows]
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 0.6 * losses[0]


def test_interrupted_training_continues_bit_for_bit(program):
    whole, rows = advance(program, program.init(), 20)
    part, first = advance(program, program.init(), 10)
    fresh = ImageDataset(*load_images("digits"), RUN.batch_size, RUN.seed)
    resumed, second = advance(program, jax.tree.map(jnp.asarray, jax.device_get(part)), 20, data=fresh)
    assert_same_bits(resumed, whole)
    assert_same_bits(resumed.opt_state, whole.opt_state)
    for row, other in zip(rows, first + second, strict=True):
        assert {**row, **dict.fromkeys(TIMINGS)} == {**other, **dict.fromkeys(TIMINGS)}


def test_rows_are_means_over_blocks_at_multiples_and_at_the_end(program):
    state, blocks = advance(program, program.init(), 11, block=4)
    _, steps = advance(program, program.init(), 11, block=1)
    assert int(state.step) == 11
    assert [row["step"] for row in steps] == list(range(1, 12))
    assert [row["step"] for row in blocks] == [4, 8, 11]
    for row, members in zip(blocks, (steps[:4], steps[4:8], steps[8:])):
        for name in ("loss", "mse", "vb", "grad_norm"):
            assert row[name] == pytest.approx(np.mean([member[name] for member in members]), rel=1e-6)
        assert row["train_gflops"] == gflops(MODEL) * 16 * row["step"] * BACKWARD_FACTOR
        assert row["images_per_s"] > 0
    assert steps[0]["images_per_s"] is None  # the step that compiles is not timed
    assert all(row["images_per_s"] > 0 for row in steps[1:])


def test_rows_of_resumed_training_stay_at_multiples(program):
    state, _ = advance(program, program.init(), 2)
    state, rows = advance(program, state, 9, block=4)
    assert [row["step"] for row in rows] == [4, 8, 9]
    assert advance(program, state, 9)[1] == []


class Poisoned:
    """Images that are not numbers from one step on."""

    def __init__(self, step):
        self.step = step

    def batch(self, step):
        images, labels = DATA.batch(step)
        return images * np.float32(np.nan if step >= self.step else 1), labels


@pytest.mark.parametrize(("step", "block", "rows_before"), [(5, 4, 1), (8, 4, 2), (0, 4, 0), (9, 100, 0)])
def test_a_loss_that_is_not_finite_names_its_step(program, step, block, rows_before):
    rows = []
    with pytest.raises(NonFiniteLoss, match=rf"step {step + 1}: loss nan") as error:
        train(program, program.init(), Poisoned(step), 10, block, rows.append)
    assert (error.value.step, np.isnan(error.value.loss)) == (step + 1, True)
    assert len(rows) == rows_before
