"""Hundreds or millions of cases: grids and zips over anything, in parallel, with a journal that survives a crash."""
