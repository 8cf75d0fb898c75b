"""What is read from ncu's output, of which this is a part as an H100 gave it."""

from __future__ import annotations

import pytest

from benchmarks import bench_profile
from benchmarks.harness.cli import Run
from benchmarks.harness.machine import Gpu, Platform

OF_A_KERNEL = """\
  void {kernel}<Float16, 0, 1, 1>(Routing<T1, T2, T3>::Parameters) (256, 1, 1)x(256, 1, 1), CC 9.0
    Section: GPU Speed Of Light Throughput
    ----------------------- ----------- ------------
    Metric Name             Metric Unit Metric Value
    ----------------------- ----------- ------------
    DRAM Frequency                  Ghz         2.62
    Elapsed Cycles                cycle      143,685
    Memory Throughput                 %        80.55
    DRAM Throughput                   %        80.55
    Duration                         us        72.06
    SM Active Cycles              cycle   132,408.75
    ----------------------- ----------- ------------
    Section: Warp State Statistics
    Warp Cycles Per Issued Instruction             cycle        22.71
    Warp Cycles Per Executed Instruction           cycle        22.78
    Section: Instruction Statistics
    Avg. Issued Instructions Per Scheduler          inst    22,406.88
    Issued Instructions                             inst   11,830,832
"""
OUTPUT = '==PROF== Profiling "backward_rows_kernel": 0%....50%....100% - 18 passes\n' + "".join(
    OF_A_KERNEL.format(kernel=kernel) for *_, kernel in bench_profile.INPUTS
)


def test_every_kernel_has_its_own_metrics() -> None:
    second = OUTPUT.rindex("143,685")
    rows = bench_profile.rows_of(OUTPUT[:second] + "150,000" + OUTPUT[second + 7 :])
    assert [row["cycles"] for row in rows] == [143685.0] * (len(rows) - 1) + [150000.0]
    assert rows[0] == {
        "input": "channel caps, NCHW",
        "dtype": "float16",
        "kernel": "backward_rows_kernel",
        "us": 72.06,
        "cycles": 143685.0,
        "active_cycles": 132408.75,
        "dram_percent": 80.55,
        "instructions": 11830832.0,
        "cycles_per_instruction": 22.71,
    }


def test_output_that_tells_too_little_is_refused() -> None:
    with pytest.raises(ValueError, match="ncu: got no kernel; expected backward_rows_kernel, backward_rows"):
        bench_profile.rows_of("")
    with pytest.raises(
        ValueError, match="ncu: got backward_rows_kernel, backward_rows_kernel, backward_rows_kernel, b"
    ):
        bench_profile.rows_of(OUTPUT.replace("columns", "rows"))
    with pytest.raises(ValueError, match="ncu: no us of backward_rows_kernel"):
        bench_profile.rows_of(
            OUTPUT.replace("Duration                         us", "Duration                         ms")
        )
    with pytest.raises(ValueError, match="ncu: no instructions of backward_rows_kernel"):
        bench_profile.rows_of(OUTPUT.replace("    Issued Instructions", "    Something Else"))


def test_the_table_says_how_long_multiprocessors_had_work(gpu: Gpu) -> None:
    record = bench_profile.BENCH.new_record(Platform())
    record.add("backward kernels", bench_profile.rows_of(OUTPUT), bench_profile.BENCH.key)
    (table,) = bench_profile.tables(record)
    assert table.rows[0] == (
        "channel caps, NCHW", "fp16", "72.1", "80.5%", "92.2% of 143,685 cycles", "11.8 million", "22.7"
    )  # fmt: skip
    assert bench_profile.headline(record).startswith(f"{gpu['name']}, driver 580.1; ")


@pytest.mark.parametrize("found", [None, "/bin/false"])
def test_without_counters_there_is_a_failure(
    found: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_profile.shutil, "which", lambda name: found)
    (row,) = bench_profile.run(bench_profile.cases("cuda", {})[0], Run(Platform()))
    expected = "FileNotFoundError: ncu is not installed" if found is None else "ValueError: ncu: got no kernel"
    assert row["failure"].startswith(expected)
