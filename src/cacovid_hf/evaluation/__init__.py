"""Who wins: methods x ratios x models x benchmarks measured side by side, and their figures beside the published ones.

`sweep.evaluate` runs and writes, `report` draws tables and plots, `datasets` reads local copies of the benchmarks, `published` holds the
figures of papers, `lmms_eval` is the plugin for that harness.
"""
