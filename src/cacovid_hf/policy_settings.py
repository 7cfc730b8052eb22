"""Which policies there are, what their video tokens may attend to, and which checkpoints of them can be read."""

FORMAT_VERSION = 1
POLICY_TYPES = ("full", "light")
POLICY_ATTENTIONS = ("causal", "bidirectional", "question")


def check_policy(policy_type: str, attention: str) -> None:
    """Raise a `ValueError` that lists the choices, if a setting is none of them or the two do not go together."""
    if policy_type not in POLICY_TYPES:
        raise ValueError(
            f"policy_type={policy_type!r} is unknown: choose one of {', '.join(map(repr, POLICY_TYPES))} ('full' for the published checkpoint)."
        )
    if attention not in POLICY_ATTENTIONS:
        raise ValueError(
            f"policy_attention={attention!r} is unknown: choose one of {', '.join(map(repr, POLICY_ATTENTIONS))} "
            "('causal' for the published checkpoint)."
        )
    if policy_type == "light" and attention != "question":
        raise ValueError(
            f"policy_attention={attention!r} does not go with policy_type='light', whose video tokens read the question alone: leave it out, or "
            "use policy_type='full'."
        )


def check_format_version(format_version: object) -> None:
    """Raise a `ValueError` if a checkpoint says that this package cannot read it."""
    if type(format_version) is not int:
        raise ValueError(
            f"format_version={format_version!r} is no whole number: this is no config of a CaCoVid checkpoint."
        )
    if format_version > FORMAT_VERSION:
        raise ValueError(
            f"This checkpoint has format_version={format_version}, this cacovid-hf reads up to {FORMAT_VERSION}: "
            "upgrade it (pip install -U cacovid-hf)."
        )
