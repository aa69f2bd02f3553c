"""The experiment on trained verbalisers: SelfIE adapters (arXiv 2602.10352), and what their words are worth."""
