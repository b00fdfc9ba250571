"""Probing while capturing, without a store."""
