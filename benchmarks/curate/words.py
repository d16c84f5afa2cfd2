"""Text for synthetic traffic: English words drawn by Zipf's law into sentence patterns.

A row of ten such sentences shares with another no more than any two texts of one trade do (a tenth to a third of its
character 5-grams), so that what looks like a near-duplicate was planted.
"""

from __future__ import annotations

from random import Random

NOUNS = """order invoice account delivery package refund payment address customer contract printer router battery screen
keyboard warranty ticket meeting calendar report budget salary vacation hotel flight luggage passport airport station
train bicycle engine garage kitchen recipe garden window carpet curtain mattress blanket sofa lamp mirror drawer shelf
hammer ladder bucket fence roof chimney basement elevator apartment landlord tenant mortgage insurance accident doctor
nurse hospital pharmacy allergy vitamin breakfast restaurant waiter menu dessert bakery butcher grocery market discount
coupon receipt cashier wallet bank loan interest tax lawyer court judge witness police fire ambulance school teacher
student homework exam library novel poem author magazine newspaper editor camera painting museum concert guitar piano
violin orchestra theatre actor festival stadium football tournament referee coach athlete marathon mountain valley river
bridge tunnel highway harbour ferry island beach forest desert volcano glacier weather thunder storm rainbow planet
telescope satellite rocket laboratory experiment microscope molecule enzyme bacteria vaccine protein database server
network firewall password browser website domain backup cluster container pipeline compiler debugger function variable
array pointer thread process kernel driver protocol packet gateway certificate token schema query index table column
spreadsheet formula chart dashboard forecast inventory supplier warehouse forklift pallet shipment customs tariff export
factory machine sensor valve pump turbine generator transformer circuit resistor antenna amplifier speaker headphone
microphone studio podcast subscription newsletter campaign slogan brand logo designer tailor jacket sweater trousers
shoelace umbrella necklace bracelet perfume shampoo toothbrush towel soap candle balloon birthday wedding funeral
neighbour cousin grandmother nephew colleague manager director secretary intern volunteer charity donation election
mayor parliament minister embassy treaty border refugee language dialect grammar alphabet translation dictionary
encyclopedia"""
VERBS = """cancel change check compare confirm connect convert copy correct create deliver describe design
disable discuss download draw enable estimate exchange explain extend fix forward improve include inspect install
invite label launch measure mention merge move notice open order organise pack paint plan postpone prepare print
protect prove publish question reach recommend record reduce refuse register remove rename renew repair repeat replace
report request reserve reset restore return review reward schedule search select sell send separate share simplify
solve sort split start store suggest summarise support switch test track train transfer translate update upgrade
upload verify visit warn watch weigh withdraw"""
ADJECTIVES = """annual basic blue broken careful cheap clean cold common complex correct damaged dark deep digital dirty
double dry early electric empty exact expensive external fair familiar fast final flat foreign formal fragile free fresh
friendly full gentle golden green heavy helpful hidden hot huge identical internal large late light likely local long
loud lower main medical minor missing modern monthly narrow natural new noisy northern odd official old optional
original painful partial plain polite popular previous private public quick quiet rare ready recent red regular remote
round rural safe second secure separate sharp short silver simple single slow small smooth soft southern special square
standard steep strange strong sudden sweet tall temporary thick thin tight tiny total urban urgent useful usual valid
warm weekly western white whole wide wild wireless wooden wrong yellow young"""
ADVERBS = """again already always barely briefly carefully clearly daily directly early easily eventually exactly
finally frequently gradually hardly honestly immediately instead lately later mostly nearly never often partly perhaps
politely properly quickly quietly rarely recently safely seldom simply slowly sometimes soon suddenly twice usually
yesterday"""
PLACES = """Amsterdam Athens Atlanta Austin Berlin Bilbao Boston Bristol Brussels Budapest Chicago Cologne Copenhagen
Dallas Denver Dublin Florence Geneva Glasgow Hamburg Helsinki Houston Krakow Leeds Lisbon London Lyon Madrid Manchester
Marseille Memphis Miami Milan Montreal Munich Nashville Naples Oslo Ottawa Oxford Paris Phoenix Porto Portland Prague
Riga Rome Rotterdam Seattle Seville Stockholm Toronto Toulouse Turin Utrecht Valencia Vienna Vilnius Warsaw
Zurich"""

ASKED = (
    "Can you {v} the {a} {n} for my {n}?",
    "I {d} tried to {v} the {n}, but the {a} {n} did not {v}.",
    "How do I {v} a {n} when the {n} is {a}?",
    "My {n} in {p} is {a} and I want to {v} it {d}.",
    "The {n} near the {a} {n} was {a} when we tried to {v} it.",
    "Please {v} the {n} and {v} the {a} {n} {d}.",
    "What is the best way to {v} {a} {n}s without a {n}?",
    "We {d} need the {n} from {p} before the {n} can {v}.",
    "Is it {a} to {v} the {n} after the {n} and the {n} {v}?",
    "Someone from the {n} told me to {v} every {a} {n}.",
    "Why does the {a} {n} {d} {v} the {n} in {p}?",
    "Between the {n} and the {n} there is a {a} {n} that I must {v}.",
    "Tell me which {n} has a {a} {n} and how to {v} it.",
    "Last week the {n} in {p} was {a}, so we had to {v} the {n}.",
    "Write a {a} note about the {n}, the {n} and the {a} {n}.",
    "If the {n} is {a}, should I {d} {v} the {n} or {v} the {n}?",
)
ANSWERED = (
    "You can {v} the {a} {n} in the {n} section.",
    "First {v} the {n}, then {d} {v} the {a} {n}.",
    "The {n} in {p} is {a}, so the {n} will {d} {v}.",
    "It is {a} to {v} a {n} before the {n}.",
    "Yes, the {a} {n} can {v} each {n}.",
    "To {v} the {n}, choose the {a} {n} and {v} it {d}.",
    "Most {n}s are {a}, but the {n} may {v}.",
    "Once the {n} is {a}, {v} the {n} and the {n}.",
)
_TABLE = 1 << 12


def _by_rank(vocabulary: str) -> list[str]:
    """A table in which a word of rank r stands about 1 / (r + 8) as often as the first: an index into it is a draw."""
    words = vocabulary.split()
    weights = [1 / (rank + 8) for rank in range(len(words))]
    scale, table, total = _TABLE / sum(weights), list[str](), 0.0
    for word, weight in zip(words, weights, strict=True):
        total += weight * scale
        table += [word] * (round(total) - len(table))
    return table


TABLES = {"n": _by_rank(NOUNS), "v": _by_rank(VERBS), "a": _by_rank(ADJECTIVES), "d": _by_rank(ADVERBS),
          "p": _by_rank(PLACES)}  # fmt: skip


def _parts(pattern: str) -> list[tuple[str, list[str]]]:
    pieces = pattern.split("{")
    return [(pieces[0], []), *((piece.partition("}")[2], TABLES[piece[0]]) for piece in pieces[1:])]


_ASKED, _ANSWERED = [_parts(each) for each in ASKED], [_parts(each) for each in ANSWERED]


def sentence(random: Random, parts: list[tuple[str, list[str]]]) -> str:
    """One pattern with its slots filled."""
    bits = random.getrandbits(12 * len(parts))
    out = []
    for literal, table in parts:
        if table:
            out.append(table[bits & (_TABLE - 1)])
            bits >>= 12
        out.append(literal)
    return "".join(out)


def question(random: Random, sentences: int) -> str:
    """What a user writes."""
    return " ".join([sentence(random, _ASKED[random.getrandbits(4)]) for _ in range(sentences)])


def answer(random: Random, sentences: int) -> str:
    """What a model writes."""
    return " ".join([sentence(random, _ANSWERED[random.getrandbits(3)]) for _ in range(sentences)])


def word(random: Random) -> str:
    """A noun."""
    return TABLES["n"][random.getrandbits(12)]
