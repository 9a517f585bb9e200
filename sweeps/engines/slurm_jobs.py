"""A cell's job by submitit: the script that sbatch gets, the pickle that the job runs, and the folder of both.

submitit's jobs run a pickle. A cell's holds the words of a command and turns its process into that command (`os.execvp`), whose signals,
rank and exit code are then the job's own. The pickle lies in a new folder of the user's, mode 0700, outside every study's: a study that
comes from elsewhere brings nothing that a job unpickles. The script, which Slurm keeps from submission on, looks at the folder again.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from dit.errors import UserError
from dit.store.environment import cache_folder
from sweeps.engine import STOPPED, Resources

KEPT_S = 86400.0
"""Seconds for which a job's folder stays at least: another host's sweep may have submitted it a moment ago."""
REQUEUE = f"""code=$?
if [ "$code" -eq {STOPPED} ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code\""""
"""Follows the command in the script: one that saved its cell puts the job back into the queue."""


class Refused(Exception):
    """sbatch took no job; its own words."""


@dataclass(frozen=True)
class Command:
    """What a job unpickles: calling it turns the process into the command, of which no shell sees a word."""

    words: tuple[str, ...]

    def __call__(self) -> NoReturn:
        """Become the command."""
        sys.stdout.flush()
        sys.stderr.flush()
        os.execvp(self.words[0], self.words)


def jobs_folder(study: str) -> Path:
    """Where that study's jobs have their folders: every host must see it under the same path."""
    return cache_folder().absolute() / "slurm" / study


def tidy(jobs: Path, queued: Collection[str]) -> None:
    """Remove the folders of jobs that have left the queue."""
    for folder in jobs.glob("*"):
        with contextlib.suppress(OSError):
            numbers = {path.name.partition("_")[0] for path in folder.glob("*_submission.sh")}
            if numbers.isdisjoint(queued) and time.time() - folder.stat().st_mtime > KEPT_S:
                shutil.rmtree(folder)


def submit(
    jobs: Path, words: tuple[str, ...], name: str, log: str, asked: Resources, options: Mapping[str, str]
) -> str:
    """Submit a job that runs the command, of which the first word is a Python, on each of its hosts; Slurm's number for it.

    Its files lie in a new folder in `jobs`. `options` are sbatch's long options, and win over what `asked` amounts to; `log` may hold
    Slurm's `%j`.

    Raises:
        Refused: with sbatch's own words.
        UserError: where Slurm's commands are not installed.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    jobs.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=jobs))  # the user's own
    folder.chmod(0o700)  # and without the group's bit that it may have inherited
    try:
        executor = SlurmExecutor(folder, python=shlex.quote(words[0]))
        executor.update_parameters(**_parameters(folder, name, log, asked, options))
        # sbatch's words are the error's, so they are not printed besides.
        with contextlib.redirect_stderr(io.StringIO()):
            return executor.submit(Command(words)).job_id
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, FailedJobError | FailedSubmissionError):
            raise Refused(str(error)) from error
        if isinstance(error, FileNotFoundError | RuntimeError):  # no sbatch, no srun
            raise UserError(
                f"no sbatch or srun on this machine ({error}): run --engine slurm on a login node"
            ) from error
        raise


def _parameters(folder: Path, name: str, log: str, asked: Resources, options: Mapping[str, str]) -> dict[str, Any]:
    """submitit's parameters; what it would choose itself (5 minutes, a wckey, USR2) is left out or replaced."""
    place = shlex.quote(str(folder))
    own = {"output": log, "ntasks": str(asked.hosts)} | ({} if "no-requeue" in options else {"requeue": ""})
    chosen = own | {option.replace("-", "_"): value for option, value in options.items()}
    return {
        "job_name": _escaped(name),
        "nodes": asked.hosts,
        "ntasks_per_node": 1,
        "cpus_per_task": asked.cpus_per_host,
        "gres": f"gpu:{asked.chips_per_host}" if asked.chips_per_host else None,
        "mem": f"{round(asked.memory_gb * 1024)}M" if asked.memory_gb else None,
        "time": None,
        "wckey": None,
        "stderr_to_stdout": True,
        "additional_parameters": {option: _escaped(value) or True for option, value in chosen.items()},
        "srun_args": [
            "--kill-on-bad-exit=1",
            f"--cpus-per-task={asked.cpus_per_host}",
            f"--output={log}",
            "--open-mode=append",
        ],
        "setup": [
            "export PYTHONSAFEPATH=1",
            f"""if [ "$(stat -c '%u %a' {place})" != "$(id -u) 700" ]; then""",
            f"  echo {shlex.quote(f'{folder} is not a folder of yours with mode 0700')}",
            "  exit 2",
            "fi",
        ],
        "teardown": REQUEUE.splitlines(),
    }


def _escaped(value: str) -> str:
    """For a line `#SBATCH`, in which a backslash is special within quotes too."""
    return value.replace("\\", "\\\\")


def is_one_line(value: str) -> bool:
    """Whether a line `#SBATCH` can hold it."""
    return not re.search(r"[\x00-\x1f\x7f]", value)
