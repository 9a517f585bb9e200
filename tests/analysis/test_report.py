"""`dit report`: one page with the study's own numbers, whatever parts the study lacks, with everything from a run escaped."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from synthetic_study import cells, score_of, write_run, write_study

from analysis import forecast
from analysis.fits.validation import validate
from analysis.report.conclusions import forecasts
from analysis.report.costs import costs
from analysis.report.page import render
from analysis.report.tables import MOST_ROWS, score_table, written
from analysis.results import collect, losses
from analysis.seeds import mean_and_deviation
from dit.cli import main
from dit.design import flops
from dit.duration import duration
from dit.errors import UserError
from dit.store.study import RunStore, Study, save_study

EVIL = '</script><script>alert("x")</script> <img src=x onerror=alert(1)> & \u2028 "quoted"'
RUNS = cells(
    blocks=("adaln", "adaln_zero"), sizes=("S", "B"), patches=(4, 2), seeds=(0, 1), sampling=(8, 16), steps=100
)


class Page(HTMLParser):
    """What a browser would find: tags, executable scripts, table rows by the id of their box, and all text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.scripts, self.tables, self.text = [], [], {}, []
        self._box, self._script = None, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if attrs.get("class") == "table":
            self._box = attrs["id"]
            self.tables[self._box] = []
        if tag == "tr" and self._box:
            self.tables[self._box].append([])
        if tag in ("td", "th") and self._box:
            self.tables[self._box][-1].append("")
        if tag == "script":
            self._script = attrs
            self.scripts.append([attrs.get("type"), ""])
        if tag == "section":
            self._box = None

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None
        if tag == "table":
            self._box = None

    def handle_data(self, data):
        if self._script is not None:
            self.scripts[-1][1] += data
            return
        self.text.append(data)
        if self._box and self.tables[self._box] and self.tables[self._box][-1]:
            self.tables[self._box][-1][-1] += data.strip()

    @property
    def words(self):
        return " ".join("".join(self.text).split())

    @property
    def charts(self):
        (data,) = [text for kind, text in self.scripts if kind == "application/json"]
        return {one["id"]: one for one in json.loads(data, parse_constant=pytest.fail)}

    def rows(self, table):
        head, *rows = self.tables[table]
        return [dict(zip(head, row)) for row in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study") / "demo", RUNS, failed={3: EVIL})


@pytest.fixture(scope="module")
def page(folder):
    return Page(render(collect(folder)))


def test_the_tables_hold_every_score_and_failure(folder, page):
    table = collect(folder).table
    rows = page.rows("scores")
    assert len(rows) == len(table)
    for row, (_, expected) in zip(rows, table.iterrows()):
        assert row["run"] == expected["run"]
        assert row["step"] == str(expected["step"])
        if expected["status"] == "done":
            assert float(row["fd digits"]) == pytest.approx(expected["fd_digits"], rel=1e-3)
    assert len(page.rows("cells")) == 8


def test_cells_are_means_over_seeds_at_the_common_step(page):
    row = next(
        one for one in page.rows("cells") if (one["block"], one["size"], one["patch"]) == ("adaLN-Zero", "B", "2")
    )
    both = [run for run in RUNS if (run.model.block, run.model.size, run.model.patch_size) == ("adaln_zero", "B", 2)]
    scores = [score_of(run, run.evaluations[4]) for run in both]
    assert float(row["fd digits"]) == pytest.approx(sum(scores) / 2, rel=1e-3)
    assert float(row["sd"]) == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5, rel=1e-3)
    assert row["seeds"] == "2"


def test_whatever_comes_from_a_run_is_text(page):
    assert [kind for kind, _ in page.scripts] == ["application/json", None, None]
    assert "img" not in [tag for tag, attrs in page.tags if "src" in attrs and not attrs["src"].startswith("data:")]
    assert not any("onerror" in attrs for _, attrs in page.tags)
    assert page.rows("failure-table")[0]["reason"] == EVIL
    assert EVIL.split()[0] in page.words


def test_names_of_runs_are_escaped_in_the_charts_data(folder):
    study = collect(folder)
    named = replace(study, table=study.table.assign(run="</script><b>" + study.table["run"]))
    text = render(named)
    data = re.search(r'id="chart-data">(.*?)</script>', text, re.DOTALL)[1]
    assert "<" not in data
    assert json.loads(data)[0]["series"][0]["points"][0][2].startswith("</script><b>")


def test_only_the_pages_own_scripts_may_run_and_nothing_is_fetched(page):
    (policy,) = [attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert len(re.findall(r"'sha256-[A-Za-z0-9+/=]{44}'", policy)) == 2
    assert "unsafe-inline" not in policy.split("script-src")[1]
    for tag, attrs in page.tags:
        assert tag != "link"
        for name in ("src", "href"):
            assert attrs.get(name, "#").startswith(("#", "data:image/png"))
    assert not any("sourceMappingURL" in text for _, text in page.scripts)


def test_charts_hold_every_score_under_its_run(folder, page):
    charts = page.charts
    assert set(charts) == {"compute", "gflops", "blocks", "sampling", "loss"}
    points = {(one[2], one[0]): one[1] for series in charts["compute"]["series"] for one in series["points"]}
    table = collect(folder).table.query("sampling_steps == 32")
    assert points == {(row.run, row.train_gflops): row.fd_digits for row in table.itertuples()}
    assert sum(bool(series["means"]) for series in charts["gflops"]["series"]) == 7  # one cell's second seed failed
    assert charts["compute"]["x"]["log"]
    assert charts["compute"]["group"] == "adaLN-Zero"
    assert len(page.charts["loss"]["series"]) == 8


def test_the_summary_says_the_numbers(folder, page):
    assert "16 runs of 8 cells with" in page.words
    assert "15 runs reached their last step, 1 failed." in page.words
    best = collect(folder).table.query("sampling_steps == 32 and step == 100").groupby(["block", "size", "patch_size"])
    mean = best["fd_digits"].mean()
    assert mean.idxmin() == ("adaln_zero", "B", 2)
    assert (
        f"the best of 8 cells is adaLN-Zero B/2 with FD (digits features, 512 samples) {mean.min():.2f} ±" in page.words
    )
    assert "Blocks at B/2: adaLN-Zero" in page.words


def test_costs_are_the_plan_and_the_log(folder):
    cost = costs(collect(folder), losses(folder))
    planned = sum(flops.train_gflops(run, 100) for run in RUNS)
    done = sum(flops.train_gflops(run, 50 if place == 3 else 100) for place, run in enumerate(RUNS))
    assert cost.planned_gflops == pytest.approx(planned)
    assert cost.done_gflops == pytest.approx(done)
    assert (cost.runs, cost.cells, cost.failed, cost.unfinished) == (16, 8, 1, 1)
    assert cost.train_s == pytest.approx((15 * 100 + 50) * 64 / 100.0)  # at 100 images/s, as the rows say
    sampled = sum(
        one.num_samples * flops.sampling_gflops(run.model, one.sampling_steps, one.cfg_scale)
        for run in RUNS
        for one in run.evaluations
    )
    assert cost.sampling_gflops == pytest.approx(sampled)
    assert duration(7384) == "2 h 03 min"


def test_a_filter_chooses_runs_for_costs_and_provenance_too(tmp_path):
    large = [run for run in RUNS if run.model.size == "B"]
    folder = write_study(tmp_path / "demo", RUNS, run_now=tuple(run for run in RUNS if run.seed == 0))
    page = Page(render(collect(folder).where("size == 'B'")))
    planned = sum(flops.train_gflops(run, 100) for run in large)
    done = sum(flops.train_gflops(run, 100) for run in large if run.seed == 0)
    assert f"8 runs: {written(done)} of {written(planned)} planned training Gflops done" in page.words
    assert "8 runs of 4 cells" in page.words and "Chosen rows only: size == 'B'" in page.words
    assert {row["run"] for row in page.rows("runs")} == {run.run for run in large}
    assert costs(collect(folder).where("step > 100"), losses(folder)) is None


@pytest.mark.parametrize(
    ("mean", "sd", "text"),
    [
        (743.77, 152.08, "744 ± 152"),
        (2348.6, 949.3, "2,349 ± 949"),
        (3.1416, 0.0271, "3.142 ± 0.027"),
        (5.0, 0.0, "5 ± 0"),
    ],
)
def test_a_mean_ends_where_its_deviation_does(mean, sd, text):
    assert mean_and_deviation(mean, sd) == text


def test_fits_and_their_methods_are_on_the_page(page):
    assert "Gflops or parameters (adaLN-Zero):" in page.words
    assert "one multiply-add is one flop" in page.words
    assert "Not fitted" in page.words


def test_forecasts_stand_beside_what_was_measured_since(tmp_path, monkeypatch):
    """Frozen for L, of which one cell is trained afterwards: its row, what is still waited for, and a file that was changed."""
    monkeypatch.setattr(forecast, "validate", lambda data, loss: validate(data, ("power",), loss))
    runs = cells(blocks=("adaln_zero",), sizes=("S", "B", "L"), patches=(4, 2), sampling=(), steps=100)
    folder = write_study(tmp_path / "demo", tuple(run for run in runs if run.model.size != "L"))
    save_study(folder, Study("demo", "", runs))
    assert forecasts(collect(folder)) == []
    made = forecast.freeze(collect(folder), "L", form="power")
    path = forecast.save(made, folder / "forecasts")
    [part] = forecasts(collect(folder))
    assert part.title == "Forecasts" and part.table is None
    assert part.sentences[0].startswith(f"L, frozen before training, {made.created}; not measured yet: adaln_zero L/4")

    trained = next(run for run in runs if (run.model.size, run.model.patch_size) == ("L", 4))
    write_run(folder, "demo", trained)
    [part] = forecasts(collect(folder))
    told = next(one for one in made.cells if one.patch_size == 4)
    measured = score_of(trained, trained.evaluations[4])
    row = {column.name: cell for column, cell in zip(part.table.columns, part.table.rows[0])}
    assert len(part.table.rows) == 1 and row["cell"].text == "adaLN-Zero L/4"
    assert (row["forecast"].value, row["measured"].value) == pytest.approx((told.score, measured))
    assert row["error %"].value == pytest.approx(100 * (told.score / measured - 1))
    assert row["in the interval"].text == ("yes" if measured in told.prediction else "no")
    assert "not measured yet: adaln_zero L/2" in part.sentences[0]

    path.write_text(path.read_text().replace('"target": "L"', '"target": "XL"'))
    with pytest.raises(UserError, match="has changed since it was written"):
        forecasts(collect(folder))
    path.write_text("[]")
    with pytest.raises(UserError, match="is not a forecast"):
        forecasts(collect(folder))


def test_samples_are_in_the_page(page):
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 4 + 4
    assert all(attrs["alt"].startswith("samples of adaln") for attrs in images)


def test_provenance_lists_runs_with_their_hashes(page):
    assert [(row["run"], row["hash"]) for row in page.rows("runs")] == [(run.run, run.hash) for run in RUNS]
    assert re.search(r"SHA-256 of the results table ?[0-9a-f]{64}", page.words)


def test_one_cell_is_enough(tmp_path):
    folder = write_study(tmp_path / "demo", RUNS[:1])
    page = Page(render(collect(folder)))
    assert set(page.charts) == {"compute", "gflops", "loss"}
    assert "Every cell has one seed" in page.words
    assert "No run failed." in page.words


def test_only_failures_is_enough(tmp_path):
    runs = tuple(replace(run, evaluations=()) for run in RUNS[:2])
    save_study(tmp_path / "demo", Study("demo", "", runs))
    for run in runs:
        write_run(tmp_path / "demo", "demo", run, failed="out of memory")
        for path in (RunStore(tmp_path / "demo", run).path / "metrics").glob("*"):
            path.unlink()
    page = Page(render(collect(tmp_path / "demo")))
    assert page.charts == {}
    assert "No score is on record yet." in page.words
    assert [row["reason"] for row in page.rows("failure-table")] == ["out of memory"] * 2


def test_published_numbers_make_a_page_from_the_command_line(tmp_path, capsys):
    path = tmp_path / "out" / "paper.html"
    assert main(["report", "paper", "--out", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    page = Page(path.read_text(encoding="utf8"))
    assert "adaLN-Zero −0.93" in page.words
    assert "held-out error" in page.words
    assert "the best of 15 cells is adaLN-Zero XL/2 with FID-50K 19.47" in page.words


def test_the_summary_of_the_paper_says_what_its_numbers_rest_on():
    page = Page(render(collect("paper")))
    assert "each rests on 1 cell (XL/2) and the reference's exponent" in page.words
    assert re.search(r"on sizes held out it is off by \d+\.\d % in the median, \d+(\.\d+)? % at most", page.words)
    assert "1 of 1 cells" not in page.words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "nowhere"], "no folder nowhere"),
        (["report", "DIR", "--where", "size =="], "does not parse"),
        (["report", "DIR", "--out", "DIR"], "is a folder: expected a file for the report"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, capsys, arguments, message):
    assert main([argument.replace("DIR", str(folder)) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_a_table_of_very_many_scores_keeps_the_last_of_each_run(folder):
    study = collect(folder)
    many = replace(study, table=study.table.loc[study.table.index.repeat(-(-(MOST_ROWS + 1) // len(study.table)))])
    made = score_table(many)
    assert len(made.rows) < MOST_ROWS
    assert made.more == len(many.table) - len(made.rows)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (12345, "12,345"),
        (0.00002306, "2.306e-5"),
        (3.645e10, "3.645e10"),
        (19.47, "19.47"),
        (4427.4, "4,427"),
        (0.0, "0"),
    ],
)
def test_numbers_are_written_to_four_digits(value, text):
    assert written(value) == text
