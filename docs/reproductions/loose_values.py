"""2 ranks. Values of a wrong type: some are accepted silently, some fail in a comparison."""

from tiny import CONFIG, attempt, model, start

for section in ({"autotp_size": True}, {"autotp_size": "2"}, {"tp": {"tp_size": "2"}}, {"autotp_size": 2.0}):
    attempt(f"{section}", lambda section=section: start(model(), {**CONFIG, "tensor_parallel": section}))
for enabled in ("true", 1):
    config = {**CONFIG, "tensor_parallel": {"autotp_size": 2}, "bf16": {"enabled": enabled}}
    attempt(f"bf16.enabled {enabled!r}", lambda config=config: start(model(), config))
