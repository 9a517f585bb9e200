"""A study as one HTML file that needs nothing else: words, tables, charts, samples, fits, costs, failures, provenance.

words       the summary in sentences
tables      results as rows and columns for the page
charts      interactive charts as plain data, drawn in the page by Chart.js (in `assets`, MIT licence)
grids       sample images as data
conclusions fits, their methods and forecasts
costs       planned against actual compute and time
origin      runs, code revisions and versions
page        all of it in one file
"""
