"""Circuits of two models put side by side: which neurons correspond, and what they share."""
