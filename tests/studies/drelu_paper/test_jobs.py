"""Studies end to end: jobs, engines, breaks, records, tables, pictures, the command line."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from studies.drelu_paper import command, configuration, engines, jobs, records, trained_models
from studies.drelu_paper.configuration import Study
from studies.drelu_paper.jobs import Folders, Job, do, jobs_of
from studies.drelu_paper.report import pages
from studies.drelu_paper.report import pictures as reporting_pictures
from studies.drelu_paper.report.frame import blocks, frame
from studies.drelu_paper.report.pictures import PICTURES
from studies.drelu_paper.report.tables import adaptive_table, cost_table, table
from studies.drelu_paper.trained_models import trained
from tests.support.patience import PATIENCE


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    folder = tmp_path_factory.mktemp("study")
    return Folders(folder / "records", folder / "work", progress=False)


@pytest.fixture(scope="module")
def done(tiny: Study, folders: Folders) -> list[records.Record]:
    assert engines.serial(jobs_of(tiny.runs, folders), partial(do, folders=folders)) == []
    return records.found(tiny.runs, folders.results)


def test_a_record_per_run_says_everything(tiny: Study, folders: Folders, done: list[records.Record]):
    assert [record["name"] for record in done] == [run.name for run in tiny.runs]
    assert len(list(folders.results.iterdir())) == len(tiny.runs) == 8
    for record, run in zip(done, tiny.runs, strict=True):
        text = (folders.results / f"{run.name}.json").read_text()
        assert text.count("\n") == 1
        evaluation = record["evaluation"]
        accuracies = evaluation["accuracy"].values()
        assert evaluation["worst"] <= evaluation["paper_worst"] <= min(accuracies, default=1) + 1e-6 or (
            evaluation["worst"] <= min(accuracies) + 1e-6
        )
        assert set(evaluation["bounds"]) == {"0.05", "0.2"}
        for values in evaluation["bounds"].values():
            assert values["worst"] <= values["apgd_ce"]
        assert {"torch", "dreluop"} <= set(record["versions"])
        assert record["device"]["name"]
        assert record["training"]["epochs"] == len(record["training"]["history"]["train_loss"]) - 1
        capped = run.recipe.has_caps
        assert (evaluation["caps"] is not None) == capped
        assert ("straight_through" in evaluation["accuracy"]) == capped
        assert ("apgd_targeted" in evaluation["accuracy"]) != capped
        assert ("transfer" in evaluation["accuracy"]) == (run.recipe.method != "natural")


def test_what_is_done_is_not_done_again(tiny: Study, folders: Folders, done: list[records.Record]):
    assert jobs_of(tiny.runs, folders) == []


def test_jobs_wait_for_what_they_need(tiny: Study, tmp_path: Path):
    todo = jobs_of(tiny.runs, Folders(tmp_path / "r", tmp_path / "w"))
    names = [job.name for job in todo]
    assert len(names) == len(set(names)) == 16
    for index, job in enumerate(todo):
        assert all(name in names[:index] for name in job.after)
    natural, at = tiny.runs[0].recipe.name, tiny.runs[1]
    by_name = {job.name: job for job in todo}
    assert by_name[f"train {at.recipe.name}"].after == (f"train {natural}",)
    assert set(by_name[f"evaluate {at.name}"].after) == {f"train {natural}", f"train {at.recipe.name}"}


def test_calibrated_caps_start_where_the_warm_up_s_pre_activations_are(tiny: Study, done: list[records.Record]):
    record = next(one for one in done if one["recipe"]["method"] == "drelu")
    assert record["warm_up"]["history"]["cap_mean"] == [100.0] * 3
    assert record["training"]["history"]["cap_mean"][0] < 20


def test_caps_are_calibrated_though_another_process_ends_the_same_job(
    tiny: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = next(run.recipe for run in tiny.runs if run.recipe.has_caps)
    file = tmp_path / recipe.name / "training.pt"
    original = trained_models.train

    def ended_meanwhile(*args, **options):
        if options["file"] == file:
            file.unlink()
        history = original(*args, **options)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"of the other process")
        return history

    monkeypatch.setattr(trained_models, "train", ended_meanwhile)
    trained_models.train_recipe(recipe, tmp_path, progress=False)
    _, _, history = trained(recipe, tmp_path)
    assert history.column("cap_mean")[0] < 20


def _breaks_one(job: Job, folders: Folders) -> None:
    if job.name == "second":
        raise ValueError("no")
    if job.name not in ("third", "fourth"):
        do(job, folders)


@pytest.mark.parametrize("engine", list(engines.ENGINES))
def test_engines_find_the_same_and_a_failure_stops_only_what_needs_it(
    engine: str, tiny: Study, done: list[records.Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Its workers would be nice, and wait for the other tests.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    # It imports torch in as many workers as it is given.
    workers = 1 if engine == "ray" else 2
    folders = Folders(tmp_path / "records", tmp_path / "work", progress=False)
    some = [run for run in tiny.runs if run.recipe.seed == 0][:2]
    task = tiny.runs[0]
    broken = [Job("second", task), Job("third", task, ("second",)), Job("fourth", task)]
    todo = [*jobs_of(some, folders), *broken]
    assert len(todo) == 7
    failures = engines.ENGINES[engine](todo, partial(_breaks_one, folders=folders), workers, "cpu")
    assert sorted(failure.job for failure in failures) == ["second", "third"]
    reasons = {failure.job: failure.reason for failure in failures}
    assert reasons["second"] == "ValueError: no"
    assert reasons["third"].startswith("not begun: ")
    expected = {record["name"]: record["evaluation"] for record in done}
    found = records.found(some, folders.results)
    assert len(found) == 2
    for record in found:
        for name in ("accuracy", "worst", "zero_gradient", "caps", "bounds"):
            assert record["evaluation"][name] == expected[record["name"]][name]
    assert jobs_of(some, folders) == []


def _ends_its_process(job: Job) -> None:
    os._exit(1)


def test_a_killed_worker_is_a_failure_of_all_that_is_left(tiny: Study):
    todo = [Job(name, tiny.runs[0]) for name in ("first", "second", "third")]
    failures = engines.processes(todo, _ends_its_process, 2)
    assert [failure.job for failure in failures] == ["first", "second", "third"]
    assert all("unexpectedly terminated" in failure.reason for failure in failures)


@pytest.mark.parametrize(("address", "shown"), [("", {"num_cpus": 3}), ("10.0.0.1:6379", {})])
def test_a_ray_cluster_is_not_given_its_size(address: str, shown: dict[str, int], monkeypatch: pytest.MonkeyPatch):
    # Ray raises ValueError at a size for a cluster that is there already.
    ray = pytest.importorskip("ray")
    asked: list[dict[str, object]] = []

    def init(**options: object) -> None:
        asked.append(options)
        raise ConnectionError

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ConnectionError):
        engines.on_ray([], _ends_its_process, 3)
    assert {name: value for name, value in asked[0].items() if name == "num_cpus"} == shown


def test_a_broken_evaluation_goes_on_with_the_attacks_that_are_left(
    tiny: Study, folders: Folders, done: list[records.Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = tiny.runs[2]
    again = Folders(tmp_path / "records", folders.work, progress=False)
    original, ran = jobs._Kept.begins, []

    def killed(self, name):
        if name == "soft":
            raise KeyboardInterrupt
        original(self, name)

    monkeypatch.setattr(jobs._Kept, "begins", killed)
    with pytest.raises(KeyboardInterrupt):
        do(Job("evaluate", run), again)
    monkeypatch.setattr(jobs._Kept, "begins", lambda self, name: ran.append(name))
    do(Job("evaluate", run), again)
    assert "soft" in ran
    assert not {"clean", "fgsm", "square", "straight_through"} & set(ran)
    found, expected = records.find(run, again.results), records.find(run, folders.results)
    assert found["evaluation"]["accuracy"] == expected["evaluation"]["accuracy"]


def test_a_killed_study_goes_on(tmp_path: Path, tiny_file: Path):
    """The process is killed outright in the middle of a training; the same command then ends as if it had not been."""
    slow = tmp_path / "slow.yaml"
    slow.write_text(
        tiny_file.read_text()
        .replace("seeds: [0, 1]", "seeds: [0]")
        .replace("methods: [natural, {method: at, training: {epochs: 1}}, {method: drelu, balancer: [1, 100]}]",
                 "methods: [natural]")
        .replace("epochs: 2", "epochs: 40, stop_patience: null")
    )  # fmt: skip
    folder = tmp_path / "run"
    base = ["-m", "studies.drelu_paper", "run", "--engine", "serial", "--quiet", "--device", "cpu"]
    arguments = [sys.executable, *base, slow, "--results", folder / "records", "--work", folder / "work"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + PATIENCE
    while not list(folder.glob("work/*/training.pt")):
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (checkpoint,) = folder.glob("work/*/training.pt")
    kept = len(torch.load(checkpoint)["history"]["records"])
    assert 1 < kept <= 41
    subprocess.run(arguments, env=environment, check=True, capture_output=True, timeout=PATIENCE)
    study = configuration.read(slow)
    (record,) = records.found(study.runs, folder / "records")
    whole = Folders(tmp_path / "whole" / "records", tmp_path / "whole" / "work", progress=False)
    assert engines.serial(jobs_of(study.runs, whole), partial(do, folders=whole)) == []
    (expected,) = records.found(study.runs, whole.results)
    assert record["training"]["history"] == expected["training"]["history"]
    assert record["evaluation"]["accuracy"] == expected["evaluation"]["accuracy"]


def test_tables_show_the_honest_columns(done: list[records.Record]):
    shown = table("T", done)
    assert shown.header[:4] == ("data", "network", "training", "runs")
    assert shown.header[-4:] == ("adaptive worst", "zero gradient", "live units", "cap / std")
    assert [row[2] for row in shown.rows] == ["ReLU", "AT", "D-ReLU 1", "D-ReLU 100"]
    assert {row[3] for row in shown.rows} == {"2"}
    column = shown.header.index("clean")
    clean = [one["evaluation"]["accuracy"]["clean"] for one in done if one["label"] == "ReLU"]
    spread = 100 * abs(clean[0] - clean[1]) / 2**0.5
    assert shown.rows[0][column] == f"{50 * sum(clean):.1f} ± {spread:.1f}"
    near = shown.header.index("L2 worst, near")
    evaluations = [one["evaluation"] for one in done if one["label"] == "D-ReLU 1"]
    assert all(set(one["cw"]) == {"1.5", "18"} for one in evaluations)
    assert all(one["l2_worst"] <= one["cw"]["1.5"] for one in evaluations)
    assert shown.rows[2][near].startswith(f"{50 * sum(one['l2_worst'] for one in evaluations):.1f}")
    few = table("T", done, ["clean", "square"])
    assert "L2 worst, near" not in few.header
    assert few.header[4:6] == ("clean", "Square")
    assert "adaptive worst" in few.header
    with pytest.raises(ValueError, match="columns: got 'fgms'"):
        table("T", done, ["fgms"])
    assert "straight-through" in adaptive_table("T", done).header
    assert [row[3] for row in cost_table("T", done).rows] == ["2"] * 4


def test_a_result_without_a_gradient_to_follow_is_no_number(done: list[records.Record]):
    blind = [json.loads(json.dumps(one)) for one in done]
    for one in blind:
        assert one["evaluation"]["blind"] == 0
        if one["label"] == "D-ReLU 1":
            one["evaluation"] |= {"blind": 0.3, "worst": 0.7, "l2_worst": 0.5}
    shown = table("T", blind)
    worst, near = (shown.header.index(name) for name in ("adaptive worst", "L2 worst, near"))
    assert shown.rows[2][worst] == "no gradient (70.0 ± 0.0)"
    assert shown.rows[2][near] == "no gradient (50.0 ± 0.0)"
    assert "gradient" not in "".join(shown.rows[0])
    assert adaptive_table("T", blind).rows[2][-1] == "no gradient (70.0 ± 0.0)"
    hidden = frame(blind).query("method == 'D-ReLU 1'")
    assert hidden[["worst", "l2_worst"]].isna().all(axis=None)
    for one in blind:
        drawn = reporting_pictures._at_bounds(one)
        assert set(drawn) == {"0.05", "0.2"}
        assert all(math.isnan(values["worst"]) is (one["label"] == "D-ReLU 1") for values in drawn.values())
        assert not any(math.isnan(values["apgd_ce"]) for values in drawn.values())


def test_a_record_of_older_attacks_is_replaced(done: list[records.Record], tmp_path: Path):
    new = done[0]
    old = json.loads(json.dumps(new))
    del old["revision"]
    old["name"] = f"{new['name'].rsplit('-', 1)[0]}-000000"
    other = json.loads(json.dumps(old))
    other["name"], other["attacks"]["samples"] = f"{old['name'][:-1]}1", 11
    for record in (old, other, new):
        records.save(record, tmp_path)
    left = {path.stem for path in tmp_path.iterdir()}
    assert left == {other["name"], new["name"]}


def test_a_record_of_older_attacks_is_shown_until_the_run_is_evaluated_again(
    tiny: Study, tiny_file: Path, done: list[records.Record], folders: Folders, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys,
):  # fmt: skip
    old = json.loads(json.dumps(done[0]))
    old["name"] = tiny.runs[0].name_at(1)
    for key in ("revision", "blind", "l2_worst"):
        (old if key in old else old["evaluation"]).pop(key)
    records.save(old, tmp_path)
    assert records.find(tiny.runs[0], tmp_path) is None
    assert [job.name for job in jobs_of(tiny.runs[:1], dataclasses.replace(folders, results=tmp_path))]
    shown = records.found(tiny.runs[:1], tmp_path)
    assert shown == [old]
    assert table("T", [*shown, *done[1:]]).rows[0][3] == "2 (1 older)"
    assert [row[3] for row in table("T", done).rows] == ["2"] * 4
    titles: list[str] = []
    monkeypatch.setitem(PICTURES, "balancer", lambda title, *_, **__: titles.append(title))
    for some in ([*shown, *done[1:]], done):
        reporting_pictures.draw(tiny, "balancer", some, tmp_path / "x.png")
    assert titles == ["Tiny (1 older)", "Tiny"]
    monkeypatch.setattr(command, "_found", lambda *_: [*shown, *done[1:]])
    command.main(["stats", str(tiny_file)])
    assert capsys.readouterr().out.startswith("tiny is ranked by the adaptive worst of 8 runs (1 older). Inputs")


def test_the_paper_s_numbers_do_not_hide_the_worst_one(done: list[records.Record]):
    runs = frame(done)
    assert (runs.worst <= runs.paper_worst).all()
    for name in ("fgsm", "pgd", "apgd_ce", "apgd_dlr", "square"):
        assert (runs.paper_worst <= runs[name] + 1e-6).all()
    for name in ("straight_through", "soft", "margin", "uncapped", "apgd_targeted", "transfer"):
        assert (runs.worst <= runs[name].fillna(1) + 1e-6).all()


def test_runs_that_one_name_would_mix_are_refused(done: list[records.Record]):
    again = json.loads(json.dumps(done[0]))
    again["recipe"]["training"]["epochs"] = 7
    with pytest.raises(ValueError, match="records: got two of digits, dense, ReLU, 0; expected one"):
        frame([*done, again])


def test_blocks_are_what_the_statistics_take(done: list[records.Record]):
    found = blocks(done)
    assert set(found.columns) == {"block", "method", "accuracy"}
    wide = found.pivot(index="block", columns="method", values="accuracy")
    assert not wide.isna().any().any()
    assert list(wide.index) == ["digits dense, seed 0", "digits dense, seed 1"]
    for record in done:
        block, label = f"digits dense, seed {record['recipe']['seed']}", record["label"]
        assert wide.loc[block, label] == pytest.approx(100 * record["evaluation"]["worst"])


@pytest.mark.parametrize("kind", list(PICTURES))
def test_pictures(kind: str, tiny: Study, done: list[records.Record], tmp_path: Path):
    path = tmp_path / f"{kind}.png"
    PICTURES[kind](tiny.title, done, path)
    assert path.stat().st_size > 10_000


def test_a_picture_of_a_study_shows_its_columns(
    tiny: Study, done: list[records.Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = []
    original = reporting_pictures._line

    def line(axes, runs, x, y, *rest, **style):
        seen.append(y)
        original(axes, runs, x, y, *rest, **style)

    monkeypatch.setattr(reporting_pictures, "_line", line)
    asked = dataclasses.replace(tiny, columns=("clean", "square"))
    reporting_pictures.draw(asked, "balancer", done, tmp_path / "a.png")
    assert seen == ["clean", "square", "worst", "zero_gradient"]
    attacked = [record for record in done if record["recipe"]["method"] == "at"]
    with pytest.raises(ValueError, match="records: got no run with ReLU or D-ReLU"):
        reporting_pictures.draw(asked, "balancer", attacked, tmp_path / "b.png")


def test_command_line(
    tiny_file: Path, tiny: Study, folders: Folders, done: list[records.Record], tmp_path: Path, capsys
):
    folder = ["--results", str(folders.results)]
    assert command.main(["run", str(tiny_file), "--work", str(folders.work), "--engine", "serial", *folder]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("8 runs, 8 done; 0 jobs left\n")
    assert f"all records are in {folders.results}; to make new ones, name another folder: --results DIR" in printed
    assert command.main(["table", str(tiny_file), "--adaptive", "--cost", "--markdown", *folder]) == 0
    printed = capsys.readouterr().out
    assert "| digits | dense | D-ReLU 100 |" in printed
    assert "adaptive worst" in printed
    assert command.main(["plot", str(tiny_file), "--output", str(tmp_path), *folder]) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "tiny-balancer.png", "tiny-bounds.png", "tiny-initial-cap.png", "tiny-trajectory.png",
    }  # fmt: skip
    capsys.readouterr()
    # So few inputs leave the same worst to all methods.
    for number, record in enumerate(done):
        records.save({**record, "evaluation": {**record["evaluation"], "worst": number / 10}}, tmp_path / "differ")
    assert command.main(["stats", str(tiny_file), "--records", str(tmp_path / "differ")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("tiny is ranked by the adaptive worst of 8 runs. Inputs with zero gradient, of which the")
    assert "D-ReLU 100" in printed
    assert command.main(["table", str(tiny_file), "--results", str(tmp_path / "none")]) == 2
    assert "has no record of tiny; run it first" in capsys.readouterr().err
    assert command.main(["run", "nothing"]) == 2
    assert "there is no such configuration" in capsys.readouterr().err


def test_documents_show_what_is_there(
    tiny: Study, folders: Folders, done: list[records.Record], tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(pages, "STUDIES", (tiny.name,))
    monkeypatch.setattr(configuration, "read", lambda name: tiny)
    report = pages._report(lambda study, found: cost_table(study.title, found), (tiny.name,))
    assert report(tmp_path) == pages.NOTHING
    for record in done:
        records.save(record, tmp_path / pages.FOLDER_NAME)
    assert "8 of 8 runs; 10 test inputs, eps 0.1" in report(tmp_path)
    (tmp_path / pages.FOLDER_NAME / f"{done[0]['name']}.json").unlink()
    assert "7 of 8 runs" in report(tmp_path)
    (first, draw), *_ = pages.pictures(tmp_path).items()
    assert first == "robustness-tiny-balancer.png"
    draw(tmp_path / first)
    assert (tmp_path / first).stat().st_size > 10_000


def test_a_trained_model_is_read_in_eval_mode(tiny: Study, folders: Folders, done: list[records.Record]):
    model, warm_up, history = trained(tiny.runs[2].recipe, folders.work)
    assert not model.training
    assert (len(warm_up.records), len(history.records)) == (3, 3)
    with pytest.raises(FileNotFoundError):
        trained(configuration.read("table1").runs[0].recipe, folders.work / "nowhere", Path("nowhere"))
