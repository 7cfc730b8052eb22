"""Tables and plots of accuracies."""

import pytest

from cacovid_hf.utils.figures import draw_lines, markdown_table, percent, set_ratio_axis


def test_a_table():
    table = markdown_table(["method", "10 %"], [["ours", percent(0.975, 0.0049)], ["random", ""]])
    assert table == "| method | 10 % |\n|---|---|\n| ours | 97.5 ± 0.5 |\n| random |  |"


def test_lines_are_in_percent_and_in_order():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.add_subplot()
    draw_lines(axes, {"ours": [(25, 0.9, 0.01), (10, 0.8, 0.02)], "random": [(10, 0.3, 0.0)]}, thick="ours")
    set_ratio_axis(axes, [0.25, 0.1, 0.1], 0.95)
    ours, random = (container.lines[0] for container in axes.containers)
    assert (list(ours.get_xdata()), list(ours.get_ydata())) == ([10, 25], [80, 90])
    assert ours.get_linewidth() > random.get_linewidth()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["10", "25"]
    assert list(axes.lines[-1].get_ydata()) == [95, 95]
    assert [text.get_text() for text in axes.legend().get_texts()] == ["all tokens", "ours", "random"]
