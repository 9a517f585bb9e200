"""A process with everything imported and nothing begun, which forks a child for each attempt at a run: starting one takes no time.

Reads tasks from standard input, a JSON line each, and answers each with the child's exit status. A task's `stage` says where in which save
(`count`) the child kills itself as `kill -9` would; `signals` sends itself those signals at that stage instead.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

TESTS = Path(__file__).parent

STAGES = ("temporary", "data", "manifest", "half a manifest", "rename", "pruning", "half pruned")


class Zygote:
    """The process, seen from the test."""

    def __init__(self):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def attempt(self, **task):
        """Run a child to its end; its exit code, negative for a signal."""
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def serve():
    import jax

    from dit.data.batches import load_images
    from dit.design.config import RunArguments, from_json
    from dit.runs.run import execute

    load_images("digits")
    assert not jax._src.xla_bridge.backends_are_initialized(), "a child could not begin anew"
    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            arm(task)
            jax.config.update("jax_compilation_cache_dir", task["cache"])
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
            run, arguments = from_json(task["run"]), RunArguments(**task["arguments"])
            with open(task["log"], "a") as log:
                report = lambda event: (log.write(json.dumps({**event, "at": time.time()}) + "\n"), log.flush())  # noqa: E731
                state = execute(Path(task["folder"]), "chaos", run, arguments, report)
            os._exit({"done": 0, "failed": 3, "retryable": 75}[state])
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps(code), flush=True)


def arm(task):
    """Have this process die where the task says."""
    if "seconds" in task:
        threading.Timer(task["seconds"], die).start()
    if "stage" not in task:
        return
    from dit.store import manifest
    from dit.train import checkpoint

    stage, signals = task["stage"], task.get("signals", [])
    seen = []

    def here():
        """The count-th time that the process comes by."""
        seen.append(1)
        return len(seen) == task["count"]

    def stop():
        if not signals:
            die()
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(0.02)

    def before(owner, name, also=lambda *arguments: None):
        original = getattr(owner, name)

        def call(*arguments, **options):
            if here():
                also(*arguments)
                stop()
            return original(*arguments, **options)

        setattr(owner, name, call)

    def halve(folder, *_):
        largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        os.truncate(largest, largest.stat().st_size // 2)

    def half_manifest(folder, *_):
        (folder / manifest.NAME).write_text('{"schema_version": 1, "identi')

    def half_prune(folder, *_):
        shutil.rmtree(next(folder.glob("arrays")))

    match stage:
        case "temporary":
            before(checkpoint.ocp.StandardCheckpointer, "save")
        case "data":
            before(manifest, "seal", halve)
        case "manifest":
            before(manifest, "seal")
        case "half a manifest":
            before(manifest, "seal", half_manifest)
        case "rename":
            original = manifest.seal

            def seal_then_stop(*arguments):
                original(*arguments)
                if here():
                    stop()

            manifest.seal = seal_then_stop
        case "pruning":
            before(checkpoint.CheckpointWriter, "_prune")
        case "half pruned":
            rmtree = shutil.rmtree

            def call(path, **options):
                if "pruned" in str(path) and here():
                    half_prune(Path(path))
                    stop()
                rmtree(path, **options)

            checkpoint.shutil.rmtree = call


def die():
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    serve()
