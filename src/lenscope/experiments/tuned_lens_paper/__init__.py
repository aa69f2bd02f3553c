"""The experiments of the tuned-lens paper (Belrose et al. 2023), a module each."""
