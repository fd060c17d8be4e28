"""What the environment says about the other processes of a run."""

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.core.launchers import ADDRESS, COUNT, INDEX, Place, find_place

GIVEN = {ADDRESS: "10.0.0.1:1234", COUNT: "4", INDEX: "3"}
SLURM = {
    "SLURM_JOB_ID": "4099",
    "SLURM_STEP_NODELIST": "node[001-004]",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
KUBERNETES = {"TPU_WORKER_HOSTNAMES": "host-0,host-1", "TPU_WORKER_ID": "1"}
SLICES = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "host-0"}

ALONE = {
    "nothing is said": ({}, False),
    "one process": ({COUNT: "1"}, False),
    "one process of a slice": ({COUNT: "1"}, True),
    "one process of a job": ({COUNT: "1", **SLURM}, False),
    "chips without metadata": ({"TPU_SKIP_MDS_QUERY": "1"}, True),
    "a job of one task": ({**SLURM, "SLURM_NTASKS": "1"}, False),
    # What `salloc` leaves in a shell: the size of the job, and no place in it.
    "an allocation": ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, False),
}


@pytest.mark.parametrize("case", ALONE)
def test_a_process_on_its_own(case):
    environment, on_tpu = ALONE[case]
    assert find_place(environment, on_tpu) is None


@pytest.mark.parametrize("environment", [{}, KUBERNETES, {**KUBERNETES, **SLICES}])
def test_a_cloud_tpu_knows_its_place(environment):
    assert find_place(environment, on_tpu=True) == Place()


@pytest.mark.parametrize("on_tpu", [False, True])
def test_a_place_that_was_given(on_tpu):
    assert find_place(GIVEN, on_tpu) == Place("10.0.0.1:1234", 4, 3)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-015],host2", "node001"),
        ("node[003,007-015],host2", "node003"),
        ("rack-a[07]", "rack-a07"),
        ("node[1-4]-ib,host2", "node1-ib"),
    ],
)
def test_slurm(nodes, host):
    # The port follows from the number of the job: 61440 + 4099 mod 4096.
    assert find_place({**SLURM, "SLURM_STEP_NODELIST": nodes}) == Place(f"{host}:61443", 4, 2)


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("1531576320.0;tcp://10.96.0.1,10.148.0.1:34911", "10.96.0.1:62624"),
        ("1531576320.0;tcp://10.96.0.1:34911", "10.96.0.1:62624"),
        ("1314521088.0;tcp6://[fe80::b9b:ac5d,2620:10d::2]:43370", "[fe80::b9b:ac5d]:62880"),
    ],
)
def test_open_mpi(uri, address):
    assert find_place({**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": uri}) == Place(address, 2, 1)


def test_several_processes_share_a_machine():
    shared = {**SLURM, "SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "1"}
    assert find_place(shared).devices == (1,)
    assert find_place({**shared, "CUDA_VISIBLE_DEVICES": "0,1"}).devices == (1,)
    # `--gpus-per-task=1` has divided them.
    assert find_place({**shared, "CUDA_VISIBLE_DEVICES": "1"}).devices is None
    assert find_place(SLURM).devices is None
    assert find_place({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}).devices == (0,)


def test_what_is_given_completes_what_a_launcher_says():
    five = {name: value for name, value in OPEN_MPI.items() if name != "OMPI_MCA_orte_hnp_uri"}
    assert find_place({**five, ADDRESS: "a:1"}) == Place("a:1", 2, 1)
    assert find_place({**SLURM, ADDRESS: "a:1"}) == Place("a:1", 4, 2)
    assert find_place({**SLURM, COUNT: "4", INDEX: "2"}) == Place("node001:61443", 4, 2)
    assert find_place({**SLURM, "JAX_COORDINATOR_PORT": "77"}).address == "node001:77"


WRONG = {
    "a count alone": ({COUNT: "2"}, f"{COUNT} is set, and so must be {ADDRESS} and {INDEX}"),
    "no index": ({ADDRESS: "a:1", COUNT: "2"}, f"{ADDRESS}, {COUNT} are set, and so must be {INDEX}"),
    "no number": ({**GIVEN, COUNT: "two"}, f"{COUNT} is 'two'"),
    "an index too large": ({**GIVEN, INDEX: "4"}, "from 0 to 3"),
    "an index too small": ({**GIVEN, INDEX: "-1"}, f"{INDEX} is '-1'"),
    "no port": ({**GIVEN, ADDRESS: "10.0.0.1"}, f"{ADDRESS} is '10.0.0.1'; it must be host:port"),
    "another count than Slurm's": ({**SLURM, COUNT: "8"}, f"{COUNT} is 8 and SLURM_NTASKS is 4; unset one"),
    "another index than Slurm's": ({**SLURM, INDEX: "0"}, f"{INDEX} is 0 and SLURM_PROCID is 2; unset one"),
    "no list of nodes": (
        {**SLURM, "SLURM_STEP_NODELIST": ""},
        f"SLURM_NTASKS and SLURM_PROCID are set, and so must be {ADDRESS}",
    ),
    "no job": ({**SLURM, "SLURM_JOB_ID": ""}, "SLURM_JOB_ID is ''"),
    "Open MPI 5": (
        {**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": ""},
        f"OMPI_COMM_WORLD_SIZE and OMPI_COMM_WORLD_RANK are set, and so must be {ADDRESS}",
    ),
    "a count that slices do not divide": ({**GIVEN, COUNT: "5", **SLICES}, f"{COUNT} is 5, which does not divide"),
}
WRONG_ON_TPU = {
    "slices without their own": (
        {"MEGASCALE_NUM_SLICES": "2"},
        "MEGASCALE_NUM_SLICES is set, and so must be MEGASCALE_SLICE_ID and MEGASCALE_COORDINATOR_ADDRESS",
    ),
    "a slice too many": ({**SLICES, "MEGASCALE_SLICE_ID": "2"}, "MEGASCALE_SLICE_ID is 2; .* from 0 to 1"),
    "hosts and no worker": (
        {"TPU_WORKER_HOSTNAMES": "a,b"},
        "TPU_WORKER_HOSTNAMES is set, and so must be TPU_WORKER_ID",
    ),
    "a worker too many": ({**KUBERNETES, "TPU_WORKER_ID": "2"}, "TPU_WORKER_ID is 2; with the 2 hosts"),
}


@pytest.mark.parametrize("case", [*WRONG, *WRONG_ON_TPU])
def test_a_place_that_makes_no_sense(case):
    environment, said = {**WRONG, **WRONG_ON_TPU}[case]
    with pytest.raises(UserError, match=said) as error:
        find_place(environment, on_tpu=case in WRONG_ON_TPU)
    assert "\n" not in str(error.value)
