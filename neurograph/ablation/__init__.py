"""Ablation: neurons replaced while a model runs, rankings, masking curves, faithfulness."""
