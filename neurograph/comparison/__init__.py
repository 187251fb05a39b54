"""Circuits of two models put side by side: what they share, beside chance, and what changed."""
