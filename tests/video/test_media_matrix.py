"""Files of many kinds, made with FFmpeg, read as FFmpeg shows them: counts, pixels and times."""

import shutil

import av
import pytest
from media_matrix import CASES, KNOWN_FAILURES, SPREAD, verdict

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


def test_there_are_many_kinds():
    assert len(CASES) >= 150
    assert set(SPREAD) <= set(CASES)
