"""`dit worker`, made to die, to hang, or to live in another hour at a chosen point; the product knows nothing of it.

    python tests/crashing_worker.py [--crash WHERE:WHEN:N] [--step-log FILE] [--fake] [--hour-ahead] <arguments of dit worker>
    python tests/crashing_worker.py --nursery

WHERE is `claim`, `status`, `row`, `evaluation`, `samples`, `checkpoint`, `average` or `drawn`: the N-th such file, or row, of this process.
WHEN is `before` or `after` it appears under its name, or `torn`: half a row is written. With --fake a cell is arithmetic instead of
training: the same files in the same order under the same fence, without JAX. A step log has a line for each dispatch of training steps. A
nursery imports everything once and forks a worker for each line of arguments (a JSON list) on standard input, telling its process number
and then, a line each, which of them ended and how.
"""

import dataclasses
import functools
import hashlib
import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path

from dit import cli
from dit.design.rows import score_row
from dit.store import study as store
from dit.store.lease import Stopped
from dit.store.study import MetricsWriter, RunStore, write_json

LISTENERS = []
"""Told of each step of arithmetic, and when it began and ended."""
STEP_S = float(os.environ.get("FAKE_STEP_S", "0.001"))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def place_of(target):
    """What kind of file that is, by its final path."""
    path = Path(target)
    if path.parent.name == "attempts" and path.stem.isdecimal():
        return "claim"
    if path.name == "status.json":
        return "status"
    kinds = {
        "evals": "evaluation",
        "samples": "samples",
        "checkpoints": "checkpoint",
        "ema": "average",
        "drawn": "drawn",
    }
    return kinds.get(path.parent.name, "") if not path.name.startswith(".") else ""


def crash(where, when, number):
    """Arrange the death."""
    seen = 0

    def count():
        nonlocal seen
        seen += 1
        return seen == number

    def around(function):
        def call(source, target, *rest, **named):
            here = place_of(target) == where and count()
            if here and when == "before":
                die()
            result = function(source, target, *rest, **named)
            if here:
                die()
            return result

        return call

    if where == "row":
        write = MetricsWriter.write

        def torn(writer, row):
            here = count()
            if here and when == "torn":
                line = json.dumps(row).encode()
                writer._file.write(line[: len(line) // 2])
            if here and when != "after":
                die()
            write(writer, row)
            if here:
                die()

        MetricsWriter.write = torn
    elif where == "claim":
        os.link = around(os.link)
    else:
        os.replace, os.rename = around(os.replace), around(os.rename)
    if where == "drawn":
        from dit.score import kept_samples

        kept_samples.SAVE_EVERY_S = 0.0  # after every batch


def log_steps(place):
    """Write down, by the system's monotonic clock, each claim as ["claim", at] and each dispatch of steps as [last step, from, to].

    A dispatch lasts from the end of the one before it, or from its own beginning where it is the first of its loop. Nothing
    waits for it: a thread of its own sees the steps end.
    """
    import jax

    import dit.runs.run
    from dit.train.step import Advance

    build, train, link = dit.runs.run.build, dit.runs.run.train, os.link
    log = open(place, "a", buffering=1)  # noqa: SIM115  # to this process's end
    flying = queue.SimpleQueue()
    loops = []

    def watch():
        ended = 0.0
        while True:
            step, began, is_first, metrics = flying.get()
            jax.block_until_ready(metrics)
            began, ended = began if is_first else ended, time.monotonic()
            log.write(json.dumps([step, began, ended]) + "\n")

    class Logged(Advance):
        def compile(self, *arguments):
            self.flat.advance.compile(*arguments)

    def logged(advance, length):
        def call(leaves, *batch):
            began = time.monotonic()
            leaves, metrics = advance.flat(leaves, *batch)
            is_first = loops[-1][1]
            loops[-1] = (loops[-1][0] + (length or len(batch[0])), False)
            flying.put((loops[-1][0], began, is_first, metrics))
            return leaves, metrics

        call.advance = advance
        return Logged(call)

    def build_logged(*arguments):
        program = build(*arguments)
        return dataclasses.replace(program, step=logged(program.step, 1), steps=logged(program.steps, None))

    def train_logged(program, state, *arguments, **options):
        loops.append((int(state.step), True))
        return train(program, state, *arguments, **options)

    def link_logged(source, target, **options):
        link(source, target, **options)
        if place_of(target) == "claim":
            log.write(json.dumps(["claim", time.monotonic()]) + "\n")

    threading.Thread(target=watch, daemon=True).start()
    dit.runs.run.build, dit.runs.run.train, os.link = build_logged, train_logged, link_logged
    LISTENERS.append(lambda *step: log.write(json.dumps(step) + "\n"))


def fake_execute(folder, study, run, arguments, report, lease):
    """Arithmetic in the place of training; everything else as a run does it."""
    record = RunStore(folder, run, lease.check)
    with lease:
        record.create()
        saved = sorted((record.path / "checkpoints").glob("[0-9]*.json"))
        step, state = json.loads(saved[-1].read_text()) if saved else (0, "")
        progress = {"step": step, "attempt": lease.token}
        record.set_status(store.RUNNING, **progress)
        metrics = record.metrics_writer(lease.token)
        stops = {e.step for e in run.evaluations} | set(range(0, run.steps, arguments.checkpoint_every)) | {run.steps}
        spent = 0.0
        try:
            _evaluate(record, study, run, step, state)
            while step < run.steps:
                began = time.monotonic()
                step, state = step + 1, hashlib.sha256(f"{state}{run.seed}{step}".encode()).hexdigest()
                time.sleep(STEP_S)
                ended = time.monotonic()
                spent += ended - began
                for told in LISTENERS:
                    told(step, began, ended)
                if os.environ.get("FAKE_HANG") == str(step):
                    time.sleep(3600)
                if step % arguments.log_every == 0:
                    rate, spent = run.batch_size * arguments.log_every / spent, 0.0
                    row = {"step": step, "loss": _number(state), "images_per_s": rate}
                    metrics.write(row)
                    lease.note(step=step, loss=row["loss"])
                    report({"event": "step", **row})
                if step in stops or lease.stop:
                    metrics.sync()  # no checkpoint lies beyond the rows before it
                    write_json(record.path / "checkpoints" / f"{step:08d}.json", [step, state], lease.check)
                    progress["step"] = step
                    record.set_status(store.RUNNING, metrics.end, **progress)
                    if lease.stop:
                        raise Stopped
                    _evaluate(record, study, run, step, state)
        except Stopped:
            record.set_status(store.RETRYABLE, **progress, reason=lease.stop)
            lease.end(lease.stop)
            return store.RETRYABLE
        metrics.close()
        record.set_status(store.DONE, metrics.end, **progress)
        lease.end(store.DONE)
        return store.DONE


def _evaluate(record, study, run, step, state):
    for evaluation in record.missing_evaluations():
        if evaluation.step == step:
            row = score_row(run, study, evaluation, {evaluation.metric: 100 * _number(state)}, "p" * 12)
            protocol = {"features": evaluation.features, "num_samples": evaluation.num_samples}
            value = {"schema_version": 1, "row": row, "protocol": protocol, "floor": 1.0}
            write_json(record.evaluation_path(evaluation), value, record.fence)


def _later(now):
    return now() + 3600


def _number(state):
    return int(state[:8], 16) / 2**32


def main(argv):
    """Arrange what the options ask for, then work."""
    while argv and argv[0] in ("--crash", "--step-log", "--fake", "--hour-ahead"):
        option = argv.pop(0)
        if option == "--crash":
            where, when, number = argv.pop(0).split(":")
            crash(where, when, int(number))
        elif option == "--step-log":
            log_steps(argv.pop(0))
        elif option == "--fake":
            import sweeps.worker

            sweeps.worker.prepare = lambda: fake_execute
        else:
            time.time = functools.partial(_later, time.time)
    return cli.main(["worker", *argv])


def nursery():
    """Fork workers that need not import anything, until standard input closes."""
    import dit.runs.run
    import dit.score.scoring  # noqa: F401
    from dit.data.batches import load_images

    load_images("digits")  # which imports much

    def reap():
        while True:
            try:
                pid, status = os.wait()
            except ChildProcessError:
                time.sleep(0.01)
                continue
            print(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}), flush=True)

    reaping = False
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            work_as_child(json.loads(line))
        print(json.dumps({"started": pid}), flush=True)
        if not reaping:
            threading.Thread(target=reap, daemon=True).start()
            reaping = True
    os.kill(0, signal.SIGKILL)


def work_as_child(argv):
    """What a forked worker does, to its end."""
    log = os.open(argv.pop(0), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        code = main(argv)
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1:] == ["--nursery"]:
        nursery()
    else:
        sys.exit(main(sys.argv[1:]))
