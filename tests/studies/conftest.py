"""A small laboratory."""

import pytest
import torch
from helpers.laboratory import CLIPS, write_language_model

from cacovid_hf import CaCoVidForConditionalGeneration
from studies.laboratory.questions import REPORTED, ask, balanced
from studies.laboratory.video_model import build
from studies.laboratory.words import Vocabulary


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder of the laboratory with a language model in it."""
    folder = tmp_path_factory.mktemp("laboratory")
    write_language_model(folder)
    return folder


@pytest.fixture(scope="module")
def laboratory(work):
    """Its model, vocabulary, and some clips with two questions of each kind."""
    model, tokenizer = build(work, 0)
    vocabulary = Vocabulary(tokenizer)
    asked = balanced(ask(model, vocabulary, CLIPS, REPORTED, 0), 2, torch.Generator().manual_seed(0))
    return model, vocabulary, asked


@pytest.fixture(scope="module")
def wrapped(laboratory):
    """The model with a light policy."""
    torch.manual_seed(0)
    return CaCoVidForConditionalGeneration.from_backbone(
        laboratory[0], policy_type="light", contribution_share=1.0, scope="tokens"
    ).eval()
