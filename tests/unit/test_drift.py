"""What drift figures promise: no more false alarms than said, however often one looks, and what moved by name."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill import cli
from potstill.errors import ManifestMismatch, PotstillError
from potstill.watching.evidence import Stream, bets_against, psi
from potstill.watching.features import LENGTHS, bin_names, bin_of, script_of, seen_of
from potstill.watching.monitor import Monitor
from potstill.watching.offline import captured_exchanges, figures, watched
from potstill.watching.profile import PROFILE, Profile, make_profile
from potstill.watching.proportions import Share, difference_interval, verdict
from potstill.watching.settings import MonitorSettings
from tests.unit.watch_place import SECRET_WORD, artifact_folder, example, exchange, task, text_of


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=8).filter(lambda each: sum(each) > 20),
    st.booleans(),
    st.floats(0, 0.1),
    st.randoms(use_true_random=False),
)
def test_no_bet_gains_on_average_while_shares_keep_to_their_bounds(
    reference: list[int], ordered: bool, tolerance: float, draw: random.Random
) -> None:
    """The mean factor of every bet is at most 1 for every share up to its bound: that is what Ville's bound needs."""
    bets = bets_against(reference, ordered=ordered, alpha=0.05, tolerance=tolerance)
    for bound, hit, miss in zip(bets.bounds, bets.hit, bets.miss, strict=True):
        share = bound * draw.random()
        means = share * np.exp(hit) + (1 - share) * np.exp(miss)
        assert (means <= 1 + 1e-9).all()
        at_bound = bound * np.exp(hit) + (1 - bound) * np.exp(miss)
        assert np.allclose(at_bound, 1)


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 12), st.integers(0, 10_000), st.booleans())
def test_false_alarms_keep_to_their_bound_over_references_and_streams(size: int, seed: int, ordered: bool) -> None:
    """Reference and stream are drawn anew each time: the small sample of the reference is in the promise."""
    alpha, streams, alarms = 0.1, 60, 0
    draw = np.random.default_rng(seed)
    truth = draw.dirichlet(np.ones(size))
    for _ in range(streams):
        reference = draw.multinomial(80, truth).tolist()
        stream = Stream(bets_against(reference, ordered=ordered, alpha=alpha / 2, tolerance=0.0), size, 50)
        alarmed = False
        for _ in range(20):
            for category in draw.choice(size, 20, p=truth).tolist():
                stream.add(category)
            alarmed |= stream.look()[0] >= math.log(2 / alpha)
        alarms += alarmed
    assert alarms <= 16  # of 60 at one in ten: more has a chance of 1 in 3,000


def test_a_late_change_is_seen_soon_though_much_went_before() -> None:
    draw = np.random.default_rng(0)
    stream = Stream(bets_against([900, 90, 10], ordered=False, alpha=0.005, tolerance=0.0), 3, 200)
    for category in draw.choice(3, 5000, p=[0.9, 0.09, 0.01]).tolist():
        stream.add(category)
    assert stream.look()[0] < math.log(200)
    for category in draw.choice(3, 400, p=[0.7, 0.09, 0.21]).tolist():
        stream.add(category)
    evidence, which, since = stream.look()
    assert evidence > math.log(200)
    assert which is not None
    assert which[2]
    assert 4800 <= since <= 5400


def test_counts_of_two_processes_weigh_as_much_as_if_one_had_counted() -> None:
    bets = bets_against([50, 50], ordered=False, alpha=0.05, tolerance=0.0)
    together, apart = Stream(bets, 2, 10**6), Stream(bets, 2, 10**6)
    for at in range(100):
        together.add(at % 3 == 0)
    apart.add(1, 34)
    apart.add(0, 66)
    assert together.look()[0] == pytest.approx(apart.look()[0])


def test_psi_is_nothing_for_equal_shares_and_large_for_others() -> None:
    assert psi([100, 100], [1000, 1000]) == pytest.approx(0, abs=1e-4)
    large = psi([100, 100], [10, 190])
    assert large is not None
    assert large > 0.5
    assert psi([100, 100], [0, 0]) is None


# The interval that judges a canary


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 60), st.integers(1, 60), st.integers(0, 60), st.integers(1, 60))
def test_the_interval_holds_the_difference_seen_and_turns_with_the_sides(a: int, b: int, c: int, d: int) -> None:
    first, second = Share(min(a, b), b), Share(min(c, d), d)
    low, high = difference_interval(first, second, 0.05)
    seen = first.right / first.judged - second.right / second.judged
    assert -1 <= low <= seen + 1e-6
    assert seen - 1e-6 <= high <= 1
    turned = difference_interval(second, first, 0.05)
    assert turned == pytest.approx((-high, -low), abs=1e-4)


def test_an_equal_canary_is_called_worse_no_more_often_than_promised_though_looked_at_all_the_time() -> None:
    draw = np.random.default_rng(1)
    wrong = 0
    for _ in range(100):
        first, second = draw.random(400) < 0.85, draw.random(400) < 0.85
        looks = range(10, 401, 10)
        wrong += any(
            verdict(Share(int(first[:n].sum()), n), Share(int(second[:n].sum()), n), 0.0, 0.1)[0] == "worse"
            for n in looks
        )
    assert wrong <= 19  # of 100 at one in ten: more has a chance of 1 in 500


def test_few_opinions_decide_nothing() -> None:
    assert verdict(Share(5, 5), Share(2, 5), 0.05, 0.05)[0] == "undecided"
    assert verdict(Share(900, 1000), Share(890, 1000), 0.1, 0.05)[0] == "not_worse"
    assert verdict(Share(600, 1000), Share(890, 1000), 0.1, 0.05)[0] == "worse"
    assert difference_interval(Share(0, 0), Share(3, 4), 0.05) == (-1.0, 1.0)


# The profile


def test_the_profile_comes_back_as_it_was_written_and_holds_no_text(tmp_path: Path) -> None:
    rows = [example(at) for at in range(600)]
    rows[5].messages[0]["content"] = f"my {SECRET_WORD} is missing"
    made = make_profile(rows, task())
    made.write(tmp_path)
    back = Profile.read(tmp_path)
    assert back is not None
    assert back.references == made.references
    seen = seen_of([{"role": "user", "content": text_of(3)[0]}])
    assert back.places(seen) == made.places(seen)
    written = (tmp_path / PROFILE).read_text()
    assert SECRET_WORD not in written
    assert "question" not in written


def test_a_damaged_profile_is_refused_and_a_missing_one_is_none(tmp_path: Path) -> None:
    assert Profile.read(tmp_path) is None
    (tmp_path / PROFILE).write_text('{"rows": 3, "codebook": null, "references": {"length": {"categories": ["a"]}}}')
    with pytest.raises(ManifestMismatch, match="not a training profile"):
        Profile.read(tmp_path)


def test_rows_count_as_often_as_the_log_had_them() -> None:
    from dataclasses import replace

    rows = [replace(example(at), count=1 + 9 * (at == 0)) for at in range(12)]
    made = make_profile(rows, task())
    assert made.rows == 21
    assert sum(made.references["length"].counts) == 21


@pytest.mark.parametrize(
    ("text", "script"),
    [("Guten Tag", "latin"), ("Здравствуйте, карта", "cyrillic"), ("カードをなくした", "kana"), ("我的卡丢了", "han"),
     ("بطاقتي مفقودة", "arabic"), ("12 + 4?", "(none)"), ("naïve café ☕", "latin"), ("카드를 잃어버렸어요", "hangul")],
)  # fmt: skip
def test_the_script_is_that_of_most_letters(text: str, script: str) -> None:
    assert script_of(text) == script


def test_bins_name_every_length_once() -> None:
    names = bin_names(LENGTHS)
    assert len(names) == len(LENGTHS) + 1
    found = [names[bin_of(each, LENGTHS)] for each in (0, 1, 15, 16, 10**6)]
    assert found == ["<1", "1-16", "1-16", "16-32", ">=32768"]


# Live streams against a profile


def monitor() -> Monitor:
    return Monitor(make_profile([example(at) for at in range(2000)], task()), task(), MonitorSettings())


def feed(to: Monitor, count: int, *, text: str = "{}", said: str | None = None, start: int = 24_000) -> set[str]:
    """Count exchanges made from a frame; returns the features that have alarmed."""
    for at in range(start, start + count):
        words, label = text_of(at * 7)
        to.count_input(seen_of([{"role": "user", "content": text.format(words)}]))
        to.count_answer(said or label, [])
        if at % 50 == 49:
            to.look()
    return {each["feature"] for each in to.look() if each["alarm"]}


def test_traffic_like_the_training_rows_does_not_alarm() -> None:
    assert feed(monitor(), 3000) == set()


def test_what_moved_is_named() -> None:
    longer = monitor()
    feed(longer, 500)
    assert "length" in feed(longer, 300, text="{} " + "well then " * 20)
    one = monitor()
    assert feed(one, 300, said="fee") == {"answer"}
    assert "script" in feed(monitor(), 300, text="Пожалуйста помогите мне с этим вопросом {}")
    alarm = next(each["alarm"] for each in one.look() if each["feature"] == "answer")
    assert alarm["what"] == "fee"
    assert alarm["share"] > 0.9
    assert alarm["share_before"] < 0.2


def test_invalid_answers_are_an_answer_of_their_own() -> None:
    assert feed(monitor(), 200, said="I cannot say") == {"answer"}


def test_opinions_are_compared_with_the_first_ones_of_the_same_version() -> None:
    to = monitor()
    for at in range(400):
        to.count_opinion(badly=at % 10 == 0)
    assert all(each["alarm"] is None for each in to.look())
    for _ in range(150):
        to.count_opinion(badly=True)
    assert {each["feature"] for each in to.look() if each["alarm"]} == {"feedback"}


def test_agreement_below_the_least_allowed_alarms_and_agreement_at_it_seldom_does() -> None:
    def alarmed_at(share: float, seed: int) -> bool:
        to = Monitor(make_profile([example(at) for at in range(200)], task()), task(), MonitorSettings(), 0.9)
        draw = random.Random(seed)
        for at in range(1000):
            to.count_check(differs=draw.random() >= share)
            if at % 50 == 49:
                to.look()
        return any(each["feature"] == "agreement" and each["alarm"] for each in to.look())

    assert not any(alarmed_at(0.9, seed) for seed in range(20))
    assert all(alarmed_at(0.75, seed) for seed in range(10))


def test_the_offline_twin_reads_captured_traffic_and_a_span_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = artifact_folder(tmp_path / "artifact", "1")
    of = watched(artifact)
    captured = tmp_path / "captured"
    captured.mkdir()
    lines = []
    for at in range(800):
        text, label = text_of(24_000 + at * 7)
        time = f"2026-03-01T{at // 60:02d}:{at % 60:02d}:00.000+00:00"
        lines.append(exchange(f"x{at}", time, text, label if at < 400 else "fee", of.digest))
    (captured / "exchanges-1.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    found = figures(of, captured_exchanges(captured), MonitorSettings())
    assert found["drifted"] == ["answer"]
    assert cli.main(["drift", str(artifact), str(captured), "--json", "--until", "2026-03-01T06:40"]) == 0
    early = json.loads(capsys.readouterr().out)
    assert (early["exchanges"], early["drifted"]) == (400, [])
    assert cli.main(["drift", str(artifact), str(captured)]) == 0
    assert "fee was" in capsys.readouterr().out


def test_an_artifact_without_a_profile_is_told_so(tmp_path: Path) -> None:
    artifact = artifact_folder(tmp_path / "artifact", "1")
    (artifact / PROFILE).unlink()
    with pytest.raises(PotstillError, match="export it again"):
        watched(artifact)
