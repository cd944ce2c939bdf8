"""Continue a prompt with a transformers directory, in plain transformers.

python examples/generate.py DIR "Beautiful is"
"""

from __future__ import annotations

import sys


def main(folder: str, prompt: str) -> None:
    """Print the prompt and what follows, the most likely token each time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    given = tokenizer(prompt, return_tensors="pt")
    print(tokenizer.decode(model.generate(**given, do_sample=False)[0], skip_special_tokens=True))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
