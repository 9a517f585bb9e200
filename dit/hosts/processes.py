"""What the processes of one run tell each other: word from the first to the others, with a deadline on every wait.

It goes through the coordination service that JAX's processes keep, never through the devices: a collective has no deadline, and none may
be issued by a background thread while a step runs. A process that does not come is named. Process 0 leads: it alone writes files.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import orbax.checkpoint as ocp
from jax.errors import JaxRuntimeError

from dit.errors import UserError

DEADLINE_S = 600.0
"""Seconds that one process waits for another, in which process 0 may have to verify a large checkpoint."""
SHARES_S = 24 * 3600.0
"""The same between processes that each do a share of a long work, such as drawing samples. One that dies is noticed within minutes."""

T = TypeVar("T")

_scopes = itertools.count()


class Absent(RuntimeError):
    """A process that was waited for did not come in time. The process that meets this must end: the group is broken."""


class Processes:
    """The processes that carry out one run together, as this one sees them. Every process makes its calls in the same order."""

    def __init__(self, deadline_s: float = DEADLINE_S):
        self.index, self.count, self.deadline_s = jax.process_index(), jax.process_count(), deadline_s
        self._scope, self._asked = f"dit/{next(_scopes)}", Counter[str]()

    @property
    def leads(self) -> bool:
        """Whether this is process 0."""
        return self.index == 0

    def tell(self, name: str, value: Any, patiently: bool = False) -> Any:
        """Process 0's value (JSON) in every process; what the others pass is not looked at.

        They wait until the deadline, or `patiently`, as long as process 0 lives: JAX ends them when it is lost.

        Raises:
            Absent: if process 0 says nothing until the deadline.
        """
        if self.count == 1:
            return value
        key = self._key(name)
        if self.leads:
            ocp.multihost.get_jax_distributed_client().key_value_set(key, json.dumps(value))
            return json.loads(json.dumps(value))
        while patiently:
            with contextlib.suppress(Absent):
                return self._hear(key, 0, name, self.deadline_s)
        return self._hear(key, 0, name, self.deadline_s)

    def agree(self, name: str, problem: str | None) -> None:
        """Go on only if no process has a problem.

        Raises:
            UserError: in every process, with the first problem that one of them has.
            Absent: if a process says nothing until the deadline.
        """
        if self.count > 1:
            key, until = self._key(name), time.monotonic() + self.deadline_s
            if self.leads:
                said = [self._hear(f"{key}/{i}", i, name, until - time.monotonic()) for i in range(1, self.count)]
                problem = next((one for one in [problem, *said] if one is not None), None)
            else:
                ocp.multihost.get_jax_distributed_client().key_value_set(f"{key}/{self.index}", json.dumps(problem))
            problem = self.tell(f"{name} (all)", problem)
        if problem is not None:
            raise UserError(problem)

    def together(self, name: str, do: Callable[[], T]) -> T:
        """What `do` gives here, once every process has come through it; what one refuses is refused in all.

        Raises:
            UserError: as `agree`.
            Absent: if a process is not through by the deadline.
        """
        done, refusal = None, None
        try:
            done = do()
        except UserError as error:
            refusal = error
        try:
            self.agree(name, None if refusal is None else str(refusal))
        except UserError as error:
            raise error from refusal
        return cast(T, done)

    def meet(self, name: str) -> None:
        """Return once every process has come here.

        Raises:
            Absent: naming those that have not by the deadline.
        """
        if self.count == 1:
            return
        try:
            ocp.multihost.get_jax_distributed_client().wait_at_barrier(self._key(name), int(1000 * self.deadline_s))
        except JaxRuntimeError as error:
            if (missing := absentees(error)) is None:
                raise
            raise Absent(
                f"process {missing} of {self.count} did not come to '{name}' within {self.deadline_s:g} s"
            ) from error

    def options(self, name: str) -> dict[str, Any]:
        """What makes Orbax wait in the coordination service, with this deadline, rather than in collectives without one."""
        if self.count == 1:
            return {}
        everyone = set(range(self.count))
        return {
            "multiprocessing_options": ocp.options.MultiprocessingOptions(
                0, everyone, self._key(name).replace("/", "-")
            ),
            "async_options": ocp.options.AsyncOptions(
                timeout_secs=int(self.deadline_s), create_directories_asynchronously=False
            ),
        }

    def _key(self, name: str) -> str:
        self._asked[name] += 1
        return f"{self._scope}/{name}/{self._asked[name]}"

    def _hear(self, key: str, process: int, name: str, seconds: float) -> Any:
        milliseconds = max(1, int(1000 * seconds))
        try:
            return json.loads(ocp.multihost.get_jax_distributed_client().blocking_key_value_get(key, milliseconds))
        except JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            raise Absent(
                f"process {process} of {self.count} did not come to '{name}' within {self.deadline_s:g} s"
            ) from error


def is_severed(error: BaseException) -> bool:
    """Whether the error is one by which the loss of another process shows in a collective; memory that ran out is not."""
    return isinstance(error, JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error)


def absentees(error: BaseException) -> str | None:
    """The processes that a barrier of the coordination service gave up on, if that is what the error, or its cause, tells."""
    while error is not None:
        found = re.search(r"timed out task names:\s*((?:\d+\s+)+)", f"{error}\n")
        if isinstance(error, JaxRuntimeError) and found:
            return ", ".join(found.group(1).split())
        error = error.__cause__  # type: ignore[assignment]
    return None
