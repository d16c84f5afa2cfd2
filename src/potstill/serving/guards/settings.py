"""The sections `serve.screen` and `serve.filter`: each part off unless it is named."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from potstill.recipe import PathText, Section
from potstill.redaction import Kind

Role = Literal["system", "developer", "user", "assistant", "tool"]
ScreenAction = Literal["refuse", "flag"]
PersonalAction = Literal["block", "redact", "flag", "allow"]
FilterAction = Literal["redact", "replace", "refuse", "flag"]
WholeAction = Literal["replace", "refuse", "flag"]
Roles = Annotated[tuple[Role, ...], Field(min_length=1, description="whose messages are looked at")]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]


class ListSettings(Section):
    """Words as a person writes them (a phrase has spaces), and regular expressions; case makes no difference."""

    words: tuple[Annotated[str, Field(min_length=2, max_length=200)], ...] = ()
    file: Annotated[PathText | None, Field(description="words, one a line; # begins a comment")] = None
    patterns: Annotated[tuple[str, ...], Field(description="in the syntax of RE2: no look-around, no references")] = ()


class InjectionScreen(Section):
    """Prompt injections and jailbreaks, by a score; the threshold was chosen by `benchmarks.guards`."""

    action: ScreenAction = "refuse"
    threshold: Share = 0.7
    roles: Roles = ("user", "tool")
    classifier: Annotated[
        FunctionName | None,
        Field(description="`module:function` of list[str] -> list[float], asked in a thread; the higher score counts"),
    ] = None


class PersonalScreen(Section):
    """Personal data and secrets in a request, a kind at a time. Placeholders stand for one call alone."""

    default: PersonalAction = "redact"
    kinds: dict[Kind, PersonalAction] = Field(default_factory=dict, description="where a kind is treated otherwise")
    restore: Annotated[bool, Field(description="put the values back into the answer that the client sees")] = False
    region: Annotated[str, Field(pattern="^[A-Z]{2}$", description="where national numbers are read as")] = "US"
    roles: Roles = ("user", "assistant", "tool")


class ToxicityScreen(Section):
    """Abuse, by the model of alt-profanity-check."""

    action: ScreenAction = "flag"
    threshold: Share = 0.95
    roles: Roles = ("user",)


class BlocklistScreen(ListSettings):
    action: ScreenAction = "refuse"
    roles: Roles = ("user", "tool")


class ScreenSettings(Section):
    """What is asked of a request before anything else sees it."""

    injection: InjectionScreen | None = None
    personal: PersonalScreen | None = None
    toxicity: ToxicityScreen | None = None
    blocklist: BlocklistScreen | None = None
    timeout_ms: Annotated[int, Field(ge=1, description="for what is looked at in a thread")] = 1_000
    on_fault: Annotated[
        Literal["allow", "refuse"], Field(description="when a classifier fails or the time is over")
    ] = "allow"


class PersonalFilter(Section):
    action: FilterAction = "redact"
    kinds: Annotated[
        tuple[Kind, ...] | None, Field(description="unset: all but URL and API_KEY, which are secrets")
    ] = None
    region: Annotated[str, Field(pattern="^[A-Z]{2}$")] = "US"


class SecretsFilter(Section):
    """API keys, tokens, private keys, addresses with a password in them."""

    action: FilterAction = "redact"
    detect_secrets: Annotated[bool, Field(description="the patterns of detect-secrets beside our own")] = False


class ToxicityFilter(Section):
    action: WholeAction = "replace"
    threshold: Share = 0.95


class BlocklistFilter(ListSettings):
    action: FilterAction = "redact"


class FilterSettings(Section):
    """What is asked of an answer before the client sees it."""

    personal: PersonalFilter | None = None
    secrets: SecretsFilter | None = None
    toxicity: ToxicityFilter | None = None
    blocklist: BlocklistFilter | None = None
    answer: Annotated[str, Field(description="given where the action is `replace`")] = "This answer was withheld."
    mask: Annotated[str, Field(description="stands for what the blocklist takes out")] = "[removed]"
    hold: Annotated[
        bool, Field(description="give streams only when the whole answer is known; else they are cut where it ends")
    ] = False
