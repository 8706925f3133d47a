"""GRAFT: fine-tuning diffusion models by shaping their intermediate distributions (arXiv 2510.02692)."""
