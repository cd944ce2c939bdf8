"""Lines as text of which parts are trained on, by the chat template of the tokenizer where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tpinit.runtime.finetune.lines import Line, LineProblem, Messages

__all__ = ["MarkedText", "mark"]

_ALL = "give --loss-on all, which trains on every token, or leave out this line"


@dataclass(frozen=True, slots=True)
class MarkedText:
    """A text, with the (first, last + 1) characters of each part that is trained on.

    `plain`: the tokenizer adds its special tokens and the end of the text; else the text has them all.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    plain: bool

    @property
    def whole(self) -> bool:
        """Whether every token is trained on."""
        return self.spans == ((0, len(self.text)),)

    def trains_on(self, first: int, end: int) -> bool:
        """Return whether one of the characters of a token is trained on; a token without characters is where it is."""
        return any(first < stop and max(end, first + 1) > start for start, stop in self.spans)


def mark(line: Line, tokenizer: Any, everything: bool) -> MarkedText:
    """Return a line as text. `everything`: all of it is trained on, else the text, the completion, the answers.

    Raises LineProblem for a conversation that the tokenizer's template can't render, or that has no answer.
    """
    if line.form == "text":
        return MarkedText(line.text, ((0, len(line.text)),), True)
    prompt, completion = line.prompt, line.completion
    if isinstance(prompt, str) and isinstance(completion, str):
        if getattr(tokenizer, "chat_template", None) is None:
            text = prompt + completion
            return MarkedText(text, ((0 if everything else len(prompt), len(text)),), True)
        asked: Messages = [{"role": "user", "content": prompt}] if prompt else []
        return _conversation(asked, [{"role": "assistant", "content": completion}], tokenizer, everything)
    assert isinstance(prompt, list)
    assert isinstance(completion, list)
    if getattr(tokenizer, "chat_template", None) is None:
        raise LineProblem(
            "has messages, and the tokenizer has no chat template: put chat_template.jinja into the model's directory, "
            'or write "prompt" and "completion" as texts'
        )
    return _conversation(prompt, completion, tokenizer, everything)


def _conversation(prompt: Messages, completion: Messages, tokenizer: Any, everything: bool) -> MarkedText:
    messages = [*prompt, *completion]
    text = _render(tokenizer, messages)
    if everything:
        return MarkedText(text, ((0, len(text)),), False)
    spans = []
    for index in range(len(prompt), len(messages)):
        if messages[index]["role"] != "assistant":
            continue
        before = _render(tokenizer, messages[:index], answer=True) if index else ""
        after = _render(tokenizer, messages[: index + 1])
        if not (text.startswith(before) and text.startswith(after) and len(before) < len(after)):
            raise LineProblem(
                f"the chat template writes the first {index + 1} messages otherwise when more follow, so the place of "
                f"the answer is not known: {_ALL}"
            )
        spans.append((len(before), len(after)))
    if not spans:
        raise LineProblem(f"has no message of the role assistant to train on: {_ALL}")
    return MarkedText(text, tuple(spans), False)


def _render(tokenizer: Any, messages: Messages, answer: bool = False) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer))
    except Exception as error:  # whatever a template raises
        raise LineProblem(f"is refused by the tokenizer's chat template: {type(error).__name__}: {error}") from None
