"""The figures of the paper, one file per family; `analysis.figures.registry` lists and draws them."""
