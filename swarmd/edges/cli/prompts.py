"""Asks a person at the terminal for the fields of a form.

Job: one question per field, its default in brackets, asked again until the field takes the answer. Invariants: whatever
an agent wrote is shown without control characters; questions go to stderr, so that stdout holds results only. Must not
know where a form comes from or what its value is for.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET

from swarmd.core.errors import Rejected
from swarmd.edges import forms
from swarmd.roles.tool_calls import clean

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmd.edges.forms import Field

#: Typed to leave a text empty or a list without entries where the default would be taken otherwise.
EMPTY: Final = '""'
ENTRIES_MAX: Final = 1_000


def read_line() -> str:
    """One line of the terminal. Raises `Rejected` at its end: an answer that was not finished is not sent."""
    if sys.stdout.isatty():
        import readline  # noqa: F401  (editing and history of `input`)

        try:
            return input("> ")
        except EOFError:
            pass
    else:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if line:
            return line.rstrip("\n")
    raise Rejected("not_answered", "the input ended before the answer was complete: nothing was sent")


def say(text: str) -> None:
    """A line for the person."""
    print(clean(text), file=sys.stderr, flush=True)


class Prompts:
    """Asks for forms, line by line; `read` and `say` are the terminal."""

    def __init__(self, read: Callable[[], str] = read_line, tell: Callable[[str], None] = say) -> None:
        self._read, self._tell = read, tell

    def choose(self, question: str, options: tuple[str, ...]) -> str:
        """One of a few words, which may be shortened as far as they stay distinct."""
        while True:
            self._tell(f"{question} ({'/'.join(options)})")
            typed = self._read().strip().lower()
            fitting = [option for option in options if typed and option.startswith(typed)]
            if len(fitting) == 1:
                return fitting[0]
            self._tell(f"  say {', '.join(options)}")

    def ask(self, asked: Field) -> Any:
        """The value of a form. An optional field that is left empty is left out of its object."""
        value = self._ask(asked, asked.label)
        return None if value is UNSET else value

    def correct(self, form: Field, value: Any, wrong: str, message: str) -> Any:
        """The value again after the swarm refused it: only the field at the place `wrong` is asked for anew."""
        self._tell(f"not taken: {message}")
        found = _find(form, value, wrong)
        if found is None:
            return self.ask(_with_default(form, value))
        asked, put = found
        again = self._ask(asked, asked.label or wrong)
        return again if put is None else put(again)

    # --- fields ---

    def _ask(self, asked: Field, name: str) -> Any:
        if asked.kind == "const":
            return asked.value
        if asked.kind == "object":
            return self._object(asked, name)
        if asked.kind == "list":
            return self._list(asked, name)
        return self._one(asked, name)

    def _object(self, asked: Field, name: str) -> Any:
        if not asked.required and not self._wants(asked, name):
            return UNSET if asked.default is UNSET else asked.default
        if name:
            self._tell(f"{name}:{_help(asked)}")
        value = {}
        for inner in asked.fields:
            key = inner.path.removeprefix(f"{asked.path}.")
            label = f"{key} ({inner.label})" if inner.label and inner.label != key else key
            got = self._ask(inner, label)
            if got is not UNSET:
                value[key] = got
        return value

    def _wants(self, asked: Field, name: str) -> bool:
        self._tell(f"{name}: fill in? (yes/no) [{'no' if asked.default is UNSET else 'no, keep as it is'}]")
        return self._read().strip().lower() in ("y", "yes")

    def _list(self, asked: Field, name: str) -> Any:
        assert not isinstance(asked.item, type(UNSET))
        note = f" [{_short(asked.default)}; {EMPTY}: none]" if asked.default is not UNSET else ""
        self._tell(f"{name}: one entry after the other, an empty line ends{_help(asked)}{note}")
        while True:
            entries = self._entries(asked)
            if entries is UNSET and (asked.default is not UNSET or not asked.required):
                return asked.default
            try:
                return forms.checked(asked, [] if entries is UNSET else entries)
            except forms.Wrong as wrong:
                self._tell(f"  {wrong.message}")

    def _entries(self, asked: Field) -> Any:
        """What is typed until an empty line; UNSET when that is the first."""
        item = asked.item
        entries: list[Any] = []
        assert not isinstance(item, type(UNSET))
        while len(entries) < ENTRIES_MAX:
            number = f"  {len(entries) + 1}"
            if item.kind in ("object", "list"):
                if self.choose(f"{number}: another entry?", ("yes", "no")) == "no":
                    break
                entries.append(self._ask(item, number))
                continue
            self._tell(f"{number}:{_options(item)}")
            typed = self._read()
            if not typed.strip():
                break
            if typed.strip() == EMPTY and not entries:
                return []
            try:
                entries.append(forms.parse(item, typed))
            except forms.Wrong as wrong:
                self._tell(f"  {wrong.message}")
        return entries or UNSET

    def _one(self, asked: Field, name: str) -> Any:
        has_default = asked.default is not UNSET
        hint = f" [{_short(asked.default)}]" if has_default else "" if asked.required else " [left out]"
        self._tell(f"{name or 'your answer'}{_kind(asked)}{_help(asked)}{hint}{_options(asked)}")
        while True:
            typed = self._read()
            if not typed.strip():
                if has_default:
                    return asked.default
                if not asked.required:
                    return UNSET
                if asked.nullable:
                    return None
                if asked.kind != "text":
                    self._tell("  an answer is needed")
                    continue
            try:
                return forms.parse(asked, "" if asked.kind == "text" and typed.strip() == EMPTY else typed)
            except forms.Wrong as wrong:
                self._tell(f"  {wrong.message}")


def _kind(asked: Field) -> str:
    words = {"integer": ["whole number"], "number": ["number"], "boolean": ["yes or no"], "json": ["JSON"]}
    bounds = [f"at least {asked.minimum}"] if asked.minimum is not None else []
    bounds += [f"at most {asked.maximum}"] if asked.maximum is not None else []
    told = ", ".join(words.get(asked.kind, []) + bounds)
    return f" ({told})" if told else ""


def _help(asked: Field) -> str:
    return f" {asked.help}" if asked.help else ""


def _options(asked: Field) -> str:
    if asked.kind != "choice":
        return ""
    return "".join(f"\n  {n}  {forms.shown(option)}" for n, option in enumerate(asked.options, 1))


def _short(value: Any, chars_max: int = 60) -> str:
    text = forms.shown(value).replace("\n", " ")
    return text if len(text) <= chars_max else f"{text[: chars_max - 1]}…"


def _with_default(asked: Field, value: Any) -> Field:
    """The same form with a value as its defaults."""
    import msgspec

    given = value if isinstance(value, dict) else {}
    fields = [
        _with_default(inner, given[key]) if (key := inner.path.removeprefix(f"{asked.path}.")) in given else inner
        for inner in asked.fields
    ]
    return msgspec.structs.replace(asked, default=value, fields=fields)


def _find(form: Field, value: Any, place: str) -> tuple[Field, Callable[[Any], Any] | None] | None:
    """The field that a refusal names and how to put a new value there; None when the form has no such field."""
    if place == form.path:
        return form, None
    for inner in form.fields:
        key = inner.path.removeprefix(f"{form.path}.")
        if place == inner.path or place.startswith((f"{inner.path}.", f"{inner.path}[")):
            held = value if isinstance(value, dict) else {}
            deeper = _find(inner, held.get(key), place)
            asked, put = (inner, None) if deeper is None else deeper

            def put_in(new: Any, held: Any = held, key: str = key, put: Any = put) -> Any:
                made = new if put is None else put(new)
                left = {name: one for name, one in held.items() if name != key}
                return left if made is UNSET else {**left, key: made}

            return asked, put_in
    return None


def as_text(value: Any) -> str:
    """A value as JSON over several lines; what cannot be seen in it is written as an escape, so that it is seen."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(_escaped(letter) if unicodedata.category(letter) in _HIDDEN else letter for letter in text)


_HIDDEN: Final = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")


def _escaped(letter: str) -> str:
    return letter if letter == "\n" else json.dumps(letter)[1:-1] if ord(letter) > 0x7F else f"\\u{ord(letter):04x}"
