"""Objectives against SiT's transport and against closed forms written here in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit.config import DATASETS, DiffusionConfig, ModelConfig, Objective, ObjectiveConfig, RunConfig
from dit.design import flops
from dit.design.schedule import FLOWS, linear_schedule
from dit.diffusion import objectives
from dit.errors import UserError
from dit.train.step import build

LOSSES = [
    (path, predict, weighting)
    for path in FLOWS
    for predict, weightings in (
        ("velocity", ["none"]),
        *((p, ["none", "velocity", "likelihood"]) for p in ("noise", "score")),
    )
    for weighting in weightings
]
NAMES = {"linear": "Linear", "gvp": "GVP", "vp": "VP"}
EXAMPLES = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 4, 4, 2)), jnp.float32)
LABELS = jnp.zeros(6, jnp.int32)


def nhwc(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def stand_in(numbers):
    """The network of the reference's numbers, which knows no labels."""
    a, b, c, d = (float(number) for number in numbers)

    def model(x, t, y):
        return d * jnp.sin(a * x + b * t[:, None, None, None]) - 0.3 * c * x

    return model


def bound(name="flow", **values):
    return objectives.Objective(ObjectiveConfig(name, **values), DiffusionConfig())


def a_model(x, t, y):
    return jnp.sin(x + t[:, None, None, None]) - 0.2 * x


@pytest.mark.parametrize(("path", "predict", "weighting"), LOSSES)
def test_losses_paths_and_targets_are_sits(golden, path, predict, weighting):
    arrays = golden("flow")
    data, noise, times = nhwc(arrays["data"]), nhwc(arrays["noise"]), jnp.asarray(1 - arrays["t"])
    objective = bound(path=path, predict=predict, weighting=weighting)
    level = objective.level(objective.table(), times)
    name = NAMES[path]
    np.testing.assert_allclose(
        level.alpha * data + level.sigma * noise, nhwc(arrays[f"x_t/{name}"]), rtol=1e-5, atol=1e-5
    )
    target = objectives.flow_target(level, data, noise, predict="velocity")
    np.testing.assert_allclose(target, nhwc(arrays[f"u_t/{name}"]), rtol=1e-5, atol=1e-5)
    losses = objective.losses(stand_in(arrays["model"]), objective.table(), data, LABELS[:3], times, noise)
    key = f"loss/{name}/{predict}/{'None' if weighting == 'none' else weighting}"
    np.testing.assert_allclose(losses.loss, arrays[key], rtol=1e-5)


def test_the_golden_file_holds_no_other_loss(golden):
    assert sum(name.startswith("loss/") for name in golden("flow")) == len(LOSSES)


@pytest.mark.parametrize("weighting", ["none", "min_snr"])
@pytest.mark.parametrize("name", ["eps", "v", "x"])
def test_discrete_losses_are_their_equations(name, weighting):
    steps = np.array([0, 3, 100, 500, 900, 999])
    alpha2 = linear_schedule(DiffusionConfig()).alphas_cumprod[steps]
    alpha, sigma = np.sqrt(alpha2)[:, None, None, None], np.sqrt(1 - alpha2)[:, None, None, None]
    x, noise = np.asarray(EXAMPLES, np.float64)
    noised = alpha * x + sigma * noise
    output = np.sin(noised + steps[:, None, None, None]) - 0.2 * noised
    target = {"eps": noise, "v": alpha * noise - sigma * x, "x": x}[name]
    snr = alpha2 / (1 - alpha2)
    clipped = {"eps": np.minimum(snr, 5) / snr, "v": np.minimum(snr, 5) / (snr + 1), "x": np.minimum(snr, 5)}[name]
    weight = clipped if weighting == "min_snr" else 1.0
    expected = weight * ((target - output) ** 2).mean((1, 2, 3))
    objective = bound(name, weighting=weighting)
    losses = objective.losses(a_model, objective.table(), *map(jnp.asarray, (EXAMPLES[0], LABELS, steps, EXAMPLES[1])))
    np.testing.assert_allclose(losses.loss, expected, rtol=2e-4)  # sin of float32's 999 + x
    assert not np.any(losses.vb)


def test_noise_without_variance_is_the_papers_simple_loss():
    objective, steps = bound("eps"), jnp.asarray([0, 3, 100, 500, 900, 999])
    found = objective.losses(a_model, objective.table(), EXAMPLES[0], LABELS, steps, EXAMPLES[1])
    papers = bound("ddpm").losses(a_model, objective.table(), EXAMPLES[0], LABELS, steps, EXAMPLES[1])
    np.testing.assert_array_equal(found.loss, papers.loss)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edms_loss_is_the_weighted_error_of_its_denoiser(sigma_data):
    sigma = np.array([0.002, 0.05, 0.3, 1.0, 8.0, 80.0])
    s = sigma[:, None, None, None]
    x, noise = np.asarray(EXAMPLES, np.float64)
    noised = x + s * noise
    total = s**2 + sigma_data**2
    c_skip, c_out, c_in = sigma_data**2 / total, s * sigma_data / np.sqrt(total), 1 / np.sqrt(total)
    seen = c_in * noised
    output = np.sin(seen + np.log(s) / 4) - 0.2 * seen
    denoised = c_skip * noised + c_out * output
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    expected = weight * ((denoised - x) ** 2).mean((1, 2, 3))
    objective = bound("edm", sigma_data=sigma_data)
    times = jnp.asarray(sigma, jnp.float32)
    losses = objective.losses(a_model, objective.table(), EXAMPLES[0], LABELS, times, EXAMPLES[1])
    np.testing.assert_allclose(losses.loss, expected, rtol=1e-5)
    level = objective.level(objective.table(), times)
    at = jnp.asarray(noised, jnp.float32)
    read = objective.read(objective.raw(a_model, at, LABELS, level), at, level)
    np.testing.assert_allclose(read.image, denoised, rtol=1e-4, atol=1e-4)


ALL = [("ddpm", {}), ("eps", {}), ("v", {}), ("x", {}), ("edm", {})] + [
    ("flow", {"path": path, "predict": predict}) for path in FLOWS for predict in ("velocity", "noise", "score")
]


@pytest.mark.parametrize(("name", "values"), ALL)
def test_a_right_output_is_read_as_its_image_and_noise(name, values):
    objective = bound(name, **values)
    times = jnp.asarray(
        {"discrete": [1, 100, 400], "flow": [0.1, 0.5, 0.9], "sigma": [0.1, 1.0, 10.0]}[objective.record.process]
    )
    level, (x, noise) = objective.level(objective.table(), times), EXAMPLES[:, :3]
    target = objective._call["target"](level, x, noise, **objective.values)
    read = objective.read(target, level.alpha * x + level.sigma * noise, level)
    np.testing.assert_allclose(read.image, x, atol=2e-4)
    np.testing.assert_allclose(read.noise, noise, atol=2e-3)


@pytest.mark.parametrize("path", list(FLOWS))
def test_derivatives_of_a_path_are_its_differences(path):
    t, h = np.linspace(0.05, 0.95, 7), 1e-6
    level, above, below = (FLOWS[path](at) for at in (t, t + h, t - h))
    np.testing.assert_allclose(level.d_alpha, (above.alpha - below.alpha) / (2 * h), rtol=1e-6)
    np.testing.assert_allclose(level.d_sigma, (above.sigma - below.sigma) / (2 * h), rtol=1e-6)


def times_of(name, count=20_000, **values):
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.jit(jax.vmap(bound(name, **values).draw_time))(keys), np.float64)


def test_times_have_their_distributions():
    assert times_of("flow").mean() == pytest.approx(0.5, abs=0.01)
    logit = times_of("flow", times="logit_normal", time_mean=0.4, time_sd=0.7)
    logit = np.log(logit / (1 - logit))
    assert (logit.mean(), logit.std()) == (pytest.approx(0.4, abs=0.02), pytest.approx(0.7, abs=0.02))
    plain, shifted = times_of("flow"), times_of("flow", shift=3.0)
    np.testing.assert_allclose(shifted, 3 * plain / (1 + 2 * plain), rtol=1e-5)
    sigma = np.log(times_of("edm"))
    assert (sigma.mean(), sigma.std()) == (pytest.approx(-1.2, abs=0.04), pytest.approx(1.2, abs=0.04))
    steps = times_of("v")
    assert steps.min() == 0 and steps.max() == 999


def test_what_the_model_sees_as_time():
    seen = []

    def spy(x, t, y):
        seen.append(np.asarray(t))
        return x

    for name, times in (("flow", [0.0, 0.25, 1.0]), ("edm", [0.1, 1.0, 10.0]), ("v", [0, 500, 999])):
        objective = bound(name)
        times = jnp.asarray(times)
        objective.losses(spy, objective.table(), EXAMPLES[0, :3], LABELS[:3], times, EXAMPLES[1, :3])
    np.testing.assert_allclose(seen, [[1, 0.75, 0], np.log([0.1, 1, 10]) / 4, [0, 500, 999]], rtol=1e-5, atol=1e-6)


def a_run(name, learn_sigma, **values):
    data = DATASETS["digits"]
    model = ModelConfig("adaln", 4, 1, 8, 1, data.input_size, 1, 10, learn_sigma=learn_sigma)
    return RunConfig(model, data, steps=10, batch_size=8, objective=ObjectiveConfig(name, **values))


OWN = Objective(
    "twice_the_image",
    target=lambda level, x, noise: 2 * x,
    weight=lambda level: 1 / (1 + level.sigma**2),
    source="0123456789ab",
)


@pytest.mark.parametrize(("name", "learn_sigma"), [("flow", True), (OWN.name, False)])
def test_a_step_learns_under_every_objective(name, learn_sigma):
    program = build(a_run(name, learn_sigma))
    state, rng = program.init(), np.random.default_rng(0)
    batch = rng.standard_normal((8, 8, 8, 1), np.float32), rng.integers(0, 10, 8).astype(np.int32)
    state, metrics = program.step(state, *batch)
    assert np.isfinite(metrics.loss) and metrics.grad_norm > 0 and metrics.vb == 0


def test_an_own_objective_is_its_target_and_weight_and_is_read_back():
    run = a_run(OWN.name, False)
    assert run.objective.source == OWN.source and run.identity["objective"] == {"name": OWN.name, "source": OWN.source}
    objective = objectives.Objective(run.objective, run.diffusion)
    x, noise = EXAMPLES[:, :2]
    times = jnp.asarray([100, 700])
    level = objective.level(objective.table(), times)
    losses = objective.losses(lambda x, t, y: 0 * x, objective.table(), x, LABELS[:2], times, noise)
    expected = (4 * x**2).mean((1, 2, 3)) / (1 + np.ravel(level.sigma) ** 2)
    np.testing.assert_allclose(losses.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(objective.read(2 * x, level.alpha * x + level.sigma * noise, level).image, x, atol=1e-5)


def test_flows_cost_what_the_papers_models_cost_where_half_the_channels_are_dropped():
    papers = a_run("ddpm", True)
    assert flops.gflops(a_run("flow", True).model) == flops.gflops(papers.model)
    assert flops.gflops(a_run("flow", False).model) < flops.gflops(papers.model)


def test_only_what_is_set_enters_the_identity():
    assert "objective" not in a_run("ddpm", True).identity
    assert a_run("flow", True, path="linear", shift=1.0) == a_run("flow", True)
    assert a_run("flow", True, shift=3.0).identity["objective"] == {"name": "flow", "shift": 3.0}
    for run in (a_run("flow", True, shift=3.0), a_run("v", False, weighting="min_snr")):
        assert dataclasses.replace(run) == run and len(run.hash) == 12


@pytest.mark.parametrize(
    ("name", "learn_sigma", "values", "message"),
    [
        ("flwo", True, {}, "unknown objective 'flwo': .*did you mean 'flow'"),
        ("v", True, {}, "objective 'v' takes 1 channels .* predicts 2: build it with learn_sigma=False"),
        ("ddpm", True, {"gamma": 5.0}, "objective 'ddpm' has no gamma, .* nothing to set"),
        ("v", False, {"gamma": 3.0}, "gamma is 3, but weighting is 'none'"),
        ("v", False, {"weighting": "likelihood"}, "'likelihood' is of flows"),
        ("flow", True, {"weighting": "min_snr"}, "'min_snr' is of eps, v and x"),
        ("flow", True, {"weighting": "velocity"}, "leave it out with predict='velocity'"),
        ("flow", True, {"path": "curved"}, "unknown path 'curved': expected one of linear, gvp, vp"),
        ("flow", True, {"shift": 0.0}, "shift is 0.0: expected a number above 0"),
        ("edm", False, {"sigma_data": -1.0}, "sigma_data is -1"),
    ],
)
def test_what_does_not_go_together_is_refused(name, learn_sigma, values, message):
    with pytest.raises(UserError, match=message):
        a_run(name, learn_sigma, **values)
