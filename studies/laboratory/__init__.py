"""A laboratory with a real pretrained language model: SmolLM2-135M-Instruct reads the clips of the embedded model and answers in plain English.

language_model   SmolLM2 out of a package of the Python index
video_model      a stock LLaVA-OneVision around it, its projector taught to speak its words
hard_clips       clips with near matches, copies, counts, order, two hops and nothing to be found
questions        clips as tokens, and questions about them by kind, with the tokens that show the answer
packing          many questions behind one video in one forward
reading          training of the language model, stopped at a named accuracy
hard_reading     training on from there, on the kinds of `hard_clips` beside the old ones
prompts          the same questions as prompts of the library, for its methods, policies and rollouts
headroom         what a budget is filled with beside the evidence, before any policy is trained
contributions    what single tokens add to the right answer, measured by small subsets
policies         imitation of attention, contributions, rollouts
sizes            how many tokens a choice should keep, told by other questions
mechanism        what the tokens do that one choice keeps and another drops
__main__         the cells: `python -m studies.laboratory --help`
"""
