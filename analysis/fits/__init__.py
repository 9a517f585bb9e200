"""Fits: from scores to laws with intervals. `conclude(study)` in `analysis.fits.conclusions` makes all of them at once.

observations  the scores that a law is fitted to, under one protocol
laws          the forms: what is fitted, which variables, how many levels each needs
varpro        starting points: grids of exponents, amplitudes in closed form
refine        Huber loss on log scores, many starts or replicates at once
bootstrap     wild cluster bootstrap over cells
fit           one form fitted: parameters with intervals, predictions with bands, curves to draw
noise         how far apart two trainings of one cell fall
validation    forward-chained errors of every form, and the form that they choose
frontier      which scores no cheaper score beats, and the size that is best for a budget
isoflop       the best size at fixed compute, edge minima rejected, against the law's own optimum
sampling      what sampling steps buy, for each cell and as one law
blocks        a block as a multiplier of compute
correlation   Gflops or parameters: correlations, plain and partial
diagnostics   what a reader must know beside a number
methods       the methods box of a fit
summary       conclusions, forecasts and advice as text
"""
