"""What a run is, costs and reports: configurations, counting, columns. Imports no JAX."""
