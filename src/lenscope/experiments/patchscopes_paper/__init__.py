"""The experiments of the Patchscopes paper (Ghandeharioun et al. 2024), a module each."""
