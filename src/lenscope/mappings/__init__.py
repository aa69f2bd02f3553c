"""Frozen maps between hidden states, a fitted lens among them, and their files."""

from lenscope.mappings.foreign_formats import export_tuned_lens
from lenscope.mappings.jacobian_files import export_jacobian_lens
from lenscope.mappings.lens_files import load_lens
from lenscope.mappings.mapping import Affine, LowRank, Scale, load_mapping, mapping_hash
from lenscope.mappings.selfie_adapters import SelfieAdapter, read_selfie_adapter, write_selfie_adapter
from lenscope.mappings.vector_map import VectorMap

__all__ = [
    "Affine",
    "LowRank",
    "Scale",
    "SelfieAdapter",
    "VectorMap",
    "export_jacobian_lens",
    "export_tuned_lens",
    "load_lens",
    "load_mapping",
    "mapping_hash",
    "read_selfie_adapter",
    "write_selfie_adapter",
]
