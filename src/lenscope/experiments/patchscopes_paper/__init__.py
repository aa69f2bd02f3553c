"""experiments/patchscopes_paper"""
