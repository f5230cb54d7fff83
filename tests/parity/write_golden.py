"""Write tests/interop/golden: python -m tests.parity.write_golden (extra [parity]). A test holds that they are current."""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

from lmjax.interop.tensor_files import open_tensors
from tests.interop import golden
from tests.parity.originals import MODELS, T5_MODELS, make, make_t5

SMALLER = {
    "GPT2": {"vocab_size": golden.VOCAB, "n_positions": 48, "n_embd": 16, "n_layer": 2, "n_inner": 20},
    "other": {"vocab_size": golden.VOCAB, "max_position_embeddings": 48, "hidden_size": 16, "intermediate_size": 20},
}


def golden_of(name: str, scratch: Path) -> dict:
    """What the file of that name should hold."""
    if name in T5_MODELS:
        make_t5(name, scratch, vocab_size=golden.VOCAB, d_model=16, d_ff=20, d_kv=6)
        return read_golden(scratch, transformers.T5ForConditionalGeneration, decoder_input_ids=_ids())
    kind, settings, _ = MODELS[name]
    changes = dict(SMALLER["GPT2" if kind == "GPT2" else "other"])
    if "sliding_window" in settings:
        changes["sliding_window"] = 9
    if "rope_parameters" in settings and "original_max_position_embeddings" in settings["rope_parameters"]:
        changes["rope_parameters"] = settings["rope_parameters"] | {"original_max_position_embeddings": 16}
    make(name, scratch, changes=changes)
    return read_golden(scratch, transformers.AutoModelForCausalLM)


def _ids() -> torch.Tensor:
    return torch.tensor(golden.ids().astype(np.int64))


def read_golden(scratch: Path, kind, **inputs) -> dict:
    """Of the model that was saved there, with the golden tensors in place of its own."""
    shapes = {name: list(tensor.shape) for name, tensor in open_tensors(scratch).items()}
    golden.write(scratch, shapes)
    model = kind.from_pretrained(scratch, attn_implementation="eager")
    with torch.no_grad():
        logits = model(_ids(), **inputs).logits[0].numpy()
    return {
        "transformers": transformers.__version__,
        "config": json.loads((scratch / "config.json").read_text()),
        "tensors": shapes,
        "logits": [[float(f"{x:.6g}") for x in row] for row in logits],
    }


def main() -> None:
    import tempfile

    golden.FOLDER.mkdir(exist_ok=True)
    for name in MODELS | T5_MODELS:
        with tempfile.TemporaryDirectory() as scratch:
            text = json.dumps(golden_of(name, Path(scratch)))
        (golden.FOLDER / f"{name}.json").write_text(text + "\n")
        print(name, len(text))


if __name__ == "__main__":
    main()
