"""Samplers against SiT's trajectories, against orders of convergence on a Gaussian mixture, and what they visit and cost."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit.config import (
    DATASETS,
    DiffusionConfig,
    Evaluation,
    ModelConfig,
    ObjectiveConfig,
    RunConfig,
    Sampler,
    autoguided_by,
)
from dit.design import flops
from dit.design.config import from_json, to_json
from dit.design.guidance import plan_of
from dit.design.parts import load, named
from dit.design.samplers import plan
from dit.design.schedule import linear_schedule
from dit.diffusion import objectives
from dit.diffusion.samplers import grid, integrate
from dit.errors import UserError
from dit.score.sampling import Sampler as Drawing
from dit.score.sampling import Weak

DIFFUSION = DiffusionConfig()
NAMES = {"linear": "Linear", "gvp": "GVP"}


def trajectory(objective, sampler, steps, model, x, noise=None, options=()):
    """Where a model `(x, t) -> output` leads from `x`."""
    record = named(Sampler, sampler)
    found = plan(objective, DIFFUSION, record, steps, options)
    bound, labels = objectives.Objective(objective, DIFFUSION), jnp.zeros(len(x), jnp.int32)
    step = functools.partial(load(record.step), **found.options)

    def denoise(x, level):
        return bound.read(bound.raw(lambda x, t, y: model(x, t), x, labels, level), x, level)

    return jax.jit(lambda x: integrate(step, denoise, grid(found, 0), x, noise or (lambda index: jnp.zeros_like(x))))(x)


def nhwc(x):
    return jnp.asarray(np.moveaxis(x, -3, -1))


def stand_in(numbers):
    a, b, c, d = (float(number) for number in numbers)
    return lambda x, t: d * jnp.sin(a * x + b * t[:, None, None, None]) - 0.3 * c * x


@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("path", list(NAMES))
def test_ode_ends_are_sits(golden, path, sampler):
    arrays = golden("flow")
    end = trajectory(ObjectiveConfig("flow", path=path), sampler, 11, stand_in(arrays["model"]), nhwc(arrays["noise"]))
    np.testing.assert_allclose(end, nhwc(arrays[f"ode/{NAMES[path]}/{sampler}/12"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("last", ["Mean", "Euler", "Tweedie", "None"])
@pytest.mark.parametrize("diffusion", ["sigma", "linear", "kl"])
@pytest.mark.parametrize("path", list(NAMES))
def test_sde_ends_are_sits_given_its_draws(golden, path, diffusion, last):
    arrays = golden("flow")
    name = f"{NAMES[path]}/{'SBDM' if diffusion == 'kl' else diffusion}/{last}/12"
    draws, steps = nhwc(arrays[f"draws/{name}"]), 11 if last == "None" else 12

    def noise(index):
        return draws[jnp.minimum(steps - 1 - index, len(draws) - 1)]

    options = (("diffusion", diffusion), ("last_step", last.lower()))
    objective = ObjectiveConfig("flow", path=path)
    end = trajectory(
        objective, "euler_maruyama", steps, stand_in(arrays["model"]), nhwc(arrays["noise"]), noise, options
    )
    expected = nhwc(arrays[f"sde/{name}"])
    if diffusion == "kl":  # the reference starts at t = 1, where w_KL has no bound; ours a little below
        assert not np.any(np.isfinite(expected)) and np.all(np.isfinite(end))
    else:
        np.testing.assert_allclose(end, expected, rtol=1e-4, atol=2e-5)


MEANS, WEIGHTS, DEVIATION = np.array([-1.0, 0.8]), np.array([0.4, 0.6]), 0.5


def mixture(alpha, sigma, x, of_image=1.0, of_noise=0.0):
    """The expected of_image · image + of_noise · noise for a pixel of the mixture, given alpha · image + sigma · noise = x."""
    variance = alpha**2 * DEVIATION**2 + sigma**2
    away = [x - alpha * mean for mean in MEANS]
    logits = jnp.stack([jnp.log(w) - each**2 / (2 * variance) for w, each in zip(WEIGHTS, away)])
    share = jax.nn.softmax(logits, axis=0)
    slope = (of_image * alpha * DEVIATION**2 + of_noise * sigma) / variance
    each = [of_image * mean + slope * one for mean, one in zip(MEANS, away)]
    return share[0] * each[0] + share[1] * each[1]


def perfect(objective):
    """The predictor that knows the mixture, in the objective's own terms."""

    def flow(x, t):
        t = t[:, None, None, None]
        return mixture(t, 1 - t, x, 1.0, -1.0)

    def edm(x, t):
        sigma = jnp.exp(4 * t)[:, None, None, None]
        root = jnp.sqrt(sigma**2 + 0.25)
        return mixture(1.0, sigma, x * root, sigma / 0.5 / root, -0.5 / root)

    def image(x, t):
        acp = jnp.asarray(linear_schedule(DIFFUSION).alphas_cumprod, jnp.float32)[t.astype(jnp.int32)]
        acp = acp[:, None, None, None]
        return mixture(jnp.sqrt(acp), jnp.sqrt(1 - acp), x)

    return {"flow": flow, "edm": edm, "x": image}[objective.name]


EDM = (("sigma_min", 0.1), ("sigma_max", 10.0), ("rho", 3.0))


@pytest.mark.parametrize(
    ("objective", "sampler", "options", "order"),
    [
        ("flow", "euler", (), 1),
        ("flow", "heun", (), 2),
        ("edm", "euler", EDM, 1),
        ("edm", "heun", EDM, 2),
        ("edm", "edm", EDM, 2),
        ("edm", "dpmpp_2m", EDM, 2),
        ("x", "dpmpp_2m", (), 2),
        ("x", "ddim", (), 1),
    ],
)
def test_orders_of_convergence_on_a_mixture(objective, sampler, options, order):
    config = ObjectiveConfig(objective)
    x = jnp.linspace(-2, 2, 64).reshape(1, 8, 8, 1) * (10.0 if objective == "edm" else 1.0)
    steps = (25, 50, 500) if objective == "x" else (16, 32, 512)
    few, more, many = (np.asarray(trajectory(config, sampler, n, perfect(config), x, options=options)) for n in steps)
    measured = np.log2(np.abs(few - many).mean() / np.abs(more - many).mean())
    assert abs(measured - order) < 0.35, measured


def test_churn_keeps_the_distribution_of_a_mixture():
    config, rng = ObjectiveConfig("edm"), np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((64, 8, 8, 1)) * 10, jnp.float32)
    noises = jnp.asarray(rng.standard_normal((40, *x.shape)), jnp.float32)
    options = (*EDM[1:2], ("sigma_min", 0.02), ("churn", 10.0))
    images = trajectory(config, "edm", 40, perfect(config), x, lambda index: noises[index], options)
    flat = trajectory(config, "edm", 40, perfect(config), x, options=options[:2])
    assert np.abs(np.asarray(images) - np.asarray(flat)).mean() > 0.1  # noise was added
    mean, second = WEIGHTS @ MEANS, WEIGHTS @ (MEANS**2 + DEVIATION**2)
    assert np.mean(images) == pytest.approx(mean, abs=0.06)
    assert np.mean(np.square(images)) == pytest.approx(second, abs=0.06)


DATA = DATASETS["digits"]


def a_run(objective="flow", sampler="euler", steps=10, **changes):
    learn_sigma = objective in ("ddpm", "flow")
    model = ModelConfig("adaln", 4, 1, 8, 1, DATA.input_size, 1, 10, learn_sigma=learn_sigma)
    evaluation = Evaluation(5, "digits", 8, steps, sampler, **changes)
    return RunConfig(
        model, DATA, steps=5, batch_size=8, objective=ObjectiveConfig(objective), evaluations=(evaluation,)
    )


@pytest.mark.parametrize(
    ("objective", "sampler", "calls"),
    [
        *(("flow", "euler", 10), ("flow", "heun", 20), ("edm", "heun", 19), ("edm", "edm", 19), ("edm", "euler", 10)),
        *(("flow", "euler_maruyama", 10), ("v", "dpmpp_2m", 10), ("ddpm", "ddpm", 10), ("eps", "ddim", 10)),
    ],
)
def test_model_calls_are_counted_as_they_are_made(objective, sampler, calls):
    run, made = a_run(objective, sampler), []
    (evaluation,) = run.evaluations
    assert flops.model_calls(run, evaluation) == (calls, 0)
    assert flops.drawing_gflops(run, evaluation) == pytest.approx(flops.gflops(run.model) * calls)

    def apply(params, x, t, y):
        jax.debug.callback(lambda rows: made.append(int(rows)), len(x))
        return jnp.concatenate([x] * (run.model.out_channels // x.shape[-1]), axis=-1) * params

    draw(run, apply)
    assert made == [2] * calls


def draw(run, apply, weak=None):
    jax.effects_barrier()
    drawing = Drawing(apply, run.model, run.diffusion, 2, run.objective)
    (batch,) = drawing.draw(jnp.float32(0.5), run.evaluations[0], 0, 2, weak=weak)
    jax.effects_barrier()
    assert np.all(np.isfinite(batch.images))
    return batch.images


@pytest.mark.parametrize(("objective", "sampler"), [("flow", "heun"), ("ddpm", "ddim"), ("edm", "edm")])
def test_an_interval_pays_where_it_guides_and_nowhere_else(objective, sampler):
    interval = {"flow": (0.3, 0.7), "ddpm": (0.5, 2.0), "edm": (0.1, 3.0)}[objective]
    run, made = a_run(objective, sampler, cfg_scale=2.0, cfg_interval=interval), []
    (evaluation,) = run.evaluations
    found = plan_of(run, evaluation)
    visited = found.calls.time if objective != "ddpm" else found.calls.sigma / found.calls.alpha
    guided = int(((visited > interval[0]) & (visited <= interval[1])).sum())
    calls = found.nfe
    assert 0 < guided < calls and flops.model_calls(run, evaluation) == (calls, guided)
    assert flops.drawing_gflops(run, evaluation) == pytest.approx(flops.gflops(run.model) * (calls + guided))

    def apply(params, x, t, y):
        jax.debug.callback(lambda rows: made.append(int(rows)), len(x))
        return jnp.concatenate([x] * (run.model.out_channels // x.shape[-1]), axis=-1) * params

    draw(run, apply)
    assert (made.count(4), made.count(2)) == (guided, calls - guided)


def test_autoguidance_steers_away_from_the_weak_model_and_is_paid_by_its_size():
    base = a_run()
    weak_run = dataclasses.replace(base, model=dataclasses.replace(base.model, hidden_size=4), evaluations=())
    evaluation = dataclasses.replace(base.evaluations[0], cfg_scale=3.0, autoguidance=autoguided_by(weak_run))
    run = dataclasses.replace(base, evaluations=(evaluation,))
    cost = 10 * (flops.gflops(run.model) + flops.gflops(weak_run.model))
    assert flops.drawing_gflops(run, evaluation) == pytest.approx(cost)
    assert from_json(to_json(run)) == run and evaluation.key != base.evaluations[0].key

    def scaled(params, x, t, y):
        return jnp.concatenate([x, x], axis=-1) * params

    found = draw(run, scaled, Weak(weak_run.model, scaled, jnp.float32(0.2)))
    one = draw(base, lambda params, x, t, y: scaled(0.2 + 3 * (0.5 - 0.2), x, t, y))
    np.testing.assert_allclose(found, one, rtol=1e-5)
    for changes, message in (
        ({"data": "mnist"}, "of data set 'mnist': expected a cell of 'digits'"),
        ({"objective": "v"}, "of objective 'v': expected a cell of 'flow'"),
    ):
        other = dataclasses.replace(evaluation, autoguidance=dataclasses.replace(evaluation.autoguidance, **changes))
        with pytest.raises(UserError, match=message):
            dataclasses.replace(run, evaluations=(other,))


def backwards(denoise, grid, index, x, memory, noise):
    return 0.5 * x, memory


def test_an_own_sampler_is_a_record():
    Sampler("halving", step=backwards, calls=2, source="0123456789ab")
    run = a_run("flow", "halving", steps=3)
    (evaluation,) = run.evaluations
    assert evaluation.sampler_source == "0123456789ab" and flops.model_calls(run, evaluation) == (6, 0)
    again = from_json(to_json(run))
    assert again == run
    plain = a_run("flow", "euler", steps=3)
    images = draw(run, lambda params, x, t, y: x)
    start = draw(dataclasses.replace(plain), lambda params, x, t, y: jnp.concatenate([0 * x, 0 * x], axis=-1))
    np.testing.assert_allclose(images, start / 8, rtol=1e-6)


def test_what_an_evaluation_leaves_alone_is_not_in_its_protocol():
    plain = Evaluation(5, "digits", 8)
    younger = {"sampler_options", "sampler_source", "cfg_interval", "autoguidance"}
    assert not younger & set(plain.declared)
    assert "cfg_interval" in dataclasses.replace(plain, cfg_scale=2.0, cfg_interval=(0.1, 1.0)).declared


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: a_run("flow", "ddpm"),
            "sampler 'ddpm' does not draw from objective 'flow': expected one of euler, heun, ",
        ),
        (
            lambda: a_run("v", "heun"),
            "sampler 'heun' does not draw from objective 'v': expected one of ddpm, ddim, dpmpp_2m",
        ),
        (lambda: a_run("flow", "hoin"), "unknown sampler 'hoin': expected one of ddpm, ddim, euler"),
        (lambda: a_run("v", "ddim", steps=300), "exactly 300 of 1000"),
        (lambda: a_run("flow", "euler", cfg_interval=(0.1, 0.5)), "cfg_interval is set, but cfg_scale is 1"),
        (lambda: a_run("flow", "euler", cfg_scale=2.0, cfg_interval=(0.5, 0.1)), "expected .low, high. with"),
        (lambda: a_run("flow", cfg_scale=2.0, cfg_interval=(0.11, 0.19)), "holds none of .* t goes from 0.1 to 1"),
        (lambda: a_run("flow", sampler_options=(("churn", 4.0),)), "sampler 'euler' has no option churn: it has none"),
        (lambda: a_run("edm", "edm", sampler_options=(("churn", -4.0),)), "churn is -4.0"),
        (
            lambda: a_run("flow", "euler_maruyama", sampler_options=(("diffusion", "none"),)),
            "expected one of sigma, kl",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_training(make, message):
    with pytest.raises(UserError, match=message):
        make()
