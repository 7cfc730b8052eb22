"""What the API page shows: the first line of every public function says what it does, and to what."""

import inspect

import pytest

import cacovid_hf

# fmt: off
VERBS = {
    "Answer", "Change", "Choose", "Compute", "Copy", "Encode", "Forget", "Generate", "Keep", "Load", "Push", "Read", "Refuse",
    "Replace", "Return", "Save", "Select", "Start", "Take", "Turn", "Wrap", "Write",
}
# fmt: on


def public_functions():
    """Functions of `__all__`, and what its classes define themselves."""
    for name in cacovid_hf.__all__:
        value = getattr(cacovid_hf, name)
        if inspect.isclass(value):
            for method, function in vars(value).items():
                function = getattr(function, "__func__", function)
                if not method.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{method}", function
        elif inspect.isfunction(value):
            yield name, value


@pytest.mark.parametrize(
    ("name", "function"), public_functions(), ids=lambda value: value if type(value) is str else ""
)
def test_the_first_line_is_a_verb_and_an_object(name, function):
    first = inspect.getdoc(function).splitlines()[0]
    assert first.split()[0] in VERBS
    assert len(first.split()) > 1


def test_every_name_has_a_docstring():
    assert all(inspect.getdoc(getattr(cacovid_hf, name)) for name in cacovid_hf.__all__ if name != "__version__")
