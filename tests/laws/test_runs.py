"""Tables of runs: what is read, what is flagged, what is refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fitting import TRUTH, design

from kinfolk.errors import KinfolkError
from kinfolk.laws.columns import Choice, unit_in_name
from kinfolk.laws.fitted import fit_document, fit_runs
from kinfolk.laws.runs import RunTable, read_runs

SIZE, TOKENS = design(4)
LOSS = TRUTH.predict(SIZE, TOKENS)


def write(path: Path, columns: dict[str, object]) -> Path:
    lists = {name: list(values) for name, values in columns.items()}  # type: ignore[call-overload]
    lines = [",".join(lists)] + [",".join(map(str, row)) for row in zip(*lists.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def table(tmp_path: Path, columns: dict[str, object] | None = None, **choice: str) -> RunTable:
    columns = columns or {"params": SIZE, "tokens": TOKENS, "loss": LOSS}
    return read_runs([write(tmp_path / "runs.csv", columns)], Choice(**choice))


def refusal(tmp_path: Path, columns: dict[str, object], **choice: str) -> str:
    with pytest.raises(KinfolkError) as caught:
        table(tmp_path, columns, **choice)
    assert caught.value.fix and caught.value.where
    return str(caught.value)


@pytest.mark.parametrize(
    ("names"),
    [
        ("N", "D", "loss"),
        ("Model Size", "training tokens", "val_loss"),
        ("n_params", "n_tokens", "L"),
        ("PARAMETERS", "Tokens", "Final Loss"),
    ],
)
def test_usual_names_are_known(tmp_path: Path, names: tuple[str, str, str]) -> None:
    found = table(tmp_path, dict(zip(names, (SIZE, TOKENS, LOSS), strict=True)))
    assert np.array_equal(found.parameters, SIZE) and np.array_equal(found.loss, LOSS)


def test_named_columns(tmp_path: Path) -> None:
    columns = {"a b": SIZE, "x": TOKENS, "loss": LOSS + 1, "y": LOSS}
    found = table(tmp_path, columns, parameters="a b", tokens="x", loss="y")
    assert np.array_equal(found.loss, LOSS)


def test_parquet_reads_as_csv_does(tmp_path: Path) -> None:
    columns = {"params": SIZE, "tokens": TOKENS, "loss": LOSS}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "runs.parquet")
    found = read_runs([tmp_path / "runs.parquet"], Choice())
    assert np.array_equal(found.tokens, table(tmp_path).tokens)
    assert np.array_equal(found.loss, LOSS)


def test_tokens_from_compute(tmp_path: Path) -> None:
    found = table(tmp_path, {"N": SIZE, "C": 6 * SIZE * TOKENS, "loss": LOSS})
    assert np.allclose(found.tokens, TOKENS)
    assert any("C / 6N" in finding for finding in found.findings)


def test_units_in_names(tmp_path: Path) -> None:
    found = table(tmp_path, {"params_B": SIZE / 1e9, "tokens (millions)": TOKENS / 1e6, "loss": LOSS})
    assert np.allclose(found.parameters, SIZE) and np.allclose(found.tokens, TOKENS)
    assert any("billions" in finding for finding in found.findings)


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("params_B", 1e9),
        ("N (M)", 1e6),
        ("tokens billions", 1e9),
        ("D_trillion", 1e12),
        ("nb", 1),
        ("a b", 1),
        ("B", 1),
    ],
)
def test_unit_of_a_name(name: str, factor: float) -> None:
    assert unit_in_name(name)[0] == factor


def test_what_is_counted_and_measured_follows_the_names(tmp_path: Path) -> None:
    found = table(
        tmp_path,
        {"N_no_embed": SIZE, "tokens": TOKENS, "bits_per_byte": LOSS},
        parameters="N_no_embed",
        loss="bits_per_byte",
    )
    assert (found.counting, found.unit) == ("non_embedding", "bits per byte")
    assert table(tmp_path).counting == "total"
    assert any("all parameters" in finding for finding in table(tmp_path).findings)


@pytest.mark.parametrize("missing", ["params", "tokens", "loss"])
def test_missing_columns_are_named(tmp_path: Path, missing: str) -> None:
    columns: dict[str, object] = {"params": SIZE, "tokens": TOKENS, "loss": LOSS}
    columns["something"] = columns.pop(missing)
    message = refusal(tmp_path, columns)
    assert "something" in message and "--" + {"params": "parameters"}.get(missing, missing) in message
    assert "nothing" in refusal(tmp_path, columns, loss="nothing")


@pytest.mark.parametrize("column", ["params", "tokens", "loss"])
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_what_is_not_positive_is_refused_by_line(tmp_path: Path, column: str, value: float) -> None:
    columns = {"params": SIZE.copy(), "tokens": TOKENS.copy(), "loss": LOSS.copy()}
    columns[column][3] = value
    message = refusal(tmp_path, columns)
    assert "line 5" in message and column in message


@pytest.mark.parametrize(
    ("params", "tokens"),
    [(1e6, 1), (1e9, 1), (1, 1e6), (1, 1e9), (1e6, 1e6), (1e9, 1e9), (1e6, 1e9), (1e9, 1e12), (1e-6, 1), (1, 1e-6)],
)
def test_columns_in_other_units_are_refused(tmp_path: Path, params: float, tokens: float) -> None:
    message = refusal(tmp_path, {"params": SIZE / params, "tokens": TOKENS / tokens, "loss": LOSS})
    assert "looks like" in message or "off by a factor" in message or "too large" in message


@pytest.mark.parametrize("column", ["params", "tokens"])
@pytest.mark.parametrize("factor", [1e6, 1e9, 1e-6, 1e-9])
def test_a_single_row_in_other_units_is_named(tmp_path: Path, column: str, factor: float) -> None:
    columns = {"params": SIZE.copy(), "tokens": TOKENS.copy(), "loss": LOSS}
    columns[column][1] *= factor
    assert "line 3" in refusal(tmp_path, columns)


def test_perplexities_are_refused(tmp_path: Path) -> None:
    assert "perplexit" in refusal(tmp_path, {"N": SIZE, "D": TOKENS, "loss": np.exp(LOSS + 1)})
    assert "perplexit" in refusal(tmp_path, {"N": SIZE, "D": TOKENS, "val_ppl": LOSS}, loss="val_ppl")


@pytest.mark.parametrize(
    ("column", "what"),
    [
        ("tokenizer", "tokenizers"),
        ("Vocab Size", "tokenizers"),
        ("eval_set", "evaluation sets"),
        ("dataset", "training data"),
    ],
)
def test_mixed_populations_are_refused(tmp_path: Path, column: str, what: str) -> None:
    values = ["32000", "50257"] if "Vocab" in column else ["one", "two"]
    columns = {"N": SIZE, "D": TOKENS, "loss": LOSS, column: np.resize(values, len(SIZE))}
    message = refusal(tmp_path, columns)
    assert what in message and values[1] in message and "--where" in message
    path = write(tmp_path / "runs.csv", columns)
    assert len(read_runs([path], Choice(), only={column: values[0]})) == len(SIZE) / 2
    with pytest.raises(KinfolkError, match="no row"):
        read_runs([path], Choice(), only={column: "three"})
    with pytest.raises(KinfolkError, match="no column"):
        read_runs([path], Choice(), only={"colour": "red"})


def test_duplicated_rows_are_counted_once_and_named(tmp_path: Path) -> None:
    twice = {"N": np.append(SIZE, SIZE[0]), "D": np.append(TOKENS, TOKENS[0]), "loss": np.append(LOSS, LOSS[0])}
    found = table(tmp_path, twice)
    assert len(found) == len(SIZE)
    assert any("duplicated" in finding and "line 14 (as line 2)" in finding for finding in found.findings)
    seeds = twice | {"seed": range(len(SIZE) + 1)}
    assert len(table(tmp_path, seeds)) == len(SIZE) + 1
    assert any("same parameters, tokens and loss" in finding for finding in table(tmp_path, seeds).findings)


def test_rows_without_a_value_are_left_out_and_named(tmp_path: Path) -> None:
    loss = [str(value) for value in LOSS]
    loss[2], loss[5] = "", "nan"
    found = table(tmp_path, {"N": SIZE, "D": TOKENS, "loss": loss})
    assert len(found) == len(SIZE) - 2
    assert any("line 4, line 7" in finding for finding in found.findings)


def test_odd_columns_are_flagged(tmp_path: Path) -> None:
    rising = table(tmp_path, {"N": SIZE, "D": TOKENS, "loss": LOSS[::-1]})
    assert any("rises" in finding for finding in rising.findings)
    other = table(tmp_path, {"N": SIZE, "D": TOKENS, "loss": LOSS, "flops": 20 * SIZE * TOKENS})
    assert any("3.33 times 6 N D" in finding for finding in other.findings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "parameters"),
        ("N,D,loss\n", "no runs"),
        ("N,D,loss\n1e8,2e9\n", "line 2 has 2 values"),
        ("N,D,loss\n1e8,2e9,3,4\n", "line 2 has 4 values"),
        ("N,D,loss\n1e8,2e9,three\n", "'three' is not a number"),
        ("N,D,loss,loss\n1e8,2e9,3,4\n", "two columns"),
    ],
)
def test_damaged_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(KinfolkError) as caught:
        read_runs([tmp_path / "runs.csv"], Choice())
    assert message in str(caught.value) or "no runs" in str(caught.value)


@pytest.mark.parametrize("name", ["runs.csv", "runs.parquet", "runs.xlsx", "missing.csv"])
def test_files_that_are_no_tables_are_refused(tmp_path: Path, name: str) -> None:
    if not name.startswith("missing"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00garbage\n\x80,1\n")
    with pytest.raises(KinfolkError):
        read_runs([tmp_path / name], Choice())


@settings(max_examples=25, deadline=None)
@given(
    data=st.lists(
        st.tuples(*[st.sampled_from(["1e8", "2e9", "3.1", "0", "-1", "nan", "", "x", "1e300", "1e-300", "inf"])] * 3),
        max_size=8,
    )
)
def test_any_table_gives_finite_numbers_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, data: list[tuple[str, str, str]]
) -> None:
    path = tmp_path_factory.mktemp("any") / "runs.csv"
    path.write_text("N,D,loss\n" + "".join(",".join(row) + "\n" for row in data))
    try:
        found = read_runs([path], Choice())
    except KinfolkError:
        return
    json.dumps(fit_document(fit_runs(found, resamples=2)), allow_nan=False)


def test_few_runs_borrow_and_quote_no_parameter(tmp_path: Path) -> None:
    fitted = fit_runs(table(tmp_path, {"N": SIZE[:3], "D": TOKENS[:3], "loss": LOSS[:3]}))
    document = fit_document(fitted)
    assert document["identified"] is False and document["borrowed_from"] == "besiroglu"
    assert all(document[name] is None for name in ("E", "A", "B", "alpha", "beta"))
    assert all(document["intervals"][name] is None for name in ("E", "A", "B", "alpha", "beta"))
    assert fitted.law.standing == "borrowed"
    assert fitted.law.calibration is not None and fitted.law.calibration.basis == "assumed"
    assert fitted.law.predict(float(SIZE[0]), float(TOKENS[0])) == pytest.approx(float(LOSS[0]), rel=0.02)


def test_one_ratio_borrows_and_says_why(tmp_path: Path) -> None:
    size, tokens = design(12, (20,))
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(12))
    fitted = fit_runs(table(tmp_path, {"N": size, "D": tokens, "loss": TRUTH.predict(size, tokens) * noise}))
    assert fitted.borrowed_from == "besiroglu"
    assert any("20 tokens per parameter" in finding for finding in fitted.findings)
    assert not 0.7 < fitted.next_run.tokens / fitted.next_run.parameters / 20 < 1.4
    assert fitted.law.calibration is not None and fitted.law.calibration.basis == "rolling hold-out"


def test_a_slip_in_one_loss_is_named(tmp_path: Path) -> None:
    size, tokens = design(5)
    noise = np.exp(0.001 * np.random.default_rng(0).standard_normal(len(size)))
    loss = TRUTH.predict(size, tokens) * noise
    loss[4] *= 1.3
    fitted = fit_runs(table(tmp_path, {"N": size, "D": tokens, "loss": loss}), resamples=0)
    assert any("far from the law" in finding and "line 6" in finding for finding in fitted.findings)


def test_one_loss_for_all_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("params,tokens,loss\n1e8,2e9,3\n2e8,4e9,3\n4e8,8e9,3\n")
    with pytest.raises(KinfolkError, match="in every row"):
        read_runs([path], Choice())


def test_unlike_recipes_at_one_point_are_said(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("params,tokens,loss\n1e8,2e9,3.3\n1e8,2e9,3.6\n2e8,4e9,3.1\n2e8,4e9,3.11\n")
    assert any("2 points" in finding and "9%" in finding for finding in read_runs([path], Choice()).findings)
    path.write_text("params,tokens,loss\n1e8,2e9,3.3\n1e8,2e9,3.31\n2e8,4e9,3.1\n")
    assert not any("unlike recipes" in finding for finding in read_runs([path], Choice()).findings)


def test_ways_of_counting_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("params,tokens,loss,convention\n1e8,2e9,3.3,all\n2e8,4e9,3.1,body\n")
    with pytest.raises(KinfolkError, match="ways of counting parameters"):
        read_runs([path], Choice())
