"""Logged runs to tables, comparisons and figures. Imports neither JAX nor training code; submodules import pandas and matplotlib."""
