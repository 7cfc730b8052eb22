"""Which compression methods vLLM serves: those that read no more than one video's tokens and, for the policy, the text of the prompt."""

from ..compressors import COMPRESSORS, CaCoVid, Compressor, resolve_compressor
from ..policies.settings import PolicySettings
from ..utils.values import shown


def reads_features_alone(kind: type[Compressor]) -> bool:
    """Whether a method looks at nothing but the tokens of one video, blind to the question."""
    return not kind.inside_llm and not kind.reads_tower and kind.score is Compressor.score


# Sorted, so that a number means the same method in every process.
SERVED: tuple[str, ...] = (
    CaCoVid.name,
    *sorted(name for name, kind in COMPRESSORS.items() if reads_features_alone(kind)),
)


def check_served(name: object, has_policy: bool) -> str:
    """Return the name of a method that can be served.

    Args:
        name: as a request or the server's settings give it.
        has_policy: whether the checkpoint has one.

    Raises:
        ValueError: unknown, not served, or in need of a policy that is not there.
    """
    listed = ", ".join(map(repr, SERVED if has_policy else SERVED[1:]))
    if name == CaCoVid.name and not has_policy:
        raise ValueError(f"compressor='cacovid' needs a policy, and this checkpoint has none: choose one of {listed}.")
    if not isinstance(name, str) or name not in COMPRESSORS:
        raise ValueError(f"compressor={shown(name)} is unknown: choose one of {listed}.")
    if name not in SERVED:
        raise ValueError(
            f"compressor={name!r} reads more than the tokens of one video, and vLLM does not show more to a plugin: choose one of {listed}."
        )
    return name


def made(name: str, settings: PolicySettings | None) -> Compressor:
    """Return a served method with its default settings; the policy's are those of the checkpoint."""
    return resolve_compressor(name, settings)
