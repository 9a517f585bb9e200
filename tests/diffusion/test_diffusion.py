"""Diffusion against the reference implementation's numbers, and sampling against cases that have a closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit.design.config import DiffusionConfig
from dit.design.objectives import ObjectiveConfig
from dit.design.samplers import Plan
from dit.design.schedule import (
    Level,
    discrete_points,
    even_timesteps,
    linear_schedule,
    respace,
    strided_timesteps,
)
from dit.diffusion.objectives import Objective
from dit.diffusion.process import (
    ddim_step,
    ddpm_step,
    guided,
    p_mean_variance,
    q_sample,
    tables,
    training_losses,
)
from dit.diffusion.samplers import ancestral, ddim, grid, sample
from dit.errors import UserError

TIMESTEPS = {"ddpm": even_timesteps, "ddim": strided_timesteps}
STEPS = {"ddpm": ancestral, "ddim": ddim}
SCHEDULE = linear_schedule(DiffusionConfig())
RESPACINGS = ["16", "32", "64", "128", "250", "256", "1000", "ddim50", "ddim250"]


def nhwc(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def assert_close(found, expected, tolerance=1e-5):
    assert np.abs(np.asarray(found, np.float64) - np.asarray(expected)).max() <= tolerance * np.abs(expected).max()


def respaced(steps, sampler="ddpm"):
    return respace(SCHEDULE, TIMESTEPS[sampler](1000, steps))


def test_schedule_is_the_references_in_double_precision(golden):
    for name, expected in golden("diffusion").items():
        if name.startswith("schedule/"):
            found = getattr(SCHEDULE, name.removeprefix("schedule/"))
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=0)
    assert SCHEDULE.alphas_cumprod[-1] == pytest.approx(4.0358e-5, rel=1e-4)


@pytest.mark.parametrize("respacing", RESPACINGS)
def test_respacing_is_the_references(golden, respacing):
    arrays = golden("diffusion")
    found = respaced(int(respacing.removeprefix("ddim")), "ddim" if respacing.startswith("ddim") else "ddpm")
    np.testing.assert_array_equal(found.timesteps, arrays[f"timesteps/{respacing}"])
    np.testing.assert_allclose(found.betas, arrays[f"respaced_betas/{respacing}"], rtol=1e-9, atol=0)
    np.testing.assert_allclose(found.alphas_cumprod, SCHEDULE.alphas_cumprod[found.timesteps], rtol=1e-12)


def test_the_golden_file_holds_no_other_respacing(golden):
    assert {name.split("/")[1] for name in golden("diffusion") if name.startswith("timesteps/")} == set(RESPACINGS)


@pytest.mark.parametrize(
    ("steps", "sampler", "message"),
    [
        (0, "ddpm", "sampling_steps 0 .* 1 ... 1000"),
        (1001, "ddpm", "sampling_steps 1001 .* 1 ... 1000"),
        (1001, "ddim", "sampling_steps 1001"),
        (300, "ddim", "exactly 300 of 1000"),
    ],
)
def test_respacings_that_do_not_exist_are_refused(steps, sampler, message):
    with pytest.raises(UserError, match=message):
        TIMESTEPS[sampler](1000, steps)


@pytest.mark.parametrize("steps", [1, 2, 7, 999, 1000])
def test_ddpm_visits_exactly_as_many_distinct_steps_from_first_to_last(steps):
    kept = even_timesteps(1000, steps)
    assert len(set(kept)) == steps and kept == sorted(kept)
    assert kept[0] == 0 and (steps == 1 or kept[-1] == 999)


def test_ddpm_rounds_halves_to_even():
    assert even_timesteps(1000, 7) == [0, 166, 333, 500, 666, 832, 999]  # strides of 166.5


def test_tables_are_padded_with_zeros_and_float32():
    padded = tables(respaced(16), length=1000)
    for column, short in zip(padded, tables(respaced(16))):
        assert (column.shape, short.shape, column.dtype) == ((1000,), (16,), np.float32)
        np.testing.assert_array_equal(column[:16], short)
        assert not np.any(column[16:])


def test_losses_and_their_gradient_are_the_references(golden):
    arrays = golden("diffusion")
    x_start, noise, output = (nhwc(arrays[f"loss/{name}"]) for name in ("x_start", "noise", "model_output"))
    steps, table = jnp.asarray(arrays["loss/t"], jnp.int32), tables(SCHEDULE)
    assert_close(q_sample(table, x_start, steps, noise), nhwc(arrays["loss/x_t"]))
    seen = []

    def total(output):
        def model(x, t, y):
            seen.append((np.asarray(x), np.asarray(t)))
            return output

        losses = training_losses(model, table, x_start, jnp.zeros(6, jnp.int32), steps, noise)
        return losses.loss.sum(), losses

    gradient, losses = jax.grad(total, has_aux=True)(output)
    for name in ("mse", "vb", "loss"):
        np.testing.assert_allclose(getattr(losses, name), arrays[f"loss/{name}"], rtol=1e-5, err_msg=name)
    # The two variances nearly coincide at late steps: the reference's own float32 gradient of the second half is off by 7e-5 of its
    # largest value at step 250, 1e-3 at 600 and 0.2 at 999.
    rounding = {250: 2e-4, 600: 3e-3, 999: 0.5}
    for t, image, expected in zip(arrays["loss/t"], gradient, nhwc(arrays["loss/grad_model_output"])):
        assert_close(image[..., :4], expected[..., :4])
        assert_close(image[..., 4:], expected[..., 4:], tolerance=rounding.get(int(t), 1e-5))
    assert_close(gradient, nhwc(arrays["loss/grad_model_output"]))
    np.testing.assert_array_equal(seen[0][1], arrays["loss/t"])
    assert_close(seen[0][0], nhwc(arrays["loss/x_t"]))


def test_without_variance_channels_the_loss_is_the_squared_error_alone():
    x, noise = jnp.ones((2, 2, 2, 1)), jnp.full((2, 2, 2, 1), 2.0)
    steps = jnp.asarray([3, 900], jnp.int32)
    losses = training_losses(lambda x, t, y: jnp.zeros_like(x), tables(SCHEDULE), x, steps, steps, noise)
    np.testing.assert_array_equal(losses, [[4, 4], [4, 4], [0, 0]])
    prediction = p_mean_variance(tables(SCHEDULE), jnp.zeros_like(x), x, steps)
    np.testing.assert_allclose(prediction.log_variance[:, 0, 0, 0], np.log(SCHEDULE.betas[[3, 900]]), rtol=1e-6)


@pytest.mark.parametrize("steps", [16, 32, 250])
def test_steps_are_the_references(golden, steps):
    arrays = {name.removeprefix(f"step/{steps}/"): array for name, array in golden("diffusion").items()}
    table, index = tables(respaced(steps), length=250), jnp.asarray(arrays["index"], jnp.int32)
    x, output, noise = (nhwc(arrays[name]) for name in ("x", "model_output", "ddim_noise"))
    np.testing.assert_array_equal(table.timesteps[index], arrays["timestep_seen"])
    prediction = p_mean_variance(table, output, x, index)
    found = {
        "mean": prediction.mean,
        "variance": jnp.exp(prediction.log_variance),
        "log_variance": prediction.log_variance,
        "pred_xstart": prediction.pred_xstart,
        "ddim_eta0.0": ddim_step(table, output, x, index, noise, eta=0.0),
        "ddim_eta1.0": ddim_step(table, output, x, index, noise, eta=1.0),
    }
    for name, images in found.items():
        for image, expected in zip(images, nhwc(arrays[name])):
            assert_close(image, expected)
    ancestral = nhwc(arrays["mean"]) + jnp.sqrt(nhwc(arrays["variance"])) * noise
    assert_close(ddpm_step(table, output, x, index, noise)[1:], ancestral[1:])
    np.testing.assert_array_equal(ddpm_step(table, output, x, index, noise)[0], prediction.mean[0])  # index 0: no noise


@pytest.mark.parametrize(
    ("channels", "cfg_channels", "moved"), [(4, 3, 3), (4, None, 4), (4, 1, 1), (1, 3, 1), (1, None, 1)]
)
def test_guidance_moves_the_first_noise_channels_and_nothing_else(channels, cfg_channels, moved):
    def model(x, t, y):
        assert (x.shape[0], t.shape, y.shape) == (4, (4,), (4,))
        value = (y * 10).astype(jnp.float32) + t + x[:, 0, 0, 0]
        return jnp.broadcast_to(value[:, None, None, None], (4, 2, 2, 2 * channels))

    x = jnp.asarray([[0.5], [0.25]])[:, :, None, None] * jnp.ones((2, 2, 2, channels))
    out = guided(model, 4.0, 7, cfg_channels)(x, jnp.asarray([1.0, 2.0]), jnp.asarray([3, 5], jnp.int32))
    condition, null = np.array([31.5, 52.25]), np.array([71.5, 72.25])
    expected = np.repeat(condition[:, None], 2 * channels, axis=1)
    expected[:, :moved] = (null + 4 * (condition - null))[:, None]
    np.testing.assert_allclose(out, np.broadcast_to(expected[:, None, None], out.shape), rtol=1e-6)


def gaussian(mean, deviation, schedule):
    """The perfect predictor for pixels drawn from N(mean, deviation²): noise, and the true reverse variance of `schedule`'s steps."""
    acp, prev, betas = schedule.alphas_cumprod, schedule.alphas_cumprod_prev, schedule.betas
    total = acp * deviation**2 + 1 - acp
    variance = schedule.posterior_variance + (betas / (1 - acp)) ** 2 * prev * deviation**2 * (1 - acp) / total
    with np.errstate(divide="ignore"):
        upper, lower = np.log(betas), schedule.posterior_log_variance_clipped
        weight = 2 * (np.log(variance) - lower) / (upper - lower) - 1
    by_original = {name: np.zeros(1000, np.float32) for name in ("weight", "root", "total", "rest")}
    for name, values in (("weight", weight), ("root", np.sqrt(acp)), ("total", total), ("rest", np.sqrt(1 - acp))):
        by_original[name][schedule.timesteps] = values
    columns = {name: jnp.asarray(values) for name, values in by_original.items()}

    def model(x, t, y):
        c = {name: column[t.astype(jnp.int32)][:, None, None, None] for name, column in columns.items()}
        noise = c["rest"] * (x - c["root"] * np.float32(mean)) / c["total"]
        return jnp.concatenate([noise, jnp.broadcast_to(c["weight"], x.shape)], axis=-1)

    return model


@functools.partial(jax.jit, static_argnames=("model", "sampler", "shape"))
def drawn(model, levels, keys, sampler, shape):
    objective, labels = Objective(ObjectiveConfig(), DiffusionConfig()), jnp.zeros(len(keys), jnp.int32)

    def denoise(x, level):
        return objective.read(objective.raw(model, x, labels, level), x, level)

    return sample(STEPS[sampler], denoise, levels, keys, shape)


def draw(model, schedule, keys, sampler="ddpm", shape=(8, 8, 1), length=0):
    points = discrete_points(schedule)
    calls = Level(*(part[1:, None] for part in points[:5]), guided=np.ones((len(schedule.betas), 1), bool))
    return drawn(model, grid(Plan(points, calls, schedule, {}), length), keys, sampler, shape)


def keys_of(count, seed=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(count))


@pytest.mark.parametrize("steps", [4, 25])
def test_ancestral_sampling_of_a_gaussian_is_exact_at_any_number_of_steps(steps):
    schedule = respaced(steps)
    images = np.asarray(draw(gaussian(0.7, 0.5, schedule), schedule, keys_of(1024)), np.float64)
    assert images.mean() == pytest.approx(0.7, abs=0.01)  # 65,536 pixels: standard error 0.002
    assert images.std() == pytest.approx(0.5, abs=0.006)
    assert abs(np.corrcoef(images[:, 0, 0, 0], images[:, 0, 1, 0])[0, 1]) < 0.1


def test_a_single_point_is_found_exactly_by_either_sampler():
    schedule = respaced(10, "ddim")
    for sampler in ("ddpm", "ddim"):
        images = draw(gaussian(0.3, 0.0, schedule), schedule, keys_of(4), sampler)
        np.testing.assert_allclose(images, 0.3, atol=2e-5)


def test_ddim_follows_the_probability_flow_of_a_gaussian():
    mean, deviation = 0.7, 0.5
    images = draw(gaussian(mean, deviation, SCHEDULE), SCHEDULE, keys_of(4), "ddim")
    last = jnp.int32(np.iinfo(np.int32).max)
    start = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, last), (8, 8, 1)))(keys_of(4))
    acp = SCHEDULE.alphas_cumprod[-1]
    exact = mean + deviation * (start - np.sqrt(acp) * mean) / np.sqrt(acp * deviation**2 + 1 - acp)
    np.testing.assert_allclose(images, exact, atol=0.02)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_an_image_is_its_keys_alone_and_padding_changes_nothing(sampler):
    schedule, keys = respaced(10, "ddim"), keys_of(5)
    model = gaussian(0.0, 1.0, schedule)
    images = np.asarray(draw(model, schedule, keys, sampler))
    np.testing.assert_allclose(draw(model, schedule, keys[::-1], sampler), images[::-1], atol=1e-6)
    padded = draw(model, schedule, keys, sampler, length=1000)
    np.testing.assert_array_equal(padded, images)
    assert len({image.tobytes() for image in images}) == 5
    assert not np.array_equal(draw(model, schedule, keys_of(5, seed=1), sampler), images)
