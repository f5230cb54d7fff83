"""How several processes begin: what each reads, and what is wrong with one of them is said by all."""

import json

import pytest

from tests.hosts.processes import ended, free_port, one_line, start, start_two


@pytest.mark.parametrize(
    ("mesh", "each"),
    [
        ({"data": 8}, 4),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 4),
        ({"data": 1, "tensor": 8}, 8),
        ({"data": 1, "fsdp": 2, "sequence": 4}, 4),
    ],
    ids=["data", "mixed", "tensor", "sequence"],
)
def test_each_process_reads_only_the_rows_that_its_devices_hold(mesh, each):
    place = f"127.0.0.1:{free_port()}"
    words = [[place, str(i), json.dumps(mesh)] for i in range(2)]
    done = ended([start(w, devices=4, program=["-m", "tests.hosts.rows"]) for w in words])
    assert [d.code for d in done] == [0, 0], [d.err for d in done]
    told = [json.loads(d.out.split("RESULT")[1]) for d in done]
    assert sorted({row for t in told for row in t["rows"]}) == list(range(8))
    for t in told:
        assert len(t["rows"]) == each
        assert t["read"] == each * 17


def test_what_differs_between_processes_is_named(folder, config):
    run = folder / "differing"
    done = ended(start_two(config, run, apart={1: ["--optimizer.b2=0.9"]}))
    assert [d.code for d in done] == [2, 2]
    for d in done:
        one_line(d, "optimizer.b2 is 0.95 on process 0 and 0.9 on process 1")
    assert not run.exists()


def test_a_directory_that_is_not_shared_is_an_error_at_the_start(folder, config):
    runs = folder / "here", folder / "there"
    # the last --run counts
    done = ended(start_two(config, runs[0], apart={1: ["--run", str(runs[1])]}))
    assert [d.code for d in done] == [2, 2]
    for d in done:
        one_line(d, "process 1 does not see what process 0 writes there; expected a directory that all hosts share")
    assert not runs[0].exists()
    assert not runs[1].exists()


def test_a_fault_of_one_ends_the_other_with_its_reason(folder, config):
    """The second one's cache cannot be written."""
    blocked = folder / "blocked"
    blocked.write_text("a file where a directory should be")
    done = ended(start_two(config, folder / "faulty", environments={1: {"LMJAX_CACHE": str(blocked)}}), limit=60)
    assert [d.code for d in done] == [2, 2]
    one_line(done[1], str(blocked))
    one_line(done[0], "process 1 ended: ", str(blocked))


@pytest.mark.parametrize("process", ["0", "1"])
def test_a_process_that_waits_in_vain_says_so(folder, config, process):
    place = f"127.0.0.1:{free_port()}"
    words = ["--config", str(config), "--run", str(folder / "lonely"), "--coordinator", place]
    (done,) = ended(
        [start([*words, "--processes", "2", "--process", process, "--join-timeout", "5"], devices=4)], limit=60
    )
    assert done.code == 2
    one_line(done, f"not all processes came to {place} within 5 s")
    assert not (folder / "lonely").exists()
