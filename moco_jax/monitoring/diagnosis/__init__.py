"""Diagnosis of a run: rules that read its records and find what goes wrong."""
