"""Ask the embedded tiny model about one of its clips, with all video tokens and with a quarter of them."""

from transformers import AutoProcessor

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.tiny import clips, model_path

model = CaCoVidForConditionalGeneration.from_pretrained(model_path())
processor = AutoProcessor.from_pretrained(model_path())
clip = clips()[0]
question = clip.questions[0].text
messages = [
    {"role": "user", "content": [{"type": "video", "path": str(clip.path)}, {"type": "text", "text": question}]}
]
inputs = processor.apply_chat_template(
    messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
)
for ratio in (1.0, 0.25):
    kept = model.compress(**inputs, retention_ratio=ratio).videos[0].keep
    ids = model.generate(**inputs, retention_ratio=ratio, max_new_tokens=8)
    answer = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"{ratio}: {question} {answer} ({int(kept.sum())} of {kept.numel()} tokens)")
