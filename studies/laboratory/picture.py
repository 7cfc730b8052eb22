"""A picture of one clip: what attention keeps and what the policy keeps, and what each token does to the answer.

python -m studies.laboratory --only 'picture/0/80'   # chooses the question and measures
python -m studies.laboratory.picture                 # draws it
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from benchmarks.record import ROOT
from cacovid_hf.tiny.synthetic import GRID, NUM_FRAMES, make_clip
from studies.cells import RESULTS
from studies.laboratory.mechanism import GROUPS
from studies.laboratory.packing import answer_logits
from studies.laboratory.questions import NUM_TOKENS, Asked
from studies.laboratory.scores import highest, right_from

CELL = RESULTS / "laboratory" / "picture__0__80.json"
_COLORS = {
    "evidence": "#2a9d4a",
    "near match": "#d1495b",
    "other object": "#e8a33d",
    "sink": "#555555",
    "other cell": "#888888",
}
_FADED = 0.75  # of dropped tokens, towards white


@torch.no_grad()
def example(model: Any, asked: Asked, rival: Tensor, ours: Tensor, group: Tensor, count: int) -> dict[str, Any]:
    """One question that is answered wrongly from a rival's tokens and rightly from ours, though both keep its evidence: the middle one by the gain in probability.

    Args:
        model: the video model.
        asked: clips and questions.
        rival: scores `(C, Q, N)`.
        ours: likewise.
        group: see `mechanism.groups`.
        count: tokens of each choice.

    Returns:
        Its clip and place, and of each choice: the answer's token, the right answer's probability, and for every kept token what it is, and the
        change of that probability when it is taken away.
    """
    kept = [highest(scores, count) for scores in (rival, ours)]
    (wrong, low), (right, high) = (right_from(model, asked, some) for some in kept)
    both_see = torch.stack([asked.evidence.gather(2, some).any(2) for some in kept]).all(0)
    won = (~wrong & right & both_see).flatten().nonzero()[:, 0]
    number = won[(high - low).flatten()[won].argsort()[len(won) // 2]]
    clip, place = divmod(int(number), asked.answers.shape[1])
    alone, what = asked.alone(number[None]), group[clip, place]
    choices = []
    for some, probability in zip(kept, (low, high), strict=True):
        tokens = some[clip, place]
        said = answer_logits(model, alone, torch.tensor([0]), tokens[None])[0, 0].argmax()
        fewer = torch.stack([tokens[tokens != token] for token in tokens])
        without = right_from(model, asked.alone(number.expand(count)), fewer[:, None])[1][:, 0]
        change = without - probability[clip, place]
        choices.append(
            {
                "said": int(said),
                "probability": round(probability[clip, place].item(), 4),
                "tokens": [
                    {"token": token, "is": GROUPS[int(what[token])], "taken_away": round(points, 4)}
                    for token, points in zip(tokens.tolist(), change.tolist(), strict=True)
                ],
            }
        )
    ids = alone.ids[0, 0, : alone.lengths[0, 0]].tolist()
    return {
        "clip": clip,
        "place": place,
        "question": ids,
        "answer": int(alone.answers),
        "among": len(won),
        "choices": choices,
    }


def draw(shown: dict[str, Any], frames: np.ndarray, out: Path) -> None:
    """Draw both choices over the frames of the clip, `(T, H, W, 3)`."""
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch, Rectangle

    side = frames.shape[1] / GRID
    figure = pyplot.figure(figsize=(14, 5.2), layout="constrained")
    for part, choice in zip(figure.subfigures(2), shown["choices"], strict=True):
        row = part.subplots(1, NUM_FRAMES)
        kept = np.zeros(NUM_TOKENS, dtype=bool)
        kept[[one["token"] for one in choice["tokens"]]] = True
        cells = kept.reshape(NUM_FRAMES, GRID, GRID).repeat(int(side), axis=1).repeat(int(side), axis=2)
        faded = np.where(cells[..., None], frames, frames * (1 - _FADED) + 255 * _FADED).astype(np.uint8)
        for axis, picture in zip(row, faded, strict=True):
            axis.imshow(picture)
            axis.set_xticks([])
            axis.set_yticks([])
        for one in choice["tokens"]:
            frame, cell = divmod(one["token"], GRID * GRID)
            y, x = (part * side for part in divmod(cell, GRID))
            color = _COLORS[one["is"]]
            row[frame].add_patch(Rectangle((x - 0.5, y - 0.5), side, side, fill=False, color=color, linewidth=2.5))
            points = round(100 * one["taken_away"])
            if points:
                left = x > side * GRID / 2
                beside = (x - side * 0.2, "right") if left else (x + side * 1.2, "left")
                place = {"x": beside[0], "ha": beside[1], "y": y + side / 2, "va": "center"}
                row[frame].text(s=f"{points:+d}", fontsize=11, in_layout=False, **place)
        mark = "right" if choice["said"] == shown["answer"] else "wrong"
        title = f'{choice["name"]}: "{choice["word"]}" ({mark}). Probability of the right answer {100 * choice["probability"]:.0f} %'
        part.suptitle(title, x=0.01, ha="left", fontsize=12)
    found = {one["is"] for choice in shown["choices"] for one in choice["tokens"]}
    handles = [Patch(fill=False, edgecolor=color, linewidth=2.5, label=name) for name, color in _COLORS.items()]
    figure.legend(handles=[one for one in handles if one.get_label() in found], loc="outside lower center", ncols=5)
    figure.suptitle(f"{shown['text']} A number: points of that probability that are won when the token is taken away")
    figure.savefig(out, dpi=90)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", type=Path, default=CELL)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "contribution.png")
    options = parser.parse_args()
    shown = json.loads(options.cell.read_text(encoding="utf-8"))
    draw(shown, make_clip((shown["stream"], shown["seed"], shown["clip"])).frames, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
