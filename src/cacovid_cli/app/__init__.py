"""The command `cacovid app`: a page to ask about videos and see what was kept.

What is computed (`studio`), what is shown (`views`, `map_view`) and the page itself (`page`, the only module that imports gradio) are apart.
"""
