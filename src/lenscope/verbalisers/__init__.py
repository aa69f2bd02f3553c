"""Verbalisers that others trained: SelfIE adapters, Activation Oracles, LatentQA, natural language autoencoders."""

from lenscope.verbalisers.autoencoder_contracts import AutoencoderContract, read_autoencoder_contract
from lenscope.verbalisers.autoencoder_verbaliser import (
    AutoencoderVerbaliser,
    VectorExplanations,
    load_autoencoder_verbaliser,
)
from lenscope.verbalisers.oracles import OracleSettings, activation_oracle, latent_qa, load_oracle_settings
from lenscope.verbalisers.reconstructor import (
    ReconstructionScores,
    Reconstructor,
    load_reconstructor,
    mean_vector,
    score_reconstructions,
)
from lenscope.verbalisers.selfie_prompts import adapted_selfie, open_verbaliser, selfie_verbaliser

__all__ = [
    "AutoencoderContract",
    "AutoencoderVerbaliser",
    "OracleSettings",
    "ReconstructionScores",
    "Reconstructor",
    "VectorExplanations",
    "activation_oracle",
    "adapted_selfie",
    "latent_qa",
    "load_autoencoder_verbaliser",
    "load_oracle_settings",
    "load_reconstructor",
    "mean_vector",
    "open_verbaliser",
    "read_autoencoder_contract",
    "score_reconstructions",
    "selfie_verbaliser",
]
