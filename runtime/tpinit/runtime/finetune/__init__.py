"""Fine-tune a transformers directory on the lines of a file: what `tpinit train --model` runs on each rank."""
