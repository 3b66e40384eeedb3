"""Speed and memory of many conversations at once, with full and with compressed caches: what ``pyaircache bench`` runs.

`grid` says what is measured, `measure` does it, `results` makes lines and tables of it, `paper` sets the paper's own
figures beside them, `plot` draws. `shapes` and `weights` make models of real shape with random weights.
"""
