"""The experiments of the Jacobian-lens paper (Gurnee et al. 2026), a module each."""
