"""What can be said of several processes in one: mistakes on the command line, clusters, what reaches stderr."""

import pytest

from lmjax import hosts
from lmjax.errors import UserError
from lmjax.native_errors import passed_on, told

SILENT = """\
F1124 23:29:48.160911    5530 client.h:80] Terminating process because the JAX distributed service detected fatal errors. This most likely ... absl::Status: UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
1
12
The tasks have crashed. Check the task logs for an earlier error, or scheduler events (e.g. preemption, eviction) to debug further.

RPC: /xla.coordination.CoordinationService/PollForError [type.googleapis.com/tensorflow.CoordinationServiceError='']
*** Check failure stack trace: ***
    @     0x7f0dd1440634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
"""
GONE = """\
F1124 23:25:50.153560    4532 client.h:80] Terminating process because the JAX distributed service detected fatal errors. absl::Status: UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was preempted/died/restarted unexpectedly or this task is experiencing network issues.
:UNKNOWN:Error received from peer  {grpc_status:14, grpc_message:"Socket closed"}
"""
MESSAGES = """\
W1124 23:42:42.970883    9098 spmd_partitioner.cc:656] [SPMD] Involuntary full rematerialization.
a line of ours
E1124 23:47:46.649098   13402 coordination_service.cc:1549] [105] Use error polling to propagate the following error:
1
The tasks have crashed.
UserWarning: passes
E1124 23:47:46.649098   13402 cuda_driver.cc:7] out of something
error: ours
F1124 23:47:46.649098   13402 cuda_driver.cc:7] Check failed: fine
W1124 23:47:46.649098   13402 preemption_notifier.cc:90] SIGTERM caught
F1124 23:47:46.649098   13402 coordination_service.cc:7] Check failed
Fatal Python error: Aborted
"""


def seen(text):
    report = []
    shown = "".join(passed_on(text.splitlines(keepends=True), report))
    return shown, "".join(report)


def test_the_meetings_report_becomes_one_line():
    for report, who in (
        (SILENT, "process 1, 12 has been silent for 60 s"),
        (GONE, "process 0, at which the others meet, is gone"),
    ):
        shown, kept = seen("before\n" + report)
        assert shown == "before\n"
        assert kept == report
        assert who in told(kept, "60")
        assert "\n" not in told(kept, "60")
        assert "start the same command again on all hosts" in told(kept, "60")


def test_errors_pass_and_warnings_do_not():
    shown, kept = seen(MESSAGES)
    assert [line.split()[0][:5] for line in shown.splitlines()] == [
        "a",
        "UserW",
        "E1124",
        "error",
        "F1124",
        "F1124",
        "Fatal",
    ]
    assert kept == ""


@pytest.mark.parametrize(
    ("meeting", "message"),
    [
        (hosts.Meeting(coordinator="here:1"), "belong together"),
        (hosts.Meeting(processes=2, process=0), "belong together"),
        (hosts.Meeting("here", 2, 0), "expected HOST:PORT"),
        (hosts.Meeting("here:x", 2, 0), "expected HOST:PORT"),
        (hosts.Meeting("here:99999", 2, 0), "expected HOST:PORT"),
        (hosts.Meeting("here:1", 2, 2), "from 0 to one below"),
        (hosts.Meeting("here:1", 0, 0), "from 0 to one below"),
        (hosts.Meeting("here:1", 2, 0, join_timeout=0), "from 1 to a million"),
        (hosts.Meeting("here:1", 2, 0, peer_timeout=10**12), "from 1 to a million"),
        (hosts.Meeting("here:²", 2, 0), "expected HOST:PORT"),
        (hosts.Meeting("here:1", 10**12, 0), "from 0 to one below"),
    ],
)
def test_mistakes(meeting, message):
    with pytest.raises(UserError, match=message):
        meeting.check()


CLUSTERS = {
    "Slurm": {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"},
    "Open MPI": {"OMPI_COMM_WORLD_SIZE": "4"},
    "TPU pod": {"TPU_WORKER_HOSTNAMES": "a,b"},
    "several slices": {"MEGASCALE_COORDINATOR_ADDRESS": "a:1"},
}


@pytest.mark.parametrize("name", [*CLUSTERS, "none", "a shell on Slurm", "nonsense"])
def test_clusters_are_seen(name, monkeypatch):
    for variables in CLUSTERS.values():
        for variable in variables:
            monkeypatch.delenv(variable, raising=False)
    others = {"a shell on Slurm": {"SLURM_NTASKS": "2"}, "nonsense": {"OMPI_COMM_WORLD_SIZE": "", "SLURM_NTASKS": "x"}}
    for variable, value in (CLUSTERS | others).get(name, {}).items():
        monkeypatch.setenv(variable, value)
    assert (hosts.cluster() is not None) == (name in CLUSTERS)


def test_one_process_meets_nobody():
    assert not hosts.Meeting().asked
    assert hosts.gather("x", 3) == [3]
    assert hosts.by_first("x", lambda: 4) == 4
    assert hosts.share([1, 2, 3]) == [1, 2, 3]
    with hosts.together(hosts.Meeting()):
        assert hosts.first()
