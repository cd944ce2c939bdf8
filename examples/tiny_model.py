"""Write a tiny Llama with random weights, its tokenizer, and lines to train it on: the Zen of Python.

    python examples/tiny_model.py FOLDER    # FOLDER/model and FOLDER/zen.jsonl

The same files every time: the text comes with Python, the weights from a seed.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import sys
from pathlib import Path

END = "<|end|>"
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def zen() -> list[str]:
    """Return the lines of the Zen of Python, without the title."""
    with contextlib.redirect_stdout(io.StringIO()):
        import this

    return [line for line in codecs.decode(this.s, "rot13").splitlines()[1:] if line]


def write_model(folder: Path, hidden: int = 64) -> None:
    """Write a directory with a tokenizer, trained on the Zen, and a Llama of two layers with 8 heads."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bytes_first = Tokenizer(models.BPE())
    bytes_first.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_first.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        show_progress=False,
        special_tokens=[END, "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bytes_first.train_from_iterator(zen(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_first, eos_token=END, pad_token=END, model_max_length=128, chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        max_new_tokens=24, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_lines(file: Path) -> None:
    """Write the Zen as JSONL, one line of it in each."""
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in zen()), encoding="utf-8")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write_model(target / "model")
    write_lines(target / "zen.jsonl")
