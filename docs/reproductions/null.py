"""2 ranks. A null section, and sections that are not objects."""

from tiny import CONFIG, attempt, model, start

for section in (None, [], True):
    attempt(
        f"tensor_parallel {section!r}", lambda section=section: start(model(), {**CONFIG, "tensor_parallel": section})
    )
