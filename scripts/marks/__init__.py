"""Figures of the documentation, rendered from the CSVs of `benchmarks/results/`.

`csvs` reads and selects, `expressions` computes, `pictures` writes a number as a picture of it shows, `pages` finds the
marks of a page and renders what stands between them, and `prose` finds figures that no mark gives a source.
"""
