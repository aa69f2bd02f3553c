"""A tiny random Llama as a GGUF file, whole or with tensors left out. Does not know: lenscope."""

import json

import gguf
import numpy as np
import tiny

N_LAYERS = 2
BLOCK = {
    "attn_norm": (32,),
    "ffn_norm": (32,),
    "attn_q": (32, 32),
    "attn_k": (16, 32),
    "attn_v": (16, 32),
    "attn_output": (32, 32),
    "ffn_gate": (64, 32),
    "ffn_up": (64, 32),
    "ffn_down": (32, 64),
}
SHAPES = {"token_embd.weight": (320, 32), "output.weight": (320, 32), "output_norm.weight": (32,)} | {
    f"blk.{n}.{name}.weight": shape for n in range(N_LAYERS) for name, shape in BLOCK.items()
}


def write(path, without=(), parts=None):
    """Write the file; `parts` is what it says that the model is split into."""
    made = gguf.GGUFWriter(str(path), "llama")
    made.add_context_length(64)
    made.add_embedding_length(32)
    made.add_block_count(N_LAYERS)
    made.add_feed_forward_length(64)
    made.add_head_count(4)
    made.add_head_count_kv(2)
    made.add_layer_norm_rms_eps(1e-5)
    made.add_rope_dimension_count(8)
    made.add_vocab_size(320)
    tokenizer = tiny.tokenizer()
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    tokens += [f"<unused {n}>" for n in range(320 - len(tokens))]
    made.add_tokenizer_model("gpt2")
    made.add_token_list(tokens)
    made.add_token_types([1] * len(tokens))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    made.add_token_merges([" ".join(m) for m in merges])
    made.add_bos_token_id(1)
    made.add_eos_token_id(2)
    if parts is not None:
        made.add_uint16("split.count", parts)
    draw = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        tensor = draw.normal(size=shape).astype(np.float32) / 4
        if name not in without:
            made.add_tensor(name, tensor)
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
