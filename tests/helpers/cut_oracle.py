"""The oracle by cutting: what a stock model says of a prompt that was cut, without our seam, a cache or `generate`.

The stock forward embeds the whole prompt, and a hook takes what reaches its language model. Each row is then cut by itself: the kept tokens stand side by
side, unpadded, at their original positions. The stock language model and head are called on all of them, anew for every token. This is the reference
of models with layers that do not attend, where a masked token is still read.
"""

import torch
from helpers.models import family_of, for_forward, original_positions, stock_inputs
from helpers.reaching import reaching_language_model
from torch import Tensor


class CutPrompts:
    """Prompts of which the kept places alone are left.

    Args:
        stock: the model.
        inputs: of the uncompressed prompts.
        kept_indices: `(B, K)`, -1 at padding.
    """

    def __init__(self, stock, inputs, kept_indices: Tensor):
        with torch.no_grad():
            self.found = reaching_language_model(stock, for_forward(stock_inputs(stock, inputs)))
        self.stock = stock
        self.positions = original_positions(stock, inputs)
        self.places = [row[row >= 0] for row in kept_indices]

    @torch.no_grad()
    def logits(self, row: int, made: Tensor) -> Tensor:
        """`(n + 1, V)` behind the cut prompt of a row and each of the tokens `made` `(n,)` after it, in one forward without a cache."""
        places, stock = self.places[row], self.stock
        embeds = torch.cat([self.found["inputs_embeds"][row, places], stock.get_input_embeddings()(made)])
        steps = torch.arange(1, len(made) + 1)
        positions = self.positions[..., row, places]
        positions = torch.cat([positions, positions[..., -1:] + steps], dim=-1)
        if positions.ndim == 2 and len(positions) == 4:
            positions[0] = torch.arange(positions.shape[-1])  # jumps in text positions are read as packed sequences
        arguments = {
            "inputs_embeds": embeds[None],
            # Without it, gaps are read as packed sequences.
            "attention_mask": torch.ones(1, len(embeds), dtype=torch.long),
            "position_ids": positions.unsqueeze(-2),
            "use_cache": False,
            **family_of(stock).beside(stock, self.found, row, places, made),
        }
        states = stock.get_decoder()(**arguments).last_hidden_state
        return stock.lm_head(states[0, len(places) - 1 :])

    def greedy(self, steps: int) -> tuple[Tensor, Tensor]:
        """Tokens `(B, steps)` and the logits `(B, steps, V)` that they are chosen by, the whole row computed anew for every token."""
        tokens, logits = [], []
        for row in range(len(self.places)):
            made, seen = torch.zeros(0, dtype=torch.long), []
            for _ in range(steps):
                seen.append(self.logits(row, made)[-1])
                made = torch.cat([made, self.chosen(seen[-1])[None]])
            tokens.append(made)
            logits.append(torch.stack(seen))
        return torch.stack(tokens), torch.stack(logits)

    def chosen(self, logits: Tensor) -> Tensor:
        """The likeliest token that the generation settings do not suppress."""
        scores = logits.clone()
        scores[self.stock.generation_config.suppress_tokens] = -torch.inf
        return scores.argmax()
