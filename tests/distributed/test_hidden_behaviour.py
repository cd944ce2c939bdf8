"""Whatever a forward does, its model trains exactly or is refused; models of other classes are probed by default."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed


def test_models_with_hidden_behaviour_train_exactly_or_are_refused(world2: Any) -> None:
    for result in world2.run("scenarios.hidden_behaviour:all_models"):
        wrong = {name: text for name, text in result.items() if text != "exact" and not text.startswith("refused: ")}
        assert wrong == {}
        assert result["plain"] == "exact"
        print(result)


def test_models_of_other_classes_are_probed_by_default(world2: Any) -> None:
    for result in world2.run("scenarios.hidden_behaviour:probed_by_default"):
        for caller in ("initialize", "from_config"):
            (line,) = result[f"{caller} auto"]
            assert line.startswith("probed the plan, because Net is not among the classes")
            assert result[f"{caller} none"] == result[f"{caller} None"] == []
