"""Who the processes of a run are, from flags and from the environments of what starts them. Two real ones meet in test_mesh."""

import pytest

from dit.errors import UserError
from dit.hosts.distributed import Group, detect, part, start

SLURM = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_STEP_NODELIST": "gpu[003-006,9],cpu1"}


def test_a_process_without_any_sign_of_others_is_alone():
    assert detect({}) is None
    assert detect({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None
    assert detect({"SLURM_NTASKS": "4"}) is None  # inside sbatch, outside srun
    assert detect({"TPU_WORKER_HOSTNAMES": "localhost"}) is None
    assert start() == 1


@pytest.mark.parametrize(
    ("environment", "group"),
    [
        (
            {"DIT_COORDINATOR": "10.0.0.1:99", "DIT_NUM_PROCESSES": "2", "DIT_PROCESS_ID": "1"},
            Group("DIT_* variables", "10.0.0.1:99", 2, 1),
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            Group("JAX_* variables", "h:1", 2, 0),
        ),
        (SLURM, Group("Slurm", "gpu003:12398", 4, 2)),
        ({**SLURM, "SLURM_STEP_NODELIST": "n7", "SLURM_STEP_NUM_TASKS": "3"}, Group("Slurm", "n7:12398", 3, 2)),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, Group("TPU pod")),
    ],
)
def test_each_environment_names_its_processes(environment, group):
    assert detect(environment) == group


def test_flags_come_before_variables_and_variables_before_slurm():
    flags = Group("flags", "h:1", 2, 0)
    given = {"DIT_COORDINATOR": "g:2", "DIT_NUM_PROCESSES": "3", "DIT_PROCESS_ID": "1"}
    assert detect({**SLURM, **given}, flags) == flags
    assert detect({**SLURM, **given}).coordinator == "g:2"


@pytest.mark.parametrize(
    ("environment", "flags", "message"),
    [
        ({"DIT_COORDINATOR": "h:1"}, None, "DIT_COORDINATOR without DIT_NUM_PROCESSES and DIT_PROCESS_ID"),
        (
            {"DIT_COORDINATOR": "h:1", "DIT_NUM_PROCESSES": "two", "DIT_PROCESS_ID": "0"},
            None,
            "DIT_NUM_PROCESSES is 'two'",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "h:1"},
            None,
            "JAX_COORDINATOR_ADDRESS without JAX_NUM_PROCESSES and JAX_PROCESS_ID",
        ),
        ({}, Group("flags", "h:1", 2, None), "go together"),
        ({}, Group("flags", "h", 2, 0), "coordinator 'h': expected HOST:PORT"),
        ({}, Group("flags", "h:1", 2, 2), "process 2 of 2: expected a number from 0 to 1"),
        ({**SLURM, "SLURM_STEP_NODELIST": ""}, None, "names no host"),
    ],
)
def test_half_a_description_is_refused_in_one_line(environment, flags, message):
    with pytest.raises(UserError, match=message) as error:
        detect(environment, flags)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (SLURM, (2, 4)),
        ({"DIT_COORDINATOR": "h:1", "DIT_NUM_PROCESSES": "3", "DIT_PROCESS_ID": "1"}, (1, 3)),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1,t2,t3", "TPU_WORKER_ID": "3"}, (3, 4)),
    ],
)
def test_a_part_of_the_work_is_known_without_a_connection(environment, expected):
    assert part(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "no other processes are to be found"),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, "does not say which of its hosts"),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1", "TPU_WORKER_ID": "one"}, "TPU_WORKER_ID is 'one'"),
        (
            {"MEGASCALE_COORDINATOR_ADDRESS": "h", "TPU_WORKER_HOSTNAMES": "t0,t1", "TPU_WORKER_ID": "0"},
            "give --process",
        ),
    ],
)
def test_a_part_that_nobody_names_is_refused(environment, message):
    with pytest.raises(UserError, match=message):
        part(environment)
