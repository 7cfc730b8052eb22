"""Files of many kinds, made with FFmpeg, read as FFmpeg shows them: counts, pixels and times."""

import re
import shutil
from pathlib import Path

import av
import pytest
from media_matrix import CASES, GROUPS, KNOWN_FAILURES, RATE, SECONDS, SPREAD, make, verdict

from cacovid_hf.video.decoding import count_frames
from cacovid_hf.video.index import index_packets
from cacovid_hf.video.source import opened

pytestmark = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="needs FFmpeg's command line"
)
GOOD = ("exact", "mended", "refused")


@pytest.mark.parametrize("key", SPREAD)
def test_a_spread_of_kinds(key):
    assert verdict(CASES[key]) in GOOD


@pytest.mark.skipif(
    not hasattr(av.container.OutputContainer, "add_stream_from_template"), reason="PyAV before 14 makes not all of them"
)
@pytest.mark.slow
@pytest.mark.parametrize("group", sorted({case.group for case in CASES.values()}))
def test_every_kind(group):
    ends = {key: verdict(case) for key, case in CASES.items() if case.group == group and key not in SPREAD}
    assert {key: end for key, end in ends.items() if end not in GOOD and key not in KNOWN_FAILURES} == {}


def test_the_page_on_video_files_counts_them():
    """`--write` makes its table; files that the FFmpeg at hand cannot make are left out of it."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "video_files.md").read_text(encoding="utf-8")
    for group, words in GROUPS.items():
        files, exact, mended, refused, failed = re.search(
            rf"^\| {re.escape(words)} \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (.*) \|$", page, re.MULTILINE
        ).groups()
        cases = {case.name for case in CASES.values() if case.group == group}
        named = {name.partition("/")[2] for name in KNOWN_FAILURES if name.startswith(f"{group}/")}
        assert int(files) == len(cases)
        assert int(exact) + int(mended) + int(refused) == len(cases) - len(named)
        assert set(re.findall(r"`([^`]+)`", failed)) == named


def test_headers_of_joined_recordings_are_not_damage(caplog):
    """Theora's headers stand where the second recording begins, and its decoder refuses them."""
    with opened(make(CASES["joined/same_clock.ogv"])) as source:
        assert len(count_frames(source, index_packets(source))) == 2 * RATE * SECONDS
    assert "damaged" not in caplog.text


def test_there_are_many_kinds():
    assert len(CASES) >= 150
    assert set(SPREAD) <= set(CASES)
