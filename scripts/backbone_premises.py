"""Which premises of a backbone hold for a class of transformers: `python scripts/backbone_premises.py qwen3_vl`.

The class is made from its default config without weights, or from the `config.json` of a checkpoint, given by its path.
What does not hold names what a family implements (see CONTRIBUTING.md, "Add a backbone").
"""

import argparse
import inspect
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from cacovid_hf._compat import CACHE_NAMES
from cacovid_hf.backbones.layer_kinds import keeps_states
from cacovid_hf.backbones.seam import CARRIED, WITHOUT_EFFECT
from cacovid_hf.policies.full import ContributionPolicy

# Arguments of a language model that a prompt given as embeddings does not need.
USUAL = {*CARRIED, *WITHOUT_EFFECT, *CACHE_NAMES, "input_ids", "cache_position", "kwargs", "output_attentions"}


def premises(model: PreTrainedModel) -> list[tuple[str, bool, str]]:
    """Each premise, whether it holds, and what is to be done if it does not."""
    config = model.config
    text = config.get_text_config()
    taken = set(inspect.signature(type(model.get_decoder()).forward).parameters) - {"self"}
    more = sorted(taken - USUAL - {"output_hidden_states", "return_dict"})
    generation = inspect.signature(type(model).prepare_inputs_for_generation).parameters
    others = sorted({type(part).__module__.partition(".")[0] for part in model.modules()} - {"torch", "transformers"})
    windows = "sliding_attention" in (getattr(text, "layer_types", None) or ())
    return [
        (
            "videos have a placeholder of their own",
            has_own_placeholder(model),
            "implement places and video_token_id",
        ),
        (
            "the language model receives embeddings, mask and positions alone",
            not more,
            f"it takes {', '.join(more)} too: implement extra_names, extra_width, extra and extra_arguments, or looked_up and stock_arguments, if the stock forward gives them",
        ),
        (
            "all of its code is of transformers",
            not others,
            f"{', '.join(others)} makes a part of it: name the package in the `test` extra, and what that part lacks in the row of the tests",
        ),
        (
            "every layer keeps keys and values",
            not keeps_states(config),
            "masking is not dropping: attends = False in the tests",
        ),
        (
            "the full policy imitates a layer of the language model",
            not (refusal := refusal_of_policy(text)),
            f'{refusal} See "Add a kind of language model"',
        ),
        (
            "tokens see those before them alone",
            not hasattr(model, "create_masks_for_generate"),
            "the class makes masks of its own, by which tokens of an image may see each other: joint_frames, extra_width and extra",
        ),
        (
            "no layer has a window",
            not windows,
            f"windows of {getattr(text, 'sliding_window', None)} positions count the uncompressed prompt, and flash attention is refused for longer ones",
        ),
        (
            "generate keeps the positions that it is given",
            keeps_positions(model),
            "prepare_inputs_for_generation drops them, and kept tokens would move together: the family is not admitted yet",
        ),
        (
            "generate takes inputs_embeds",
            "inputs_embeds" in generation,
            "nothing, if prepare_inputs_for_generation passes on what it does not name",
        ),
        (
            "forward takes logits_to_keep",
            "logits_to_keep" in inspect.signature(type(model).forward).parameters,
            "the prefill makes logits of every position",
        ),
    ]


def refusal_of_policy(text: PretrainedConfig) -> str:
    """Return why the full policy, which is the default, cannot start from this language model; empty if it can."""
    try:
        with torch.device("meta"):
            ContributionPolicy(text)
    except (ValueError, StrictDataclassError) as error:
        return str(error).splitlines()[0]
    return ""


def keeps_positions(model: PreTrainedModel) -> bool:
    """Return whether stock generation hands explicit positions on (EXAONE 4.5's counts them anew)."""
    places = torch.tensor([[3, 5]])
    made = model.prepare_inputs_for_generation(
        torch.tensor([[5, 6]]), position_ids=places, attention_mask=torch.ones_like(places)
    )
    found = made.get("position_ids")
    return found is not None and found[..., 0].unique().tolist() == [3]


def has_own_placeholder(model: PreTrainedModel) -> bool:
    """Whether the config names a placeholder of videos, and the stock code puts features there (GLM-4V's does not).

    A default config may leave the id to checkpoints, and stock code may not say places without features: then the name alone counts.
    """
    find = getattr(model.model, "get_placeholder_mask", None)
    token = getattr(model.config, "video_token_id", None)
    needed = (
        {name for name, taken in inspect.signature(find).parameters.items() if taken.default is taken.empty}
        if find
        else set()
    )
    if token is None or find is None or needed - {"input_ids", "inputs_embeds"}:
        return hasattr(model.config, "video_token_id")
    masks = find(torch.tensor([[token]]), inputs_embeds=torch.zeros(1, 1, 1))
    return any(bool(mask.any()) for mask in (masks if isinstance(masks, tuple) else (masks,)))


def main(model: str) -> None:
    """Print the premises of a model type, or of the model of a `config.json`."""
    model_type = model
    try:
        config = AutoConfig.from_pretrained(model) if Path(model).exists() else AutoConfig.for_model(model)
        model_type = config.model_type
        with torch.device("meta"):
            made = AutoModelForImageTextToText.from_config(config)
    except ImportError as error:
        raise SystemExit(f"{model_type} cannot be made: {' '.join(str(error).split())}") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise SystemExit(
            f"{model_type} cannot be made from this config: {' '.join(str(error).split())}. Give the path of a checkpoint's config.json."
        ) from None
    print(f"{model_type}: {type(made).__name__}, language model {type(made.get_decoder()).__name__}")
    for premise, holds, remedy in premises(made):
        print(f"  {'holds' if holds else 'fails'}  {premise}{'' if holds else f': {remedy}'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", help="config.model_type of a stock class, such as qwen3_vl, or a path of a config.json"
    )
    main(parser.parse_args().model)
