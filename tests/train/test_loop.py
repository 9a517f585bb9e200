"""The loop: what is dispatched when, several steps at once, what the guard does, and how speed is reported."""

import dataclasses

import jax
import numpy as np
import pytest

from dit.data.batches import ImageDataset, load_images
from dit.design.config import (
    DATASETS,
    Evaluation,
    Guard,
    ModelConfig,
    OptimConfig,
    RunArguments,
    RunConfig,
    model_config,
)
from dit.design.flops import macs
from dit.errors import UserError
from dit.train import loop
from dit.train.loop import Dispatch, Diverged, GradientSpike, dispatches, steps_per_dispatch, train
from dit.train.optim import TOGETHER, adamw, gradient_norm, level_before
from dit.train.step import Advance, build
from dit.train.throughput import TIMINGS, Meter, peak_flops, utilisation

MODEL = ModelConfig("adaln", 4, depth=1, hidden_size=16, num_heads=2, input_size=8, in_channels=1, num_classes=10)
RUN = RunConfig(MODEL, DATASETS["digits"], steps=40, batch_size=8, optim=OptimConfig(learning_rate=1e-3))
DATA = ImageDataset(*load_images("digits"), 8, 0)


class Scaled:
    """Images of which one step's are scaled, or no numbers."""

    def __init__(self, at, by):
        self.at, self.by = at, by

    def batch(self, step):
        images, labels = DATA.batch(step)
        return images * np.float32(self.by if step == self.at else 1), labels


@pytest.fixture(scope="module")
def program():
    return build(RUN)


def run_to(program, stop, data=DATA, block=10, **how):
    rows = []
    state = train(program, program.init(), data, stop, block, rows.append, **how)
    return jax.device_get(state), rows


def assert_same_bits(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def without_timings(rows):
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows]


def test_several_steps_at_once_are_bit_for_bit_the_steps_one_by_one(program):
    one, rows = run_to(program, 25)
    for length in (5, 10, 4):
        several, others = run_to(program, 25, length=length)
        assert_same_bits(several, one)
        assert without_timings(others) == without_timings(rows)


def test_dispatches_stay_at_multiples_and_never_cross_the_stop():
    assert list(dispatches(0, 7, 3)) == [Dispatch(0, 3), Dispatch(3, 3), Dispatch(6, 1)]
    assert list(dispatches(2, 7, 3)) == [Dispatch(2, 1), Dispatch(3, 3), Dispatch(6, 1)]
    assert list(dispatches(4, 4, 3)) == []


def test_short_steps_go_several_at_once_and_long_ones_alone():
    nano = RunConfig(model_config("adaln", "S", 4, DATASETS["digits"], "nano"), DATASETS["digits"], 4000, 8)
    xl = RunConfig(model_config("adaln", "XL", 2, DATASETS["imagenet256"]), DATASETS["imagenet256"], 4000)
    arguments = RunArguments(log_every=50, checkpoint_every=1000)
    assert steps_per_dispatch(nano, arguments, "cpu") == 10
    assert steps_per_dispatch(xl, arguments, "cpu") == steps_per_dispatch(xl, arguments, "tpu") == 1
    at_seven = dataclasses.replace(nano, evaluations=(Evaluation(7, "digits", 8),))
    assert steps_per_dispatch(at_seven, arguments, "cpu") == 1
    assert steps_per_dispatch(nano, dataclasses.replace(arguments, log_every=8), "cpu") == 8
    assert steps_per_dispatch(nano, dataclasses.replace(arguments, steps_per_dispatch=3), "cpu") == 2
    with pytest.raises(UserError, match="steps_per_dispatch is -1"):
        RunArguments(steps_per_dispatch=-1)


def test_the_host_never_waits_for_what_it_has_just_dispatched(program, monkeypatch):
    events = []

    class Watched:
        def batch(self, step):
            events.append(("batch", step))
            return DATA.batch(step)

    class Step(Advance):
        def compile(self, *arguments):
            program.step.compile(*arguments)

    def step(leaves, images, labels):
        events.append(("step", sum(name == "step" for name, _ in events)))
        return program.step.flat(leaves, images, labels)

    def of_metrics(name, real):
        def record(value):
            events.append((name, None))
            return real(value)

        return record

    fetch, wait = jax.device_get, jax.block_until_ready
    monkeypatch.setattr(loop.jax, "device_get", of_metrics("fetch", fetch))
    monkeypatch.setattr(loop.jax, "block_until_ready", of_metrics("wait", wait))
    train(dataclasses.replace(program, step=Step(step)), program.init(), Watched(), 12, 3, lambda row: None)
    order = [event for event in events if event[0] in ("step", "fetch")]
    for block in (3, 6, 9):  # a block's metrics are fetched after the next block's first step has been dispatched
        assert order.index(("step", block)) < [i for i, e in enumerate(order) if e[0] == "fetch"][block // 3 - 1]
    for number in range(11):  # the next batch was ready before this step went out
        assert events.index(("batch", number + 1)) < events.index(("step", number))
    waits = [i for i, event in enumerate(events) if event[0] == "wait"]
    assert sum(i > events.index(("step", 1)) for i in waits) == 12 - loop.IN_FLIGHT
    first_waits = [events[i - 1] for i in waits[1:]]
    assert all(event[0] in ("batch", "step", "fetch") for event in first_waits)


def test_an_interrupted_loop_ends_between_dispatches_and_the_next_one_takes_its_steps_into_its_row(program):
    asked, carried, rows = [], [], []
    state = train(
        program, program.init(), DATA, 30, 10, rows.append,
        length=5, interrupted=lambda step: asked.append(step) or step >= 15, carried=carried,
    )  # fmt: skip
    assert int(state.step) == 15 and asked == [0, 5, 10, 15]
    assert [row["step"] for row in rows] == [10] and len(carried) == 1
    state = train(program, state, DATA, 30, 10, rows.append, length=5, carried=carried)
    whole, expected = run_to(program, 30)
    assert_same_bits(jax.device_get(state), whole)
    assert without_timings(rows) == without_timings(expected)


def test_the_gradients_level_is_its_running_root_mean_square_before_the_step():
    optim = OptimConfig(b2=0.9)
    optimizer, params = adamw(optim), {"w": np.zeros(3, np.float32)}
    state, squares = optimizer.init(params), 0.0
    for step, scale in enumerate((1.0, 2.0, 3.0, 3e8)):  # the last one's square leaves no digit of the others
        gradient = {"w": np.float32(scale) * np.array([1.0, 2.0, 2.0], np.float32)}
        _, state = optimizer.update(gradient, state, params)
        norm = gradient_norm(gradient, together=True)
        level = float(level_before(state, norm, optim))
        if scale == 3e8:
            assert norm > 1000 * level
        else:
            before = np.sqrt(squares / (1 - 0.9**step)) if step else np.inf
            assert level == pytest.approx(before, rel=1e-5)
        squares = 0.9 * squares + 0.1 * (3 * scale) ** 2


def test_the_gradients_norm_is_that_of_all_its_elements_small_arrays_and_large():
    shapes = ((3,), (2, 5), (TOGETHER + 1,), (), (4, 1, 2))
    gradients = [
        np.random.default_rng(seed).standard_normal(shape).astype(np.float32) for seed, shape in enumerate(shapes)
    ]
    for together in (True, False):
        for leaves in (gradients, gradients[:2], gradients[2:3]):
            found = float(gradient_norm(leaves, together))
            assert found == pytest.approx(np.sqrt(sum((np.float64(leaf) ** 2).sum() for leaf in leaves)), rel=1e-6)


def damaged(state):
    """Its last layer a hundred times too large, as after a bad update: the loss leaps, and the gradient with it."""
    state = jax.tree.map(jax.numpy.asarray, state)
    kernel = state.params["final_layer"]["linear"]["kernel"]
    kernel[...] = kernel[...] * 100.0
    return state


def test_skipped_steps_leave_everything_but_the_count(program):
    guarded = build(dataclasses.replace(RUN, guard=Guard(nonfinite="skip", spike="skip")))
    calm, rows = run_to(guarded, 20)
    assert [row["skipped"] for row in rows] == [0, 0]
    unguarded = [row["loss"] for row in run_to(program, 20)[1]]
    assert [row["loss"] for row in rows] == pytest.approx(unguarded, rel=1e-5)  # another program: other roundings
    for start, data, spikes in ((calm, Scaled(20, np.nan), 0), (jax.device_get(damaged(calm)), DATA, 1)):
        rows = []
        state = jax.tree.map(jax.numpy.asarray, start)
        after = train(guarded, state, data, 21, 10, rows.append)
        assert (rows[-1]["skipped"], rows[-1]["spikes"], rows[-1]["loss"]) == (1, spikes, None)  # a mean of no step
        assert int(after.step) == 21
        assert_same_bits(jax.device_get(after)._replace(step=start.step), start)
    whole, rows = run_to(guarded, 30, Scaled(23, np.nan))
    assert rows[-1]["skipped"] == 1 and np.isfinite(rows[-1]["loss"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(whole))


def test_a_spike_is_logged_by_default_and_stops_where_asked(program):
    calm, rows = run_to(program, 30)
    assert [(row["spikes"], row["skipped"]) for row in rows] == [(0, 0)] * 3
    rows = []
    train(program, damaged(calm), DATA, 31, 10, rows.append)
    assert (rows[-1]["spikes"], rows[-1]["skipped"]) == (1, 0) and rows[-1]["loss"] > 10
    strict = build(dataclasses.replace(RUN, guard=Guard(spike="stop")))
    message = r"spike at step 31: gradient norm .* over 10 times its running level"
    with pytest.raises(GradientSpike, match=message) as error:
        train(strict, damaged(calm), DATA, 40, 5, rows.append)
    assert isinstance(error.value, Diverged) and error.value.step == 31


def test_a_spike_factor_that_every_step_exceeds_is_refused():
    for factor in (1.0, float("nan")):
        with pytest.raises(UserError, match=r"spike_factor is .*: expected a number above 1"):
            Guard(spike_factor=factor)


class Chip:
    def __init__(self, device_kind):
        self.device_kind = device_kind


def test_utilisation_counts_two_operations_and_three_passes_and_is_unknown_rather_than_guessed():
    run = RunConfig(
        model_config("adaln_zero", "XL", 2, DATASETS["imagenet256"]),
        DATASETS["imagenet256"],
        1,
        precision="bfloat16",
    )
    paper = utilisation(run, 5.7 * 256, [Chip("TPU v3")] * 256)  # v3-256, 5.7 steps a second (Sec. 5 of the paper)
    assert paper == pytest.approx(2 * 3 * macs(run.model) * 5.7 * 256 / (128 * 123e12), rel=1e-9)
    assert paper == pytest.approx(0.066, abs=5e-4)
    assert utilisation(run, 600.0, [Chip("NVIDIA H200")]) == pytest.approx(0.432, abs=1e-3)
    assert utilisation(run, 600.0, [Chip("NVIDIA H200"), Chip("abacus")]) == "unknown"
    assert utilisation(dataclasses.replace(run, precision="float32"), 600.0, [Chip("TPU v4")]) == "unknown"
    assert peak_flops("cpu", "float32") is None


def test_rows_say_how_fast_training_is_and_what_share_of_the_time_it_got(program, monkeypatch):
    now = [100.0]
    with monkeypatch.context() as patch:
        patch.setattr("dit.train.throughput.time.perf_counter", lambda: now[0])
        meter = Meter(RUN, [Chip("cpu")])

        class Slow:
            def compile(self, leaves, images, labels):
                now[0] += 3.0

        assert meter.compile(Slow(), [], (None, None)) == 3.0
        now[0] = 110.0
        row = meter.columns(
            steps=12, done=10, timed=9, seconds=4.5, first_s=0.5
        )  # two of the steps were an earlier attempt's
        assert row == {
            "images_per_s": 9 * 8 / 4.5,
            "mfu": "unknown",
            "step_s": pytest.approx(6.0),
            "compile_s": 3.0,
            "elapsed_s": 10.0,
            "goodput": pytest.approx(0.5),
        }
        now[0] = 120.0
        assert meter.columns(20, 20, 20, seconds=10.0, first_s=0.0)["goodput"] == pytest.approx(0.75)
        alone = meter.columns(steps=1, done=1, timed=0, seconds=1.0, first_s=2.0)
        assert (alone["images_per_s"], alone["mfu"], alone["step_s"]) == (None, None, 2.0)
    _, rows = run_to(program, 20)
    assert set(TIMINGS) <= rows[0].keys() and rows[0]["mfu"] == "unknown"
