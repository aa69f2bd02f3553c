"""experiments/tuned_lens_paper"""
