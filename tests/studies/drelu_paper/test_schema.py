"""Configuration files that are wrong: every one is an error that names file, key, value and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.harness.machine import RESULTS
from studies.drelu_paper import command, configuration, records, sections
from studies.drelu_paper.report.pages import FOLDER_NAME, STUDIES
from studies.drelu_paper.report.pictures import PICTURES
from tests.studies.drelu_paper.smallest import SMALLEST


def write(folder: Path, content: str | bytes, name: str = "study") -> Path:
    path = folder / f"{name}.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def fault(folder: Path, content: str | bytes) -> str:
    path = write(folder, content)
    with pytest.raises(ValueError, match=r"expected|missing|twice") as caught:
        configuration.read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\ttitle: T\n", "line 1, column 1: found character '\\t' that cannot start any token; expected valid YAML"),
        (SMALLEST + "title: U\n", 'line 8, column 1: found duplicate key "title" with value "U"'),
        (SMALLEST.replace("0.1}", "0.1, eps: 0.2}"), 'line 7, column 21: found duplicate key "eps"'),
        (b"\x00\xff\xfe\x80", "unacceptable character #x00ff: invalid start byte; expected valid YAML"),
        (SMALLEST.encode() + b"source: \x00", "unacceptable character #x0000: special characters are not allowed"),
        (SMALLEST + "--- \n" + SMALLEST, "line 8, column 1: but found another document"),
        (SMALLEST + "source: !!python/object:os.system {}\n", "line 8, column 9: could not determine a constructor"),
        (SMALLEST + "source: 2020-13-45\n", "month must be in 1..12; expected valid YAML"),
        (SMALLEST + "? [a]\n: b\n", "key: got ('a',); expected some of"),
        ("[" * 1500, "got brackets nested too deeply, or a loop; expected valid YAML"),
        ("", "got nothing; expected a mapping"),
        ("- a\n", "got list; expected a mapping"),
        (SMALLEST + "training: &a {epochs: *a}\n", "got brackets nested too deeply, or a loop"),
    ],
)
def test_what_is_not_a_mapping_of_yaml(content: str | bytes, message: str, tmp_path: Path):
    assert fault(tmp_path, content).startswith(message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("title: 5", "title: got 5; expected text"),
        ("title:", "title: got None; expected text"),
        ('title: ""', "title: got ''; expected some text"),
        ("source: 2020-01-01", "source: got datetime.date(2020, 1, 1); expected text"),
        ("titel: T", "key: got 'titel'; expected some of"),
        ("data: svhn", "data.name: got 'svhn'; expected one of 'digits', 'mnist'"),
        ("mode: slow", "mode: got 'slow'; expected one of 'paper' or 'fast'"),
        ("methods: [fgsm]", "methods[0].method: got 'fgsm'; expected one of 'natural', 'at'"),
        ("methods: [natural, natural]", "methods: digits-dense-relu-s0-"),
        ("methods: [{method: drelu}]", "methods[0].balancer: missing"),
        (
            "methods: [{method: at, beta: 1}]",
            "methods[0] key: got 'beta'; expected some of data, method",
        ),
        ("methods: [{method: natural, training: {seed: 3}}]", "methods[0].training key: got 'seed'; expected some of"),
        ("attacks: {eps: 0.1, steps: 3}", "attacks key: got 'steps'; expected some of"),
        ("attacks: {eps: 0.1, samples: 0}", "attacks.samples: got 0; expected at least 1"),
        ('stop: "x"', "key: got 'stop'; expected some of attacks, by_model, columns"),
        ("1: x", "key: got 1; expected some of"),
        ("seeds: [-1]", "seeds: got -1; expected at least 0"),
        ("seeds: [0, 2147483648]", "seeds: got 2147483648; expected at most 2147483647"),
        ("seeds: [1:30]", "seeds: got '1:30'; expected a whole number"),
        ("training: {batch_size: 2147483648}", "training.batch_size: got 2147483648; expected at most 2147483647"),
        ("training: {epochs: 1e300}", "training.epochs: got 10000000000000000525"),
        ('extends: "a\\0b"', "extends: got 'a\\x00b'; expected a name without the character 0"),
        (
            "attacks: {eps: 0.1, bounds: [0.1, 0.10000001]}",
            "attacks.bounds: got 0.1 and 0.10000001; expected values that differ in their first six digits",
        ),
        (
            "attacks: {eps: 0.1, cw_bounds: [1.5, 1.50000001]}",
            "attacks.cw_bounds: got 1.5 and 1.50000001; expected values that differ in their first six digits",
        ),
        ("seeds: a", "seeds: got 'a'; expected a list"),
        ("seeds: 3", "seeds: got 3; expected a list"),
        ("seeds: [a]", "seeds: got 'a'; expected a whole number"),
        ("seeds: [true]", "seeds: got True; expected a whole number"),
        ("seeds: []", "seeds: got an empty list; expected at least one value"),
        ("seeds: [2, 2]", "seeds: got 2 twice; expected values that differ"),
        ("seeds: null", "seeds: got None; expected a list"),
        ("training: null", "training: got None; expected a mapping"),
        ("training: []", "training: got []; expected a mapping"),
        ("training: {batch_size: 2.5}", "training.batch_size: got 2.5; expected a whole number"),
        ("training: {batch_size: '8'}", "training.batch_size: got '8'; expected a whole number"),
        ("training: {epochs: 1.5}", "training.epochs: got 1.5; expected a whole number"),
        ("training: {epochs: 0}", "training.epochs: got 0; expected at least 1"),
        ("training: {epochs: true}", "training.epochs: got True; expected a whole number"),
        ("training: {factor: 2}", "training key: got 'factor'; expected some of amp, attack_steps, batch_size"),
        ("training: {plateau_factor: 2}", "training.plateau_factor: got 2.0; expected a number above 0 and below 1"),
        ("training: {plateau_patience: -1}", "training.plateau_patience: got -1; expected at least 0"),
        ('training: {stop_patience: "x"}', "training.stop_patience: got 'x'; expected a whole number"),
        ("training: {lr: abc}", "training.lr: got 'abc'; expected a number"),
        ("training: {lr: .nan}", "training.lr: got nan; expected a finite number > 0"),
        ("training: {compile: yes}", "training.compile: got 'yes'; expected true or false"),
        ("training: {amp: float8}", "training.amp: got 'float8'; expected one of 'off', 'bfloat16' or 'float16'"),
        ("attacks: {}", "attacks.eps: missing; expected the bound of the attacks, of training too"),
        ("attacks: {eps: .inf}", "attacks.eps: got inf; expected finite numbers >= 0"),
        ("attacks: {eps: 0.1, samples: 1001}", "attacks.samples: got 1001; expected at most the 1000 tests of digits"),
        ("attacks: {eps: 0.1, samples: 1.5}", "attacks.samples: got 1.5; expected a whole number"),
        ("attacks: {eps: 0.1, bounds: 0.2}", "attacks.bounds: got 0.2; expected a list"),
        ("attacks: {eps: 0.1, bounds: [0.2, 0.2]}", "attacks.bounds: got 0.2 and 0.2; expected values that differ"),
        ("attacks: {eps: 0.1, cw_bounds: []}", "attacks.cw_bounds: got none; expected at least one, or no cw_samples"),
        ("attacks: {eps: 0.1, seed: -1}", "attacks.seed: got -1; expected at least 0"),
        ("models: []", "models: got an empty list; expected at least one value"),
        ("models: dense", "models: got 'dense'; expected a list"),
        ("models: [dense, dense]", "models: got 'dense' twice; expected values that differ"),
        ("models: [resnet18]", "models: got 'resnet18'; expected one of 'dense', 'shallow_cnn', 'resnet50'"),
        ("place: stem", "place: got 'stem' for 'dense', which has no convolution; expected 'head'"),
        ("place: middle", "place: got 'middle'; expected one of 'head' or 'stem'"),
        ("by_model: {dence: {}}", "by_model key: got 'dence'; expected one of 'dense', 'shallow_cnn'"),
        ("by_model: {shallow_cnn: {}}", "by_model: got 'shallow_cnn'; expected some of this study's models, dense"),
        ("by_model: {dense: {attack: {}}}", "by_model.dense key: got 'attack'; expected some of attacks, training"),
        ("by_model: {dense: null}", "by_model.dense: got None; expected a mapping"),
        ("data: null", "data: got None; expected a mapping"),
        ("data: {name: digits, train_limit: 0}", "data.train_limit: got 0; expected at least 1"),
        ("data: {name: digits, augment: true}", "data.augment: got True for 'digits'; expected one of 'cifar10'"),
        ("data: {name: digits, generated: a}", "data.original_share: got None beside generated; expected both"),
        (
            "data: {name: digits, generated: a, original_share: 2}",
            "data.original_share: got 2.0; expected 0 to 1",
        ),
        (
            "data: {name: digits, generated: a, original_share: 1, train_limit: 3}",
            "data.train_limit: got 3 beside augment or generated; expected neither",
        ),
        ("columns: [fgms]", "columns: got 'fgms'; expected one of 'clean', 'fgsm', 'pgd'"),
        ("pictures: [bar]", "pictures: got 'bar'; expected one of 'balancer', 'bounds'"),
        ("pictures: []", "pictures: got an empty list; expected at least one value"),
        ("pictures: [bounds]", "pictures: got 'bounds' without attacks.bounds; expected the radii of a sweep there"),
        ("extends: study", "extends: got 'study', which extends this file itself; expected another"),
        ("extends: nothing", "extends: got 'nothing'; expected a name in "),
        ("extends: 5", "extends: got 5; expected text"),
        ("studies: [digits]", "key: got 'data'; expected some of columns, pictures, source, studies, title"),
        ("methods: []", "methods: got an empty list; expected at least one value"),
        ("methods: natural", "methods: got 'natural'; expected a list"),
        ("methods: [null]", "methods[0]: got None; expected the name of a method, or a mapping with one"),
        ("methods: [{balancer: 1}]", "methods[0]: got {'balancer': 1}; expected the name of a method, or a mapping"),
        ("methods: [{method: [at]}]", "methods[0].method: got ['at']; expected one of 'natural', 'at', 'trades'"),
        ("methods: [natural, {method: at, models: []}]", "methods[1].models: got an empty list; expected at least one"),
        ("methods: [natural, {method: at, models: [dence]}]", "methods[1].models: got 'dence'; expected one of"),
        (
            "methods: [natural, {method: at, models: [shallow_cnn]}]",
            "methods[1].models: got 'shallow_cnn'; expected some of this study's models, dense",
        ),
        ("methods: [{method: drelu, balancer: []}]", "methods[0].balancer: got an empty list; expected at least one"),
        ("methods: [{method: drelu, balancer: -1}]", "methods[0].balancer: got -1; expected at least 0"),
        ("methods: [{method: drelu, balancer: x}]", "methods[0].balancer: got 'x'; expected a number"),
        ("methods: [{method: drelu, balancer: 1, init: .inf}]", "methods[0].init: got inf; expected a finite number"),
        ("methods: [{method: drelu, balancer: 1, calibrate: 0}]", "methods[0].calibrate: got 0; expected at least 1"),
        ("methods: [{method: trades, beta: [1, 1.0]}]", "methods[0].beta: got 1.0 twice; expected values that differ"),
        ("methods: [{method: at, training: {epochs: 1.5}}]", "methods[0].training.epochs: got 1.5; expected a whole"),
    ],
)
def test_a_wrong_value(line: str, message: str, tmp_path: Path):
    key = line.partition(":")[0]
    others = [given for given in SMALLEST.splitlines() if given.partition(":")[0] != key]
    found = fault(tmp_path, "\n".join([*others, line, ""]))
    assert found.startswith(message)
    assert "\n" not in found


def test_every_fault_is_named_at_once(tmp_path: Path):
    assert fault(tmp_path, SMALLEST.replace("title: T\n", "")) == "title: missing"
    found = fault(tmp_path, SMALLEST.replace("[0, 1]", "x").replace("title: T", "title: 5"))
    assert found == f"title: got 5; expected text\n{tmp_path / 'study.yaml'}: seeds: got 'x'; expected a list"


def test_a_model_without_a_method(tmp_path: Path):
    methods = "methods: [{method: at, models: [dense]}]"
    text = SMALLEST.replace("[dense]", "[dense, shallow_cnn]").replace("methods: [natural]", methods)
    assert fault(tmp_path, text) == "methods: got none for 'shallow_cnn'; expected at least one for every model"


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-2", 0.01), ("1E-2", 0.01), ("+1e-2", 0.01), (".5", 0.5), ("1.e+1", 10.0), ("2", 2.0), ("010", 10.0)],
)
def test_numbers_as_people_write_them(written: str, value: float, tmp_path: Path):
    methods = f"methods: [{{method: drelu, balancer: {written}}}]"
    study = configuration.read(write(tmp_path, SMALLEST.replace("methods: [natural]", methods)))
    assert study.runs[0].recipe.training.balancer == value
    assert isinstance(study.runs[0].recipe.training.balancer, float)


def test_whole_numbers_and_off(tmp_path: Path):
    text = SMALLEST + "training: {epochs: 1e3, amp: off, stop_patience: null}\n"
    training = configuration.read(write(tmp_path, text)).runs[0].recipe.training
    assert (training.epochs, training.amp, training.stop_patience) == (1000, "off", None)
    assert isinstance(training.epochs, int)


def test_equal_recipes_have_equal_names_however_they_are_written(tmp_path: Path):
    texts = [SMALLEST + f"training: {{lr: {lr}, epochs: {epochs}}}\n" for lr, epochs in ((1, 10), ("1.0", "1e1"))]
    first, second = (configuration.read(write(tmp_path, text)).runs for text in texts)
    assert [run.name for run in first] == [run.name for run in second]


def test_extending_merges_sections_and_replaces_lists(tmp_path: Path):
    base = SMALLEST.replace("data: digits", "data: {name: digits, train_limit: 96}").replace(
        "0.1}", "0.3, bounds: [0.5]}"
    )
    base = base.replace("[natural]", "[at, {method: trades, beta: 1}]") + "training: {epochs: 3, lr: 0.5}\n"
    write(tmp_path, base, "base")
    write(tmp_path, "extends: base\nattacks: {samples: 7}\ntraining: {epochs: 4}\ndata: {train_limit: 32}\n", "middle")
    top = "extends: middle\nmethods: [at]\nseeds: [5]\nattacks: {bounds: []}\n"
    (run,) = configuration.read(write(tmp_path, top)).runs
    assert (run.attacks.eps, run.attacks.samples, run.attacks.bounds) == (0.3, 7, ())
    training = run.recipe.training
    assert (training.eps, training.epochs, training.lr, run.recipe.seed) == (0.3, 4, 0.5, 5)
    assert (run.recipe.data.name, run.recipe.data.train_limit) == ("digits", 32)
    (run,) = configuration.read(write(tmp_path, f"{top}data: mnist\n")).runs
    assert (run.recipe.data.name, run.recipe.data.train_limit) == ("mnist", None)


def test_a_fault_is_of_the_file_that_has_it(tmp_path: Path):
    base = write(tmp_path, SMALLEST + "training: {epochs: 1.5}\n", "base")
    with pytest.raises(ValueError, match=r"training\.epochs: got 1\.5") as caught:
        configuration.read(write(tmp_path, "extends: base\ntraining: {epochs: 2}\n"))
    assert str(caught.value).startswith(f"{base}: ")


def test_files_that_extend_or_hold_each_other(tmp_path: Path):
    write(tmp_path, "extends: study\n", "other")
    with pytest.raises(ValueError, match=r"other\.yaml: extends: got 'study', which extends this file itself"):
        configuration.read(write(tmp_path, "extends: other\n"))
    outer = write(tmp_path, f"title: T\nstudies: [{tmp_path / 'study.yaml'}]\n", "outer")
    with pytest.raises(ValueError, match=r"outer\.yaml: studies: got '.*study\.yaml', which holds this study itself"):
        configuration.read(write(tmp_path, f"title: T\nstudies: [{outer}]\n"))
    with pytest.raises(ValueError, match="studies: got 'table10'; expected a file, or a name in "):
        configuration.read(write(tmp_path, "title: T\nstudies: [table10]\n"))


@pytest.mark.parametrize("name", STUDIES)
def test_committed_records_are_found(name: str):
    """By whatever revision of the attacks."""
    runs = configuration.read(name).runs
    found = records.found(runs, RESULTS / FOLDER_NAME)
    assert len(found) == len(runs)
    for run, record in zip(runs, found, strict=True):
        assert record["name"] == run.name_at(record.get("revision", 1))


def test_pictures_are_those_that_can_be_drawn():
    assert tuple(PICTURES) == sections.PICTURES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plot", "digits", "--output", "FILE"), "argument --output: got 'FILE', where FILE is a file; expected"),
        (("plot", "digits", "--output", "FILE/below"), "argument --output: got 'FILE/below', where FILE is a file"),
        (("run", "digits", "--work", "FILE"), "argument --work: got 'FILE'"),
        (("table", "digits", "--results", "FILE"), "argument --results: got 'FILE'"),
        (("stats", "digits", "--output", "FILE"), "argument --output: got 'FILE'"),
        (("run", "digits", "--jobs", "0"), "argument --jobs: got '0'; expected a whole number of at least 1"),
        (("run", "digits", "--device", "gpu"), "argument --device: got 'gpu'; expected a device of torch"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = write(tmp_path, SMALLEST)
    with pytest.raises(SystemExit, match="2"):
        command.main([one.replace("FILE", str(file)) for one in arguments])
    assert message.replace("FILE", str(file)) in capsys.readouterr().err


def test_a_command_prints_the_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path, SMALLEST.replace("title: T", "title: 5"))
    for name in ("run", "table", "plot", "stats"):
        assert command.main([name, str(path)]) == 2
        assert f"{path}: title: got 5; expected text" in capsys.readouterr().err
