"""Ask the embedded tiny model about one of its clips, with all video tokens and with a quarter of them."""

from transformers import AutoProcessor

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.tiny import clips, model_path

model = CaCoVidForConditionalGeneration.from_pretrained(model_path())
session = model.session(clips()[0].path, AutoProcessor.from_pretrained(model_path()))
for ratio in (1.0, 0.25):
    print(ratio, session.ask("What color is the cross?", retention_ratio=ratio, max_new_tokens=8))
