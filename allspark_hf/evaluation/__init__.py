"""Evaluation: how images are predicted and scored, whole, in windows and at several scales."""
