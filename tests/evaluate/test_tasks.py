"""Tasks through lm-eval: against its own command line, against scores by hand, and what is kept of them."""

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from task_data import LOCAL, choice_rows, write_lines, write_questions, write_task
from tiny_checkpoints import byte_tokenizer, save, tiny_llama
from typer.testing import CliRunner

from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.load import load_checkpoint
from kinfolk.evaluate.loss import encode_documents, score
from kinfolk.transfer import Pair, save_pair

CONTEXT = 512

pytestmark = pytest.mark.skipif(
    find_spec("lm_eval") is None or find_spec("accelerate") is None, reason="the extra `tasks` is not installed"
)


def tiny(seed, **shape):
    model = tiny_llama(seed, **shape)
    model.config.max_position_embeddings = CONTEXT
    return model


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Two members of a run, a checkpoint in bfloat16, questions, and task files."""
    folder = tmp_path_factory.mktemp("tasks")
    save(folder / "run" / "members" / "small", tiny(0))
    save(folder / "run" / "members" / "large", tiny(1, hidden=32))
    (folder / "run" / "plan.json").write_text("{}")
    save(folder / "half", tiny(2, hidden=32).to(torch.bfloat16))
    write_questions(folder / "questions")
    write_task(
        folder / "shots.yaml",
        num_fewshot=2,
        fewshot_split="train",
        output_type="loglikelihood",
        doc_to_target="{{' ' + choices[gold]}}",
        doc_to_choice=None,
        metric_list=[{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
    )
    rolling = [
        {"metric": name, "aggregation": mean, "higher_is_better": False}
        for name, mean in (("bits_per_byte", "bits_per_byte"), ("word_perplexity", "weighted_perplexity"))
    ]
    write_task(
        folder / "rolling.yaml",
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="query",
        doc_to_choice=None,
        metric_list=rolling,
    )
    return folder


@pytest.fixture(autouse=True)
def _own_datasets_cache(lab, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(lab / "datasets"))


@pytest.fixture
def run(lab, tmp_path):
    """A copy of the run, to be written into."""
    return shutil.copytree(lab / "run", tmp_path / "run")


def command(*arguments, problem=None):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if problem is None:
        assert result.exit_code == 0, result.exception
        return result
    assert isinstance(result.exception, KinfolkError), result.exception
    assert re.search(problem, str(result.exception)), str(result.exception)
    assert result.exception.fix
    assert result.stdout == ""
    return result


def figures(*arguments):
    found = json.loads(command("evaluate", *arguments, "--json").stdout)
    assert found["format"] == 1
    return found["results"]


def one(found, **wanted):
    [record] = [each for each in found if wanted.items() <= each.items()]
    return record


LM_EVAL = """
import runpy
from torch.utils import collect_env
from lm_eval.tasks import _index
every_file = _index.TaskIndex._iter_yaml_files
_index.TaskIndex._iter_yaml_files = lambda root: [] if root.match("lm_eval/tasks") else every_file(root)
collect_env.get_pretty_env_info = str
runpy.run_module("lm_eval", run_name="__main__")
"""
"""`python -m lm_eval`, without two things that take ten seconds and that no task here needs: reading the 14,000 task
files that lm-eval has, and describing the machine."""


def printed_by_lm_eval(stdout):
    """{(task, metric): (value, standard error)} as the table of lm-eval's command line has them."""
    found, task = {}, ""
    for line in stdout.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) == 9 and cells[5] in ("↑", "↓"):
            task = cells[0].removeprefix("- ") or task
            found[task, cells[4]] = (cells[6], cells[8])
    return found


def test_the_same_digits_as_the_command_line_of_lm_eval(lab):
    """Every kind of request, a group, examples in front of questions, and weights that are not float32."""
    files = [lab / "shots.yaml", lab / "rolling.yaml"]
    tasks = ",".join(["local", *map(str, files)])
    arguments = ["run", "--model", "hf", "--model_args", f"pretrained={lab / 'half'}", "--tasks", tasks]
    arguments += ["--include_path", str(LOCAL), "--metadata", f"task_data={lab / 'questions'}", "--device", "cpu"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(lab / "home"), "DISABLE_MULTIPROC": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", LM_EVAL, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ours = figures(lab / "half", "--tasks", tasks, "--task-data", lab / "questions")
    stdout, stderr = child.communicate(timeout=300)
    assert child.returncode == 0, stderr[-2000:]
    theirs = printed_by_lm_eval(stdout)
    assert {(each["task"], each["metric"]) for each in ours} == theirs.keys()
    assert len(theirs) == 9 + 6 + 34 + 3, "nine tasks, six second and third metrics, parts of BLiMP, files"
    for each in ours:
        value, error = theirs[each["task"], each["metric"]]
        assert float(value) == float(f"{each['value']:.4f}")
        assert error in ("N/A", "") if each["stderr"] is None else float(error) == float(f"{each['stderr']:.4f}")
    assert len({each["value"] for each in ours}) > 8, "figures that tell one computation from another"
    assert one(ours, task="shots")["shots"] == 2


def by_hand(logits_of, context, continuation):
    """log p(continuation | context) in bytes of the tiny tokenizer, one position after the other."""
    tokenizer = byte_tokenizer()
    before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, continuation))
    ids = [*before, *after]
    with torch.no_grad():
        logs = logits_of(torch.tensor([ids]))[0].double().log_softmax(-1)
    return sum(logs[place - 1, ids[place]].item() for place in range(len(before), len(ids)))


def best_choices(logits_of, rows, text):
    scores = [[by_hand(logits_of, text.format(**row), f" {choice}") for choice in row["choices"]] for row in rows]
    return [max(range(len(each)), key=each.__getitem__) for each in scores]


def test_scores_by_hand(lab, run):
    model, _ = load_checkpoint(run / "members" / "small", "cpu")
    rows = choice_rows(20, 4, 0)
    write_lines(run / "data" / "arc_easy.jsonl", rows)
    best = best_choices(lambda ids: model(ids).logits, rows, "{query}\nAnswer:")
    expected = sum(row["gold"] == place for row, place in zip(rows, best, strict=True)) / 20
    small = run / "members" / "small"
    found = one(figures(small, "--tasks", "local_arc_easy", "--task-data", run / "data"), metric="acc")
    assert (found["value"], found["examples"], found["requests"], found["cut"]) == (expected, 20, 80, 0)
    assert found["interval"][0] < expected < found["interval"][1]
    # The place of the right answer among the choices decides on nothing.
    draw = random.Random(4)
    for row in rows:
        right = row["choices"][row["gold"]]
        draw.shuffle(row["choices"])
        row["gold"] = row["choices"].index(right)
    write_lines(run / "data" / "arc_easy.jsonl", rows)
    again = one(figures(small, "--tasks", "local_arc_easy", "--task-data", run / "data"), metric="acc")
    assert again["value"] == expected


def test_bits_per_byte_of_lm_eval_are_ours(lab, run):
    path = run / "members" / "small"
    found = one(figures(path, "--tasks", lab / "rolling.yaml"), metric="bits_per_byte")
    model, tokenizer = load_checkpoint(path, "cpu")
    texts = [row["query"] for row in choice_rows(3, 3, 20)]
    ours = score(model, list(encode_documents(tokenizer, texts)), 0, CONTEXT, "cpu")
    assert found["value"] == pytest.approx(ours.bits_per_byte, rel=1e-6)
    assert (found["version"], found["higher_is_better"], found["examples"]) == ("2.5", False, 3)


def test_a_pair_on_a_task(lab, tmp_path):
    base, value = tiny(3), tiny(4)
    save_pair(Pair.of(base, value, alpha=0.7), byte_tokenizer(), tmp_path / "pair")
    rows = choice_rows(20, 2, 2)
    write_lines(tmp_path / "copa.jsonl", rows)
    best = best_choices(lambda ids: base(ids).logits + 0.7 * value(ids).logits, rows, "{query}")
    found = one(figures(tmp_path / "pair", "--tasks", "local_copa", "--task-data", tmp_path))
    assert found["value"] == sum(row["gold"] == place for row, place in zip(rows, best, strict=True)) / 20
    assert found["member"] is None


def test_members_are_measured_once_and_kept_in_their_run(lab, run, monkeypatch):
    def forbidden(*_, **__):
        raise OSError("there is no network")

    monkeypatch.setattr("socket.socket.connect", forbidden)
    arguments = ["evaluate", run, "--tasks", "local_copa,local_lambada", "--task-data", lab / "questions"]
    first = command(*arguments, "--limit", 4)
    assert str(run / "evaluation" / "tasks.json") in first.stderr.replace("\n", "")
    for part in ("local_copa", "acc ↑", "perplexity ↓", "small", "large"):
        assert part in first.stdout
    document = json.loads((run / "evaluation" / "tasks.json").read_bytes())
    shown = json.loads(command(*arguments, "--limit", 4, "--json").stdout)["results"]
    assert document == {"format": 1, "results": [{key: each[key] for key in each if key != "model"} for each in shown]}
    assert [(each["member"], each["task"]) for each in shown] == [
        (member, task) for member in ("small", "large") for task in ("local_copa", "local_lambada", "local_lambada")
    ]
    assert {each["limit"] for each in shown} == {each["examples"] for each in shown} == {4}
    monkeypatch.setattr("kinfolk.evaluate.tasks.load_checkpoint", None)  # nothing is loaded a second time
    again = command(*arguments, "--limit", 4)
    assert again.stdout == first.stdout
    assert "4 of 4 results known from before" in again.stderr
    assert isinstance(CliRunner().invoke(app, [*map(str, arguments), "--limit", "3"]).exception, TypeError)
    monkeypatch.setattr("kinfolk.evaluate.cache.code_digest", lambda: "other code")
    assert isinstance(CliRunner().invoke(app, [*map(str, arguments), "--limit", "4"]).exception, TypeError)


def test_other_questions_are_another_task(lab, run):
    small, data = run / "members" / "small", shutil.copytree(lab / "questions", run / "questions")
    first = command("evaluate", small, "--tasks", "local_copa", "--task-data", data)
    write_lines(data / "eval" / "copa.jsonl", choice_rows(5, 2, 77))
    assert "known" not in command("evaluate", small, "--tasks", "local_copa", "--task-data", data).stderr
    shutil.copytree(lab / "questions", data, dirs_exist_ok=True)
    assert "known" in (again := command("evaluate", small, "--tasks", "local_copa", "--task-data", data)).stderr
    assert again.stdout == first.stdout


def test_what_a_run_keeps(lab, run):
    small, path = run / "members" / "small", run / "evaluation" / "tasks.json"
    given = ["--tasks", "local_copa", "--task-data", lab / "questions"]
    figures(run, *given, "--limit", 2)
    figures(run, *given, "--limit", 3)
    figures(small, *given, "--limit", 3)
    kept = json.loads(path.read_bytes())["results"]
    limits = sorted((each["member"], each["limit"]) for each in kept)
    assert limits == [("large", 2), ("large", 3), ("small", 2), ("small", 3)]
    save(small, tiny(9))
    figures(small, *given, "--limit", 3)
    kept = json.loads(path.read_bytes())["results"]
    assert sorted((each["member"], each["limit"]) for each in kept) == [("large", 2), ("large", 3), ("small", 3)]
    for damage in ("{", "[]", '{"format": 2, "results": []}', '{"format": 1, "results": [1]}'):
        path.write_text(damage)
        command("evaluate", small, *given, problem="tasks.json")
        assert path.read_text() == damage


def test_flips_between_members(lab, run):
    rows = choice_rows(40, 2, 0)
    write_lines(run / "data" / "copa.jsonl", rows)
    right = {}
    for name in ("small", "large"):
        model, _ = load_checkpoint(run / "members" / name, "cpu")
        best = best_choices(lambda ids, model=model: model(ids).logits, rows, "{query}")
        right[name] = [row["gold"] == place for row, place in zip(rows, best, strict=True)]
    lost = sum(a and not b for a, b in zip(right["small"], right["large"], strict=True))
    won = sum(b and not a for a, b in zip(right["small"], right["large"], strict=True))
    assert lost and won
    given = ["consistency", run, "--tasks", "local_copa", "--task-data", run / "data"]
    document = json.loads(command(*given, "--json").stdout)
    [found] = document["flips"]
    assert (found["task"], found["metric"], found["items"]) == ("local_copa", "acc", 40)
    assert [Path(found[end]).name for end in ("first", "second")] == ["small", "large"]
    shares = [found[name]["share"] for name in ("flips", "negative_flips", "positive_flips")]
    assert shares == [(lost + won) / 40, lost / 40, won / 40]
    table = command(*given).stdout
    assert "small, large" in table and f"{lost / 40:.4f} (" in table


def test_texts_that_do_not_fit_are_counted(lab, run):
    rows = [{"query": "x" * 600, "choices": ["a", "b"], "gold": 0}, {"query": "x", "choices": ["a", "b"], "gold": 1}]
    write_lines(run / "data" / "copa.jsonl", rows)
    result = command("evaluate", run / "members" / "small", "--tasks", "local_copa", "--task-data", run / "data")
    assert "2 of 4 texts of local_copa lost their beginning" in result.stderr.replace("\n", " ")
    write_lines(run / "data" / "copa.jsonl", [{**rows[0], "choices": ["a" * 600, "b"]}])
    small = run / "members" / "small"
    given = ["--tasks", "local_copa", "--task-data", run / "data"]
    command("evaluate", small, *given, problem="local_copa: the task has an answer of 601 tokens")
    short = tiny_llama(0)
    save(small, short)
    given = ["--tasks", "local_gsm8k", "--task-data", lab / "questions"]
    command("evaluate", small, *given, problem="writes answers of 192 tokens, and the model was made for 64")


@pytest.fixture
def only_our_tasks(monkeypatch):
    """Leave the index of lm-eval's own 14,000 files unread, which takes its ten seconds."""
    from kinfolk.evaluate import task_names

    monkeypatch.setattr(task_names._Shelf, "theirs", task_names._Shelf.ours)


@pytest.mark.usefixtures("only_our_tasks")
def test_groups_and_patterns(lab, run):
    small = run / "members" / "small"
    found = figures(small, "--tasks", "local_blimp", "--task-data", lab / "questions", "--limit", 1)
    whole, *parts = found
    assert (whole["task"], whole["part_of"], whole["examples"], len(parts)) == ("local_blimp", None, 34, 34)
    assert {part["part_of"] for part in parts} == {"local_blimp"}
    assert whole["value"] == pytest.approx(sum(part["value"] for part in parts) / 34)
    assert 0 < whole["value"] < 1
    found = figures(small, "--tasks", "local_[cp]*", "--task-data", lab / "questions", "--limit", 2)
    assert sorted({each["task"] for each in found}) == ["local_copa", "local_piqa"]


def test_intervals():
    from kinfolk.evaluate.task_figures import interval

    # Wilson's interval for 8 of 10 at 90 %, by its formula.
    z, n, share = 1.6448536269514722, 10, 0.8
    centre, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    expected = [(centre + side * spread) / (1 + z * z / n) for side in (-1, 1)]
    assert interval(0.8, 0.13, [1] * 8 + [0] * 2, "acc") == pytest.approx(expected)
    assert interval(0.0, 0.0, [0] * 20, "acc")[1] > 0.05, "that none of 20 was right does not prove that none ever is"
    logs = [-2.0, -4.0, -6.0, -3.0]
    low, high = interval(math.exp(3.75), 30.0, logs, "perplexity")
    assert math.log(low) + math.log(high) == pytest.approx(7.5)
    error = math.sqrt(sum((each + 3.75) ** 2 for each in logs) / 3 / 4)
    assert math.log(high) - math.log(low) == pytest.approx(2 * z * error)
    assert interval(0.5, 0.1, None, "acc") == pytest.approx([0.5 - z * 0.1, 0.5 + z * 0.1])
    assert interval(0.5, None, None, "acc") is None


LOCAL_COPA = ["--tasks", "local_copa", "--task-data", "questions"]


@pytest.mark.usefixtures("only_our_tasks")
@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["--tasks", "local_cpoa"], "there is no task 'local_cpoa'\n.*did you mean local_copa"),
        (["--tasks", " , "], "no task to run"),
        (["--tasks", "nowhere.yaml"], "no such task file"),
        (["--tasks", "broken.yaml"], "broken.yaml: no task file of lm-eval"),
        (["--tasks", "list.yaml"], "list.yaml: no task file of lm-eval"),
        (["--tasks", "nameless.yaml"], "nameless.yaml: no task file of lm-eval"),
        (["--tasks", "template.yaml"], "template.*cannot be used.*nonesuch"),
        (["--tasks", "dataless.yaml"], "dataless.*questions cannot be had"),
        (["--tasks", "unsafe.yaml"], "code that the model writes"),
        (["--tasks", "metric.yaml"], "no metric 'nonesuch' of its own"),
        (["--tasks", "shots.yaml,copy/shots.yaml"], "two tasks are called shots"),
        (["--tasks", "local_copa"], "it is not said where copa.jsonl"),
        (["--tasks", "local_copa", "--task-data", "nowhere"], "local_copa: .*nowhere: there is no such folder"),
        (["--tasks", "local_copa", "--task-data", "empty"], "there is no copa.jsonl"),
        (["--tasks", "local_copa", "--task-data", "twice"], "could both be meant"),
        (["--tasks", "local_copa", "--task-data", "garbled"], "copa.jsonl: cannot be read"),
        (["--tasks", "local_copa", "--task-data", "lacking"], "copa.jsonl: line 1 has no field 'choices'"),
        ([*LOCAL_COPA, "--text", "text"], "--text is about a text"),
        ([*LOCAL_COPA, "--stride", "4"], "--stride is about a text"),
        (["--limit", "4"], "--limit is about tasks"),
    ],
)
def test_faulty_tasks_cost_nothing(lab, tmp_path, monkeypatch, given, problem):
    monkeypatch.setattr("kinfolk.evaluate.tasks.load_checkpoint", None)  # no model is loaded
    monkeypatch.chdir(tmp_path)
    shutil.copytree(lab / "questions", "questions")
    Path("broken.yaml").write_text("task: [")
    Path("list.yaml").write_text("- task")
    Path("nameless.yaml").write_text("output_type: multiple_choice")
    write_task(tmp_path / "template.yaml", doc_to_text="{{nonesuch}}")
    write_task(tmp_path / "dataless.yaml")
    Path("dataless-asked.jsonl").unlink()
    write_task(tmp_path / "unsafe.yaml", unsafe_code=True)
    metrics = [{"metric": "nonesuch", "aggregation": "mean", "higher_is_better": True}]
    write_task(tmp_path / "metric.yaml", metric_list=metrics)
    (tmp_path / "copy").mkdir()
    for path in (tmp_path / "shots.yaml", tmp_path / "copy" / "shots.yaml"):
        write_task(path)
    Path("empty").mkdir()
    rows = choice_rows(2, 2, 0)
    for place in ("twice/a", "twice/b"):
        write_lines(Path(place) / "copa.jsonl", rows)
    write_lines(Path("garbled") / "copa.jsonl", rows).write_text("{")
    write_lines(Path("lacking") / "copa.jsonl", [{"query": "?", "gold": 0}])
    command("evaluate", lab / "run", *given, problem=problem)


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_ends(folder):
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)


def diverge(folder):
    model = tiny(0)
    model.lm_head.weight.data[7] = math.nan
    save(folder, model)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda folder: change_config(folder, token_ready=False), "trained on patches last"),
        (without_ends, "neither BOS nor EOS"),
        (diverge, "local_copa: the model's probabilities are not numbers"),
    ],
)
def test_faulty_models(lab, run, damage, problem):
    damage(run / "members" / "large")
    given = ["--tasks", "local_copa", "--task-data", lab / "questions", "--limit", 2]
    command("evaluate", run, *given, problem=problem)
    assert not (run / "evaluation").exists()
    if "patches" in problem:
        assert command("evaluate", run, *given, "--force")


def test_consistency_needs_two_models_and_answers(lab, run):
    given = ["--tasks", "local_copa", "--task-data", lab / "questions"]
    command("consistency", run / "members" / "small", *given, problem="1 model to compare")
    command("consistency", run, "--tasks", lab / "rolling.yaml", problem="right or wrong")


def test_without_lm_eval(lab, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    command("evaluate", lab / "run", *LOCAL_COPA, problem="lm_eval is not installed(.|\n)*kinfolk\\[tasks\\]")
