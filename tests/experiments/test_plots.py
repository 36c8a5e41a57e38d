"""The fonts of figures, and learning curves."""

import pytest

from experiments import plots


def curve(title):
    """A learning curve of one step."""
    return plots.learning_curve([{"kind": "train", "step": 1, "loss": 3.0}], title)


def test_a_character_without_a_font_is_named_once(capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "FAMILIES", plots.FAMILIES[:1])
        assert plots.missing_glyphs("a 한국 zwölf ▁ 한\n") == ["국", "한"]
        plots.png(curve("한국 zwölf"))
        assert capsys.readouterr().err == (
            "no installed font can draw 국 한; install one, such as fonts-noto-cjk or fonts-noto\n"
        )
    plots.png(curve("zwölf $x_1$"))
    assert capsys.readouterr().err == ""


def test_records_without_a_loss_are_left_out_of_the_curve():
    records = [
        {"kind": "train", "step": 1, "loss": 3.0, "perplexity": 20.0},
        {"kind": "train", "step": 2, "skipped": 1},
        {"kind": "train", "step": 3, "loss": 800.0},
        {"kind": "validation", "step": 3, "loss": 1.0, "perplexity": 2.0},
    ]
    (axes,) = plots.learning_curve(records, "$title$").axes
    assert [list(line.get_xdata()) for line in axes.lines] == [[1], [3]]


def test_the_learning_curve_has_a_line_per_kind_of_record():
    records = [
        {"kind": kind, "step": step, "perplexity": 100 / step}
        for step in (10, 20)
        for kind in ("train", "validation")
    ]
    (axes,) = plots.learning_curve(records, "title").axes
    assert [line.get_label() for line in axes.lines] == ["train", "validation"]
    assert [list(line.get_ydata()) for line in axes.lines] == [[10, 5], [10, 5]]
