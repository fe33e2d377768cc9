"""Integrations: recording what other programs train."""
