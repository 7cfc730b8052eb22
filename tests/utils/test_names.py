"""What an error says of a name that is not known."""

import pytest

from cacovid_hf.utils.names import check_names, nearest


def test_the_remedy_is_the_closest_name_or_the_other_one():
    assert nearest("learning_rat", ["seed", "learning_rate"], "leave it out.") == "did you mean learning_rate?"
    assert nearest(" SEED", ["seed", "learning_rate"], "leave it out.") == "did you mean seed?"
    assert nearest("seeds", ["Seed"], "leave it out.") == "did you mean Seed?"
    assert nearest("zzz", ["seed", "learning_rate"], "leave it out.") == "leave it out."
    assert nearest(7, [], "leave it out.") == "leave it out."


def test_known_names_pass():
    check_names(["seed"], ["seed", "rate"], "setting")
    with pytest.raises(ValueError, match=r"sed .*setting: did you mean seed\?"):
        check_names(["seed", "sed"], ["seed", "rate"], "setting")
